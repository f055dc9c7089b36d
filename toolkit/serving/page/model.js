// Names the classes of a picture: with the network inside this page, or by asking the server that sent the page.
"use strict";

const TOP = 5;

// The form of the model's input -> its value for one picture, Uint8Array (32, 32, 3).
const FEEDS = {
  "uint8-nhwc": (ort, pixels) => ({ images: new ort.Tensor("uint8", pixels, [1, SIDE, SIDE, 3]) }),
  "float-nchw": (ort, pixels) => ({ images: new ort.Tensor("float32", channelsFirst(pixels), [1, 3, SIDE, SIDE]) }),
  picture: (ort, pixels) => ({ picture: new ort.Tensor("uint8", pixels, [SIDE, SIDE, 3]) }),
};

/** A model that did not start or did not answer; the message is shown as it is. */
class ModelError extends Error {}

/**
 * Open the model: `{ classify(file, picture) }`, which resolves to `{ top, logits, milliseconds }`.
 *
 * `top` lists `{ label, probability }`, the most probable first; `logits` is null where a server answered.
 */
async function openModel(page) {
  return page.mode === "server" ? serverModel(page) : embeddedModel(page);
}

async function embeddedModel(page) {
  if (!globalThis.DecompressionStream || !globalThis.WebAssembly) {
    throw new ModelError("This browser is too old for the page: it needs DecompressionStream and WebAssembly SIMD.");
  }
  const ort = await openRuntime();
  const session = await ort.InferenceSession.create(await unpack("model"), { executionProviders: ["wasm"] });
  const model = {
    async classify(file, picture) {
      const start = performance.now();
      const { logits, probabilities } = await session.run(FEEDS[page.input](ort, picture.pixels));
      const milliseconds = performance.now() - start;
      checkProbabilities(probabilities.data, page.classes);
      return { top: mostProbable(page.classes, probabilities.data), logits: logits.data, milliseconds };
    },
  };
  await model.classify(null, { pixels: new Uint8Array(SIDE * SIDE * 3) }); // the first run allocates: it is slower
  return model;
}

/** Import onnxruntime-web from memory: a page opened from disk cannot load a second file. */
async function openRuntime() {
  const [module, wasm] = await Promise.all([unpack("runtime-module"), unpack("runtime-wasm")]);
  const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
  const ort = await import(url);
  URL.revokeObjectURL(url);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // threads need SharedArrayBuffer, which a page opened from disk has not
  return ort;
}

/** The contents of a data block of this page, base64 of gzip, as ArrayBuffer. */
async function unpack(id) {
  const block = document.getElementById(id);
  const text = atob(block.textContent);
  block.remove();
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) {
    bytes[index] = text.charCodeAt(index);
  }
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** (32, 32, 3) levels -> (3, 32, 32) in [0, 1]. */
function channelsFirst(pixels) {
  const plane = SIDE * SIDE;
  const levelAt = (index) => pixels[(index % plane) * 3 + Math.trunc(index / plane)];
  return Float32Array.from({ length: 3 * plane }, (_, index) => levelAt(index) / 255);
}

function checkProbabilities(probabilities, classes) {
  if (probabilities.length !== classes.length || !probabilities.every(Number.isFinite)) {
    throw new ModelError(`The model gave no probability for each of its ${classes.length} classes.`);
  }
}

function mostProbable(classes, probabilities) {
  return Array.from(probabilities, (probability, index) => ({ label: classes[index], probability }))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, TOP);
}

/** Ask `POST /predict`, whose answer is that of `cifar predict --format json`. */
function serverModel(page) {
  const address = `predict?top=${Math.min(TOP, page.classes.length)}`;
  return {
    async classify(file) {
      const start = performance.now();
      const result = await post(address, file);
      if (!result.top) throw new ModelError(result.error.replace(/^the picture: /, ""));
      return { top: result.top, logits: null, milliseconds: performance.now() - start };
    },
  };
}

/** The server's answer for one file: its prediction, or `{ error }`. */
async function post(address, file) {
  const body = new Blob([file], { type: "application/octet-stream" }); // the server looks at the bytes, not the name
  let answer;
  try {
    answer = await (await fetch(address, { method: "POST", body })).json();
  } catch {
    throw new ModelError("got no answer: the server cannot be reached");
  }
  const result = Array.isArray(answer) ? answer[0] : answer;
  return result?.top ? result : { error: String(result?.error ?? "the server gave no prediction") };
}
