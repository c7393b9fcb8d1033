// The search field of "Is my model supported?": finds measured models by the words typed, all in the browser.

const MOST = 40; // rows shown at once

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function number(value) {
  return value === null ? "" : value === 0 ? "0" : value.toExponential(0);
}

function verdict(model) {
  if (model.passed) return ["complete", "yes"];
  return model.counted ? ["refused", "no"] : ["not counted", "none"];
}

function row(model) {
  const made = element("tr");
  const name = element("td", undefined, "name");
  name.append(element("code", model.model));
  for (const note of [model.reason, model.reduced && `measured smaller: ${model.reduced}`])
    if (note) name.append(element("small", note));
  made.append(name, element("td", ...verdict(model)), element("td", number(model.error)), element("td", number(model.plain)));
  return made;
}

function matches(models, typed) {
  const words = typed.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const found = models.filter((model) => words.every((word) => `${model.model} ${model.family}`.toLowerCase().includes(word)));
  return found.sort((a, b) => a.model.length - b.model.length || (a.model < b.model ? -1 : 1)); // the closest match is short
}

async function search(box) {
  const models = await (await fetch(box.dataset.table)).json();
  const field = element("input");
  field.type = "search";
  field.placeholder = `Search ${models.length} measured models: convnext, llama, unet ...`;
  field.setAttribute("aria-label", "Name of a model");
  const said = element("p", "", "said");
  said.setAttribute("role", "status");
  const table = element("table");
  const head = element("tr");
  for (const title of ["model", "verdict", "error", "plain"]) head.append(element("th", title));
  const body = element("tbody");
  table.append(element("thead"), body);
  table.tHead.append(head);
  const show = () => {
    const found = matches(models, field.value);
    body.replaceChildren(...(field.value.trim() ? found.slice(0, MOST).map(row) : []));
    table.hidden = !body.children.length;
    const complete = found.filter((model) => model.passed).length;
    said.textContent = !field.value.trim()
      ? `${complete} of ${found.length} converted, forward identical and complete.`
      : found.length
        ? `${found.length} found, ${complete} of them complete${found.length > MOST ? `; the first ${MOST}` : ""}.`
        : "None of that name was measured. That says nothing about it: try it, as below.";
  };
  field.value = new URLSearchParams(location.search).get("model") ?? ""; // so that an answer can be linked to
  field.addEventListener("input", show);
  box.replaceChildren(field, said, table);
  show();
}

const box = document.getElementById("model-search");
if (box) search(box);
