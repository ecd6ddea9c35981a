// A trace is sent with progress; files and whole folders may be dropped. A folder goes as a tar that is made here.
"use strict";
const form = document.getElementById("upload");
const input = document.getElementById("file");
const sending = document.getElementById("sending");
const problem = document.getElementById("upload-problem");
const ENDINGS = form.dataset.endings.split(" ");
const about = [...form.querySelectorAll("details input, details select")]; // what the file does not say

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (input.files[0]) send(input.files[0], input.files[0].name);
});
input.addEventListener("change", () => input.files[0] && !form.querySelector("details").open && send(input.files[0], input.files[0].name));
for (const name of ["dragenter", "dragover"]) {
  form.addEventListener(name, (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
}
form.addEventListener("dragleave", (event) => form.contains(event.relatedTarget) || form.classList.remove("over"));
form.addEventListener("drop", async (event) => {
  event.preventDefault();
  form.classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
  const plain = [...event.dataTransfer.files];
  if (plain.length === 1 && !entries[0]?.isDirectory) return send(plain[0], plain[0].name);
  const files = (await Promise.all(entries.map((entry) => filesOf(entry, true)))).flat();
  return files.length ? send(tarOf(files), "trace.tar") : undefined;
});

// [path, File] of all files below; the folder that was dropped has no name of its own in the archive
async function filesOf(entry, top = false, path = "") {
  if (!entry) return [];
  if (entry.isFile) return [[path + entry.name, await new Promise((good, bad) => entry.file(good, bad))]];
  const reader = entry.createReader();
  const below = [];
  for (;;) {
    const some = await new Promise((good, bad) => reader.readEntries(good, bad));
    if (!some.length) break;
    below.push(...some);
  }
  return (await Promise.all(below.map((one) => filesOf(one, false, top ? "" : `${path}${entry.name}/`)))).flat();
}

function tarOf(files) {
  const parts = [];
  for (const [name, file] of files) {
    const head = new Uint8Array(512);
    const write = (text, at) => head.set(new TextEncoder().encode(text).subarray(0, 512 - at), at);
    write(name.slice(0, 100), 0);
    write("0000644\0" + "0000000\0".repeat(2), 100);
    write(`${file.size.toString(8).padStart(11, "0")}\0${"0".repeat(11)}\0        0`, 124);
    write("ustar\u000000", 257);
    write(`${head.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, "0")}\0 `, 148);
    parts.push(head, file, new Uint8Array((512 - (file.size % 512)) % 512));
  }
  return new Blob([...parts, new Uint8Array(1024)]);
}

function send(content, name) {
  const body = new FormData();
  body.append("file", content, name);
  for (const field of about) if (field.value) body.append(field.name, field.value);
  problem.replaceChildren();
  if (!ENDINGS.some((ending) => name.toLowerCase().endsWith(ending))) {
    return fail({ detail: `${name} is no archive, no file of counts and no recording`, mend: `give one that ends in ${ENDINGS.join(", ")}` });
  }
  const request = new XMLHttpRequest();
  const bar = document.getElementById("sent");
  const words = document.getElementById("sent-words");
  sending.hidden = false;
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    bar.max = total;
    bar.value = loaded;
    const whole = loaded === total;
    if (whole) bar.removeAttribute("value");
    words.textContent = whole ? "Unpacking and checking…" : `${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
    document.getElementById("upload-said").textContent = whole ? "Sent; checking" : "Sending";
  });
  request.addEventListener("load", () => {
    let answer;
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      answer = { detail: `the answer was ${request.status}`, mend: "try again later" };
    }
    if (request.status !== 201) return fail(answer);
    const notes = [...answer.notes, ...(answer.converted?.notes ?? [])];
    if (notes.length) sessionStorage.setItem(`notes-${answer.id}`, JSON.stringify(notes));
    return location.assign(`/traces/${answer.id}`);
  });
  request.addEventListener("error", () => fail({ detail: "the service does not answer", mend: "try again later" }));
  request.open("POST", form.dataset.to);
  request.send(body);
  return undefined;
}

function fail({ detail, mend }) {
  sending.hidden = true;
  const box = Object.assign(document.createElement("div"), { className: "problem" });
  box.setAttribute("role", "alert");
  const lines = [detail, mend].map((text) => Object.assign(document.createElement("p"), { textContent: text ?? "" }));
  box.append(...lines);
  problem.replaceChildren(box);
}
