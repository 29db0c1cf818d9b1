// A graph that can be run: here in the page by WebAssembly, or on this machine by the local server.
// Both take and give { name: { type, dims, data } }, so that nothing else knows which it is.

const ARRAYS = { int32: Int32Array, int64: BigInt64Array, float32: Float32Array };

export async function openGraphs(site) {
  if (site.runtime === "server") return (file) => new RemoteGraph(file);
  const ort = await import("./runtime/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.logLevel = "error";
  return (file) => new LocalGraph(ort, file);
}

class LocalGraph {
  constructor(ort, file) {
    this.ort = ort;
    this.session = fetch(`bundle/${file}`)
      .then((answer) => answer.arrayBuffer())
      .then((bytes) => ort.InferenceSession.create(bytes, { graphOptimizationLevel: "all" }));
  }

  async run(inputs) {
    const session = await this.session;
    const feeds = {};
    for (const [name, { type, dims, data }] of Object.entries(inputs))
      feeds[name] = new this.ort.Tensor(type, data, dims);
    const found = await session.run(feeds);
    return Object.fromEntries(session.outputNames.map((name) => {
      const { type, dims, data } = found[name];
      return [name, { type, dims, data }];
    }));
  }
}

class RemoteGraph {
  constructor(file) {
    this.file = file;
  }

  async run(inputs) {
    const body = Object.fromEntries(Object.entries(inputs).map(([name, { type, dims, data }]) =>
      [name, { type, dims, data: toBase64(data) }]));
    const answer = await fetch("run", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ graph: this.file, inputs: body }),
    });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    for (const tensor of Object.values(found))
      tensor.data = new ARRAYS[tensor.type](fromBase64(tensor.data));
    return found;
  }
}

function toBase64(data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const parts = [];
  for (let at = 0; at < bytes.length; at += 0x8000)
    parts.push(String.fromCharCode(...bytes.subarray(at, at + 0x8000)));
  return btoa(parts.join(""));
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}
