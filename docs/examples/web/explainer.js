// An explainer's file: what it says of itself, and running it; errors name what a wrong file is.

import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more would need headers from the server
ort.env.wasm.wasmPaths = "./";

const KINDS = [
  [[0x50, 0x4b], "a zip archive, such as a .pt2 or .aoti explainer or a checkpoint. Export to a path that ends in .onnx"],
  [[0x80], "a pickle, such as a PyTorch checkpoint. Export the model: fxgrad export MODEL --checkpoint FILE -o model.onnx"],
  [[0x89, 0x48, 0x44, 0x46], "an HDF5 file"],
  [[0x47, 0x47, 0x55, 0x46], "a GGUF file: weights for llama.cpp"],
  [[0x3c], "a page in HTML or XML, such as the error page of a failed download"],
  [[0x76, 0x65, 0x72, 0x73, 0x69, 0x6f, 0x6e], "the pointer of a Git LFS file. Run git lfs pull"],
];

// What a file is by its first bytes; "" if it may be ONNX.
function kindOf(bytes) {
  if (!bytes.length) return "an empty file: its export or its copying was cut off";
  if (bytes[8] === 0x7b && bytes[7] === 0 && bytes[6] === 0) return "a .safetensors file: weights, and no program";
  const found = KINDS.find(([start]) => start.every((byte, i) => bytes[i] === byte));
  return found ? found[1] : bytes[0] === 0x08 ? "" : "neither ONNX nor a picture";
}

// The text entries of an ONNX file: field 14 of its protobuf message, pairs of fields 1 and 2.
function metadataOf(bytes) {
  const text = new TextDecoder(), about = {};
  for (const [field, entry] of fieldsOf(bytes)) {
    if (field !== 14) continue;
    const pair = Object.fromEntries(fieldsOf(entry).map(([i, value]) => [i, text.decode(value)]));
    try { about[pair[1]] = JSON.parse(pair[2]); } catch { about[pair[1]] = pair[2]; }
  }
  return about;
}

function fieldsOf(bytes) {
  const fields = [];
  let at = 0;
  const number = () => {
    let value = 0, factor = 1, byte;
    do { byte = bytes[at++]; value += (byte & 127) * factor; factor *= 128; } while (byte & 128);
    return value;
  };
  while (at < bytes.length) {
    const tag = number(), field = Math.floor(tag / 8), wire = tag % 8;
    if (wire === 0) number();
    else if (wire === 2) {
      const length = number();
      if (at + length > bytes.length) throw new Error("it ends too early");
      fields.push([field, bytes.subarray(at, at + length)]);
      at += length;
    } else if (wire === 1 || wire === 5) at += wire === 1 ? 8 : 4;
    else throw new Error("it is damaged");
  }
  return fields;
}

export async function load(bytes, name) {
  const kind = kindOf(bytes);
  if (kind) throw new Error(`${name} is no explainer; it is ${kind}.`);
  let about;
  try { about = metadataOf(bytes); } catch (error) {
    throw new Error(`${name} cannot be read: ${error.message}. Copy or export it again.`);
  }
  if (!about.method) {
    throw new Error(`${name} is an ordinary ONNX model, without an attribution. Explainers are made from the PyTorch ` +
      "model: fxgrad export MODEL -o model.onnx.");
  }
  refuse(about, name);
  let session;
  try { session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] }); } catch (error) {
    throw new Error(`onnxruntime cannot load ${name}: ${error.message}`);
  }
  return new Explainer(session, about, name);
}

function refuse(about, name) {
  const inputs = about.inputs ?? [], how = about.preprocessing;
  if (!how?.size || inputs.length !== 2) {
    throw new Error(`${name} takes ${inputs.join(", ")}, and does not say how a picture becomes that. This page is ` +
      "for classifiers of pictures, written by fxgrad export.");
  }
  if (about.targets || how.letterbox) {
    throw new Error(`${name} ${about.targets ? "takes several targets at once: export it without --targets" :
      "pads its pictures, which this page does not do"}.`);
  }
}

class Explainer {
  constructor(session, about, name) {
    Object.assign(this, { session, about, name });
    this.policies = Object.keys(about.policies ?? { [about.policy]: "" });
    this.classes = about.class_names ?? null; // without names their number is known from the first run
  }

  // Logits and the map of a class (by default the likeliest) under a policy.
  async run(x, target = null, policy = this.policies[0]) {
    const began = performance.now();
    let found = await this.once(x, target ?? 0), index = target;
    if (target === null) {
      index = found.logits.data.reduce((best, value, i, all) => (value > all[best] ? i : best), 0);
      if (index) found = await this.once(x, index);
    }
    const end = this.about.policies ? `_${policy}` : "";
    const map = found[`attribution${end}`], error = found[`completeness_error${end}`];
    if (map.dims.length !== 3) throw new Error(`the map has ${map.dims.length - 1} axes: export it without --each-channel.`);
    return {
      logits: Array.from(found.logits.data), target: index, map: Float32Array.from(map.data), rows: map.dims[1],
      columns: map.dims[2], error: error ? Number(error.data[0]) : null, took: performance.now() - began,
    };
  }

  once(x, target) {
    const { size } = this.about.preprocessing, [name] = this.about.inputs;
    return this.session.run({
      [name]: new ort.Tensor("float32", x, [1, ...size]),
      target: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]),
    });
  }
}

// A function that calls `run`, one call at a time; what is asked for meanwhile is run once more afterwards.
export function oneAtATime(run) {
  let running = false, stale = false;
  return async () => {
    stale = true;
    if (running) return;
    running = true;
    while (stale) {
      stale = false;
      await run();
    }
    running = false;
  };
}
