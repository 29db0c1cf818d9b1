/** Who exchanges masks and shares with whom: a k-regular graph in an unpredictable order. */
import { ascii, toHex, u32 } from "./bytes.mjs";
import { sha256 } from "./primitives.mjs";
import { LABEL } from "./wire.mjs";

const ascending = (values) => values.sort((a, b) => a - b);

/** A cycle of devices, each joined to the k/2 on either side, or everybody to everybody. */
export class Graph {
  /** @param {number[]} cycle @param {number} degree */
  constructor(cycle, degree) {
    this.cycle = cycle;
    this.degree = degree;
  }

  get complete() {
    return this.degree >= this.cycle.length - 1;
  }

  /** @param {number} device @returns {number[]} ascending */
  neighbours(device) {
    if (this.complete) return ascending(this.cycle.filter((other) => other !== device));
    const at = this.cycle.indexOf(device);
    const n = this.cycle.length;
    const found = [];
    for (let step = 1; step <= this.degree / 2; step++)
      found.push(this.cycle[(at + step) % n], this.cycle[(at - step + n) % n]);
    return ascending(found);
  }

  /** @param {number} device @returns {number[]} who hold its shares: all, in the complete graph */
  holders(device) {
    return this.complete ? ascending([...this.cycle]) : this.neighbours(device);
  }

  /** @param {Set<number>} marked @returns {number} the least of them in any k/2 in a row */
  leastInWindow(marked) {
    const n = this.cycle.length;
    const width = Math.min(Math.floor(this.degree / 2), n);
    const flags = this.cycle.map((device) => Number(marked.has(device)));
    let inside = flags.slice(0, width).reduce((sum, flag) => sum + flag, 0);
    let least = inside;
    for (let at = 0; at < n; at++) {
      inside += flags[(at + width) % n] - flags[at];
      least = Math.min(least, inside);
    }
    return least;
  }
}

/** @param {Uint8Array} seed @param {number[]} members @param {number} degree */
export async function drawGraph(seed, members, degree) {
  const place = async (device) => toHex(await sha256(LABEL, ascii("graph"), seed, u32(device)));
  const places = new Map();
  for (const device of members) places.set(device, await place(device));
  const cycle = [...members].sort((a, b) => (places.get(a) < places.get(b) ? -1 : 1));
  return new Graph(cycle, degree);
}
