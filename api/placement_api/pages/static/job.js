// Shows the job's events; goes to the placement when it is done.
"use strict";
const job = document.getElementById("job");
const bar = document.getElementById("progress");
const state = document.getElementById("state");
const said = document.getElementById("said");
const stages = [...document.querySelectorAll("#stages li")];
const COMPILING = "The solver is compiled for this processor, once; later jobs do not wait for it.";
const elapsed = document.getElementById("elapsed");
let spoken = "";
let began = null;
let stageEnds = null; // in this browser's clock; null: nobody knows
let said_so_far = "";
setInterval(() => {
  if (began) elapsed.textContent = `Running for ${Math.max(0, Math.round(Date.now() / 1000 - began))} s`;
  show();
}, 1000);

// What is promised runs down between events; a stage that takes longer than its pace foretold promises nothing.
function show() {
  if (!said_so_far) return;
  const left = stageEnds === null ? 0 : Math.ceil((stageEnds - Date.now()) / 1000);
  state.textContent = said_so_far + (left > 0 ? `, about ${left} s left of this stage` : "");
}

function mark(at) {
  if (at < 0) return; // of a later version of the service
  stages[at].hidden = false;
  stages.forEach((one, place) => {
    one.classList.toggle("over", place < at);
    if (place === at) one.setAttribute("aria-current", "step");
    else one.removeAttribute("aria-current");
  });
}

function tell(now) {
  began = now.started;
  const { stage, done, total, left_s: left } = now.progress;
  if (now.state === "running" && stage) {
    const at = stages.findIndex((one) => one.dataset.stage === stage);
    mark(at);
    const last = at === stages.length - 1 && done >= total; // what is left has no stage of its own
    bar.max = total || 1;
    if (last) bar.removeAttribute("value");
    else bar.value = done;
    stageEnds = left && stage !== "compile" ? Date.now() + 1000 * left : null; // pieces of the compiler are unlike
    said_so_far = last ? "Writing the answer" : `${stages[at]?.textContent ?? stage}: ${done.toLocaleString("en")} of ${total.toLocaleString("en")} ${stages[at]?.dataset.unit ?? "rounds"}`;
    show();
  } else {
    bar.removeAttribute("value");
    said_so_far = "";
    state.textContent = now.state === "queued" ? "Waiting for its turn" : "Starting";
  }
  if (now.state === "running") {
    document.getElementById("place").textContent = stage === "compile" ? COMPILING : "";
  }
  // a screen reader hears each stage once, and every quarter of it
  const quarter = total ? Math.floor((4 * done) / total) : 0;
  if (spoken !== `${stage}${quarter}`) {
    spoken = `${stage}${quarter}`;
    said.textContent = state.textContent;
  }
}

const events = new EventSource(job.dataset.events);
events.addEventListener("job", (event) => {
  const now = JSON.parse(event.data);
  tell(now);
  if (now.state === "done") location.replace(now.kind === "solve" ? job.dataset.result : location.href);
  if (now.state === "failed" || now.state === "cancelled") location.reload();
  if (!["queued", "running"].includes(now.state)) events.close();
});
events.addEventListener("error", () => {
  const closed = events.readyState === EventSource.CLOSED;
  state.textContent = closed ? "There is no news of this job: reload the page" : "The service does not answer; trying again…";
});
