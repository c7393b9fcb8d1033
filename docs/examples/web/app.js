// The page: files in, a map over the photo out. One run at a time; what is asked for meanwhile is run afterwards.

import { load, oneAtATime } from "./explainer.js";
import { decoded, prepared } from "./pictures.js";

const byId = (id) => document.getElementById(id);
const FOR = [178, 24, 43], AGAINST = [33, 102, 172]; // told apart by the colour-blind, too
const MOST = 60; // classes in the list at once
const SIDE = 512; // pixels of the view at least

let explainer = null, photos = [], chosen = null; // chosen: index of the photo
let target = null, found = null, seen = null;
const explain = oneAtATime(() => run().catch((error) => say(`The explainer cannot run: ${error.message}`, true)));

function say(text, wrong = false) {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
  status.setAttribute("role", wrong ? "alert" : "status");
  window.said = text; // what the page's test reads
}

async function take(files) {
  const wrong = [];
  for (const file of files) {
    try {
      if (file.type.startsWith("image/")) await addPhoto(file);
      else await setExplainer(new Uint8Array(await file.arrayBuffer()), file.name);
    } catch (error) {
      wrong.push(error.message);
    }
  }
  await explain();
  if (wrong.length) say(wrong.join(" "), true);
}

async function addPhoto(file) {
  let picture;
  try { picture = await decoded(file); } catch {
    throw new Error(`${file.name} is no picture that this browser can read. Save it as JPEG or PNG.`);
  }
  const button = document.createElement("button"), small = document.createElement("img");
  small.src = URL.createObjectURL(file);
  small.alt = button.title = file.name;
  button.append(small);
  const index = photos.push({ picture, button }) - 1;
  button.onclick = () => { chosen = index; target = null; explain(); };
  byId("photos").append(button);
  chosen = index;
  target = null;
}

async function setExplainer(bytes, name) {
  say(`Loading ${name} ...`);
  await painted();
  explainer = await load(bytes, name);
  const { about, policies } = explainer;
  target = found = null;
  byId("model").textContent = `${about.model ?? name}: ${about.method}, ${(bytes.length / 1e6).toFixed(1)} MB` +
    (about.weights === "random" ? ", random weights" : "");
  byId("policies").hidden = policies.length < 2;
  byId("policy").replaceChildren(...policies.map((policy) => new Option(policy, policy)));
  byId("search").disabled = false;
  byId("search").value = "";
  byId("list").replaceChildren();
}

async function run() {
  photos.forEach(({ button }, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  if (!explainer || chosen === null) {
    say(explainer ? "Now a photo: choose one or drop it." : photos.length ? "Now an explainer: choose the .onnx file or drop it."
      : "No explainer yet.");
    return;
  }
  say("Computing ...");
  await painted();
  const { x, view } = prepared(photos[chosen].picture, explainer.about.preprocessing);
  const policy = byId("policy").value || undefined;
  found = { ...(await explainer.run(x, target, policy)), input: x };
  seen = view;
  byId("value").textContent = "";
  draw();
  list();
  const { error, took, logits } = found, complete = error === null ? "" : `, completeness error ${error.toExponential(0)}`;
  say(`${nameOf(found.target)}: logit ${logits[found.target].toFixed(2)}${complete}; ${Math.round(took)} ms.`);
  window.explained = { ...found, input: [...x], map: [...found.map] }; // what the page's test reads
}

function nameOf(index) { return explainer.classes?.[index] ?? `class ${index}`; }

// Let the browser show what was said, before it is busy.
function painted() { return new Promise((done) => { requestAnimationFrame(() => setTimeout(done)); }); }

function draw() {
  if (!found) return;
  const times = Math.max(1, Math.ceil(SIDE / seen.width)), canvas = byId("view"), pen = canvas.getContext("2d");
  canvas.width = seen.width * times;
  canvas.height = seen.height * times;
  pen.imageSmoothingEnabled = false;
  const share = byId("overlay").value / 100;
  pen.drawImage(painting(greyed(seen, share)), 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = share;
  pen.drawImage(painting(coloured(found)), 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 1;
}

// The photo, the more of its colours gone the more of the map's are over it.
function greyed(image, share) {
  const found = new ImageData(image.width, image.height);
  for (let i = 0; i < image.data.length; i += 4) {
    const [r, g, b] = image.data.subarray(i, i + 3), grey = 0.299 * r + 0.587 * g + 0.114 * b;
    found.data.set([...[r, g, b].map((channel) => channel + share * (grey - channel)), 255], i);
  }
  return found;
}

function painting(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// From blue over white to red; full colour from the 99th percentile of the sizes on.
function coloured({ map, rows, columns }) {
  const sizes = Float32Array.from(map, Math.abs).sort(), limit = sizes[Math.floor(0.99 * (sizes.length - 1))] || 1;
  const image = new ImageData(columns, rows);
  map.forEach((value, i) => {
    const strength = Math.min(1, Math.abs(value) / limit), colour = value > 0 ? FOR : AGAINST;
    image.data.set([...colour.map((channel) => 255 + (channel - 255) * strength), 255], 4 * i);
  });
  return image;
}

// The classes that have all words of the search in their names, likeliest first.
function list() {
  if (!found) return;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = [...found.logits.keys()].filter((i) => {
    const name = nameOf(i).toLowerCase();
    return words.every((word) => name.includes(word) || String(i) === word);
  }).sort((a, b) => found.logits[b] - found.logits[a]);
  byId("list").replaceChildren(...fitting.slice(0, MOST).map(item));
  if (!fitting.length) byId("list").append("No class has these words in its name.");
}

function item(index) {
  const line = document.createElement("li"), button = document.createElement("button");
  const name = document.createElement("span"), logit = document.createElement("output");
  name.textContent = nameOf(index);
  logit.textContent = found.logits[index].toFixed(2);
  button.append(name, logit);
  button.setAttribute("aria-current", String(index === found.target));
  button.onclick = () => { target = index; explain(); };
  line.append(button);
  return line;
}

// The map's value under the pointer.
function read(event) {
  if (!found) return;
  const { left, top, width, height } = byId("view").getBoundingClientRect();
  const column = Math.floor(((event.clientX - left) / width) * found.columns);
  const row = Math.floor(((event.clientY - top) / height) * found.rows);
  const inside = row >= 0 && column >= 0 && row < found.rows && column < found.columns;
  byId("value").textContent = inside ? `row ${row}, column ${column}: ${found.map[row * found.columns + column].toPrecision(3)}` : "";
}

async function demo() {
  const [samples, bytes] = await Promise.all([
    fetch("samples.json").then((answer) => answer.json()),
    fetch("digits.onnx").then((answer) => answer.arrayBuffer()),
  ]);
  const files = await Promise.all(samples.canvases.slice(0, 6).map(async ({ labels, pixels }) => {
    const side = Math.sqrt(pixels.length), image = new ImageData(side, side);
    pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
    const blob = await new Promise((done) => { painting(image).toBlob(done); });
    return new File([blob], `${labels.map((i) => samples.classes[i]).join(" and ")}.png`, { type: "image/png" });
  }));
  await take([...files, new File([bytes], "digits.onnx")]);
}

byId("files").onchange = ({ target: input }) => { take([...input.files]).then(() => { input.value = ""; }); };
byId("demo").onclick = () => demo().catch((error) => say(`The demo cannot be loaded: ${error.message}`, true));
byId("overlay").oninput = ({ target: slider }) => { byId("strength").textContent = `${slider.value} %`; draw(); };
byId("search").oninput = list;
byId("policy").onchange = explain;
byId("view").onpointermove = byId("view").onpointerdown = read;
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("over"); };
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take([...event.dataTransfer.files]);
};
window.ready = true; // what the page's test waits for
