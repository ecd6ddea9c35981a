// Shows the job's events; goes to the placement when it is done.
const job = document.getElementById("job");
const bar = document.getElementById("progress");
const state = document.getElementById("state");
const words = { count: "Counting tokens", solve: "Solving layers", robust: "Worst part", group: "Grouping requests", evaluate: "Measuring maps" };
const events = new EventSource(job.dataset.events);
events.addEventListener("job", (event) => {
  const now = JSON.parse(event.data);
  const { stage, done, total, left_s } = now.progress;
  bar.max = total || 1;
  bar.value = done;
  state.textContent = now.state === "running" && stage
    ? `${words[stage] ?? stage}: ${done.toLocaleString()} of ${total.toLocaleString()}${left_s ? `, about ${Math.ceil(left_s)} s left` : ""}`
    : now.state;
  if (now.state === "done") location.replace(job.dataset.result);
  if (now.state === "failed" || now.state === "cancelled") location.reload();
});
