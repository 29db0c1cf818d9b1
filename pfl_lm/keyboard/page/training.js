// A worker that learns: values and messages in, values out. Runs the `personal` graph, which gives
// the loss and its gradient, and takes the steps; typing goes on meanwhile.

import { openGraphs } from "./runtime.js";

let graph, entry, plan;

onmessage = async ({ data }) => {
  try {
    if (data.open) {
      ({ entry, plan } = data.open);
      graph = (await openGraphs(data.open.site))(entry.path);
      return;
    }
    const values = await train(data.values, data.messages);
    postMessage({ turn: data.turn, values }, [values.buffer]);
  } catch (error) {
    postMessage({ turn: data.turn, error: String(error) });
  }
};

// Each message in turn, a few steps each, so that learning all of them again gives the same.
async function train(values, messages) {
  const [[, , [length]], [, , [rows, width]]] = entry.interface.inputs;
  for (const ids of messages)
    for (const window of windowsOf(ids, rows, width))
      for (let step = 0; step < plan.steps; step++) {
        const found = await graph.run({
          values: { type: "float32", dims: [length], data: values },
          windows: { type: "int32", dims: [rows, width], data: window },
        });
        values = descend(values, found.gradient.data, ids);
      }
  return values;
}

function windowsOf(ids, rows, width) {
  const windows = [];
  for (let from = 0; from < ids.length - 1; from += width - 1) {
    const window = new Int32Array(rows * width); // 0 is padding
    window.set(ids.slice(from, from + width));
    windows.push(window);
  }
  return windows;
}

// Gradient descent on the adapter, and on the biases of the words that were typed: the others'
// would fall a little with every message, and nobody could say why.
function descend(values, gradient, ids) {
  const next = Float32Array.from(values);
  const adapter = plan.adapter, clip = clipTo(gradient.subarray(0, adapter), plan.clip);
  for (let i = 0; i < adapter; i++) next[i] -= plan.adapter_rate * clip * gradient[i];
  for (const id of new Set(ids)) {
    const at = adapter + id;
    const moved = next[at] - plan.bias_rate * gradient[at];
    next[at] = Math.max(-plan.most_bias, Math.min(plan.most_bias, moved));
  }
  return next;
}

function clipTo(gradient, most) {
  const norm = Math.sqrt(gradient.reduce((sum, g) => sum + g * g, 0));
  return norm > most ? most / norm : 1;
}
