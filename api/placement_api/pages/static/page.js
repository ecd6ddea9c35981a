// What every page has: parts that renew themselves or are swapped without a new page, copying, the shape of a cluster.
"use strict";
const fetched = async (url) => new DOMParser().parseFromString(await (await fetch(url)).text(), "text/html");

function reveal(root) {
  for (const one of root.querySelectorAll(".with-script")) one.hidden = false;
}

// The part of another page with the same id, in the place of this one.
async function swap(id, url) {
  const fresh = (await fetched(url)).getElementById(id);
  const old = document.getElementById(id);
  if (!fresh || !old) return null;
  reveal(fresh);
  old.replaceWith(document.adoptNode(fresh));
  return fresh;
}

async function swapFor(id, url, focus) {
  const fresh = await swap(id, url);
  if (!fresh) return location.assign(url);
  history.replaceState(null, "", url);
  const next = focus && document.getElementById(focus);
  (next || fresh.querySelector("h3"))?.focus();
  return undefined;
}

document.addEventListener("submit", (event) => {
  const id = event.target.dataset.swap;
  if (!id) return;
  event.preventDefault();
  const url = new URL(location.href);
  for (const [name, value] of new FormData(event.target)) url.searchParams.set(name, value);
  swapFor(id, url, id === "experts" ? "layer" : "");
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-swap]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    const url = new URL(location.href);
    url.searchParams.set("layer", new URL(link.href).searchParams.get("layer"));
    swapFor(link.dataset.swap, url, "layer");
  }
  const column = event.target.closest("[data-layers] .column");
  const layer = document.getElementById("layer");
  if (column && layer) {
    layer.value = column.dataset.value;
    layer.form.requestSubmit();
  }
  const mark = event.target.closest("[data-link]");
  if (mark) location.assign(mark.dataset.link);
  const copy = event.target.closest("[data-copy]");
  if (copy) copyText(copy);
});
document.addEventListener("change", (event) => {
  if (event.target.id === "layer") event.target.form.requestSubmit();
});

async function copyText(button) {
  const source = document.getElementById(button.dataset.copy);
  const said = button.nextElementSibling;
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    said.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(source); // no clipboard without HTTPS: the text is selected instead
    said.textContent = "Selected: press Ctrl+C or ⌘C.";
  }
}

function renew() {
  for (const one of document.querySelectorAll("[data-refresh]")) {
    const again = async () => {
      try {
        await swap(one.id, location.href);
      } catch {
        setTimeout(again, 5000); // the service is away for now
        return;
      }
      renew();
    };
    setTimeout(again, 1000 * one.dataset.refresh);
    delete one.dataset.refresh;
  }
}

const shape = document.getElementById("shape");
function tellShape() {
  const [nodes, gpus, more] = ["num_nodes", "gpus_per_node", "redundant_experts"].map((name) => Number(shape.form[name].value));
  const ranks = nodes * gpus;
  const slots = Number(shape.dataset.experts) + more;
  const fits = ranks > 0 && slots % ranks === 0 && slots / ranks <= Number(shape.dataset.experts);
  const missing = ranks - (slots % ranks);
  shape.classList.toggle("bad", !fits);
  if (!(ranks > 0)) shape.textContent = "";
  else if (fits) shape.textContent = `${ranks} GPUs, ${slots / ranks} of ${slots} slots each`;
  else shape.textContent = `${ranks} GPUs cannot share ${slots} slots evenly: ${missing} more redundant experts would`;
}
if (shape) {
  shape.form.addEventListener("input", tellShape);
  tellShape();
}
// What was left out of a trace that was just sent: upload.js keeps it for the page that follows.
const notes = document.getElementById("notes");
if (notes) {
  const kept = `notes-${notes.dataset.of}`;
  for (const text of JSON.parse(sessionStorage.getItem(kept) ?? "[]")) {
    notes.append(Object.assign(document.createElement("p"), { textContent: text }));
  }
  sessionStorage.removeItem(kept);
}
reveal(document);
renew();
