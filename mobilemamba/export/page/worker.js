// The network, beside the page: it answers pictures while the page stays at hand.

import * as ort from "./ort.js";
import { classes, objects, pixels } from "./answers.js";
import { input } from "./prepare.js";

const here = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.wasmPaths = { wasm: here("ort.wasm") };
// Threads share memory, which browsers allow to pages that are served with the headers COOP and COEP.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

const loaded = (async () => {
  const about = await (await fetch(here("network.json"))).json();
  const session = await ort.InferenceSession.create(here("network.onnx"), { graphOptimizationLevel: "all" });
  return [about, session];
})();
loaded.then(
  ([about]) => postMessage({ about, threads: ort.env.wasm.numThreads }),
  (error) => postMessage({ failed: `the network cannot be loaded: ${error.message ?? error}` }),
);

onmessage = async ({ data: { id, rgba, width, height } }) => {
  try {
    const [about, session] = await loaded;
    const began = performance.now();
    const rgb = new Uint8ClampedArray(width * height * 3);
    for (let i = 0, j = 0; i < rgba.length; i += 4) for (let c = 0; c < 3; c++) rgb[j++] = rgba[i + c];
    const canvas = [about.size[1], about.size[0]];
    const [planes, shown] = input({ data: rgb, width, height }, about.how, about.size);
    const batch = about.batch ?? 1;
    const filled = batch === 1 ? planes : new Float32Array(batch * planes.length);
    if (batch > 1) filled.set(planes);
    const pictures = new ort.Tensor("float32", filled, [batch, 3, ...about.size]);
    const ready = performance.now();
    const answer = (await session.run({ [session.inputNames[0]]: pictures }))[session.outputNames[0]];
    const done = performance.now();
    const values = answer.data.subarray(0, answer.data.length / batch), count = about.names.length;
    const found = { id, prepared: ready - began, computed: done - ready };
    if (about.how.task === "classification") found.classes = classes(values, 5, about.probabilities);
    else if (about.how.task === "detection") found.objects = objects(values, count, about.kept, shown, canvas);
    else [found.labels, found.classes] = pixels(values, count);
    postMessage(found);
  } catch (error) {
    postMessage({ id, failed: `the network failed: ${error.message ?? error}` });
  }
};
