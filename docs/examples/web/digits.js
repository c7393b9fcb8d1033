// The page: a canvas to draw on, and for each class its map, from one run of the explainer per change.

import { oneAtATime } from "./explainer.js";
import * as ort from "./ort.wasm.min.mjs";

const SIDE = 48;
const byId = (id) => document.getElementById(id);
const paper = byId("paper");
const pen = paper.getContext("2d", { willReadFrequently: true });
const pixels = new Float32Array(SIDE * SIDE); // ink from 0 to 1: what the model sees, whatever is laid over it

let session, about, tiles, chosen = null;
const explain = oneAtATime(run);

ort.env.wasm.numThreads = 1; // more would need headers from the server
ort.env.wasm.wasmPaths = "./";

async function start() {
  const [samples, loaded] = await Promise.all([
    fetch("samples.json").then((answer) => answer.json()),
    ort.InferenceSession.create("digits.onnx", { executionProviders: ["wasm"] }),
  ]);
  session = loaded;
  about = samples;
  tiles = about.classes.map(makeTile);
  about.canvases.forEach(makeSample);
  load(about.canvases[0]);
  listen();
}

function makeTile(name, index) {
  const button = document.createElement("button");
  button.className = "class";
  button.setAttribute("aria-pressed", "false");
  const map = document.createElement("canvas");
  map.width = map.height = SIDE;
  const label = document.createElement("span");
  const title = document.createElement("b");
  title.textContent = name;
  const logit = document.createElement("output");
  label.append(title, logit);
  button.append(map, label);
  button.onclick = () => { chosen = chosen === index ? null : index; explain(); };
  byId("classes").append(button);
  return { button, logit, map: map.getContext("2d") };
}

function makeSample(sample) {
  const button = document.createElement("button");
  button.title = button.ariaLabel = `canvas with ${sample.labels.map((i) => about.classes[i]).join(" and ")}`;
  const small = document.createElement("canvas");
  small.width = small.height = SIDE;
  small.getContext("2d").putImageData(picture(Float32Array.from(sample.pixels, (v) => v / 255)), 0, 0);
  button.append(small);
  button.onclick = () => load(sample);
  byId("samples").append(button);
}

function load(sample) {
  pixels.set(sample.pixels.map((value) => value / 255));
  explain();
}

function listen() {
  let last = null;
  const at = (event) => {
    const box = paper.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  };
  paper.onpointerdown = (event) => { paper.setPointerCapture(event.pointerId); stroke(last = at(event), last); };
  paper.onpointermove = (event) => { if (last) { const next = at(event); stroke(last, next); last = next; } };
  paper.onpointerup = paper.onpointercancel = () => { last = null; };
  byId("clear").onclick = () => { pixels.fill(0); explain(); };
}

// A stroke with a soft edge; what is already brighter, or darker when erasing, stays.
function stroke([x0, y0], [x1, y1]) {
  const radius = Number(byId("brush").value), erase = byId("erase").checked;
  const length = (x1 - x0) ** 2 + (y1 - y0) ** 2;
  for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
    const along = length ? ((x + 0.5 - x0) * (x1 - x0) + (y + 0.5 - y0) * (y1 - y0)) / length : 0;
    const t = Math.min(1, Math.max(0, along));
    const distance = Math.hypot(x + 0.5 - x0 - t * (x1 - x0), y + 0.5 - y0 - t * (y1 - y0));
    const ink = Math.min(1, Math.max(0, radius + 0.5 - distance));
    const i = y * SIDE + x;
    pixels[i] = erase ? Math.min(pixels[i], 1 - ink) : Math.max(pixels[i], ink);
  }
  explain();
}

async function run() {
  const { mean, std, classes } = about;
  const count = classes.length; // a batch of the same picture, once for each class
  const input = Float32Array.from({ length: count * pixels.length }, (_, i) => (pixels[i % pixels.length] - mean) / std);
  const x = new ort.Tensor("float32", input, [count, 1, SIDE, SIDE]);
  const target = new ort.Tensor("int64", BigInt64Array.from(classes, (_, i) => BigInt(i)), [count]);
  const began = performance.now();
  const found = await session.run({ [session.inputNames[0]]: x, target });
  const took = performance.now() - began;
  show(found.logits.data.slice(0, count), found.attribution, found.completeness_error.data, took);
}

function show(logits, attribution, errors, took) {
  const [rows, columns] = attribution.dims.slice(1);
  const maps = logits.length;
  const scale = attribution.data.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  for (let c = 0; c < maps; c++) {
    const map = attribution.data.subarray(c * rows * columns, (c + 1) * rows * columns);
    const strength = (x, y) => map[Math.floor((y * rows) / SIDE) * columns + Math.floor((x * columns) / SIDE)] / scale;
    tiles[c].map.putImageData(picture(pixels, strength), 0, 0);
    tiles[c].logit.textContent = logits[c].toFixed(1);
    tiles[c].button.classList.toggle("found", logits[c] > 0);
    tiles[c].button.setAttribute("aria-pressed", String(c === chosen));
    if (c === chosen) pen.putImageData(picture(pixels, strength), 0, 0);
  }
  if (chosen === null) pen.putImageData(picture(pixels), 0, 0);
  const found = [...logits.keys()].filter((c) => logits[c] > 0).map((c) => about.classes[c]);
  byId("status").textContent = `The model sees ${found.join(" and ") || "no digit"}. ` +
    `Ten explanations in ${took.toFixed(0)} ms; completeness error at most ${Math.max(...errors).toExponential(0)}.`;
  // What the page's test reads.
  window.explained = { logits: [...logits], attribution: [...attribution.data], errors: [...errors], pixels: [...pixels] };
}

// White ink on black; under a map, faint ink on white with red and blue over it.
function picture(ink, strength = null) {
  const image = new ImageData(SIDE, SIDE);
  for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
    const i = y * SIDE + x;
    let colour = [255 * ink[i], 255 * ink[i], 255 * ink[i]];
    if (strength) {
      const paper = 255 - 110 * ink[i], s = strength(x, y), a = Math.min(1, Math.abs(s)) ** 0.7;
      const over = s > 0 ? [200, 20, 20] : [25, 70, 220];
      colour = over.map((channel) => paper * (1 - a) + channel * a);
    }
    image.data.set([...colour, 255], 4 * i);
  }
  return image;
}

start().catch((error) => { byId("status").textContent = `The explainer cannot be loaded: ${error.message}`; });
