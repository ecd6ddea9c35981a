// Draws the tables of figures with Chart.js, in the place of the charts that stand there without script.
"use strict";
const SHAPES = { circle: "circle", square: "rect", triangle: "triangle", diamond: "rectRot" };
const drawn = new Map();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const figure = (cell) => (/\d/.test(cell.textContent) ? Number(cell.textContent.replace(/,/g, "")) : null);

function common(xTitle, yTitle) {
  const axis = (text) => ({
    title: { display: true, text, color: colour("ink") },
    ticks: { color: colour("soft"), maxTicksLimit: 9, maxRotation: 0 },
    grid: { color: colour("grid") },
    border: { color: colour("soft") },
  });
  return {
    animation: false,
    maintainAspectRatio: false,
    scales: { x: axis(xTitle), y: axis(yTitle) },
    plugins: {
      legend: { display: false },
      tooltip: { backgroundColor: colour("card"), titleColor: colour("ink"), bodyColor: colour("ink"), borderColor: colour("soft"), borderWidth: 1, usePointStyle: true },
    },
  };
}

function dots({ series, shape }, size) {
  return { backgroundColor: colour(series), borderColor: colour(series), pointStyle: SHAPES[shape], pointRadius: size, pointHoverRadius: size + 2 };
}

function lines(table) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const layers = rows.map((row) => row.cells[0].textContent);
  const options = common("layer", table.caption.textContent);
  options.interaction = { mode: "index", intersect: false };
  options.scales.y.suggestedMin = table.caption.textContent.startsWith("sends") ? 0 : 1;
  options.plugins.tooltip.callbacks = { title: ([item]) => `Layer ${item.label}` };
  options.onClick = (event, items) => items.length && choose(event.chart.canvas, layers[items[0].index]);
  const datasets = heads.slice(1).map((head, at) => ({
    label: head.textContent,
    data: rows.map((row) => figure(row.cells[at + 1])),
    borderWidth: 1.75,
    ...dots(head.dataset, layers.length > 40 ? 2 : 3.5),
  }));
  return { type: "line", data: { labels: layers, datasets }, options };
}

function choose(canvas, layer) {
  const form = canvas.closest("[data-layers]") && document.getElementById("layer")?.form;
  if (!form) return;
  form.layer.value = layer;
  form.requestSubmit();
}

function points(table) {
  const rows = [...table.tBodies[0].rows].filter((row) => figure(row.cells[1]) !== null);
  const at = (row) => ({ x: figure(row.cells[1]), y: figure(row.cells[2]) });
  const options = common("sends per token to other nodes", "rank imbalance (max / mean)");
  const label = ({ dataset, parsed }) => `${dataset.label}: ${parsed.x} sends, imbalance ${parsed.y}`;
  options.plugins.tooltip.callbacks = { label };
  for (const axis of Object.values(options.scales)) axis.grace = "6%";
  options.plugins.tooltip.filter = ({ dataset }) => dataset.label !== "best";
  options.onClick = (event, items) => {
    const link = items.length && rows[items[0].datasetIndex]?.querySelector("a");
    if (link) location.assign(link.href);
  };
  const datasets = rows.map((row) => ({
    label: row.cells[0].textContent.trim(),
    data: [at(row)],
    ...dots(row.dataset, row.classList.contains("result") ? 9 : 6),
  }));
  const best = rows.filter((row) => row.cells[4].textContent === "best").map(at);
  datasets.push({ label: "best", data: best, showLine: true, pointRadius: 0, pointHoverRadius: 0, borderColor: colour("s3"), borderWidth: 1.5 });
  return { type: "scatter", data: { datasets }, options };
}

function draw() {
  for (const [holder, chart] of drawn) {
    chart.destroy();
    if (!holder.isConnected) drawn.delete(holder);
  }
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  for (const one of document.querySelectorAll("figure[data-chart]")) {
    let holder = one.querySelector(".drawn");
    if (!holder) {
      const svg = one.querySelector(":scope > svg");
      holder = Object.assign(document.createElement("div"), { className: "drawn" });
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", svg.getAttribute("aria-label"));
      holder.append(canvas);
      svg.replaceWith(holder);
    }
    const table = one.querySelector("table");
    drawn.set(holder, new Chart(holder.firstChild, (one.dataset.chart === "lines" ? lines : points)(table)));
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.addEventListener("swapped", (event) => document.getElementById(event.detail).querySelector("figure[data-chart]") && draw());
