"use strict";
// The page at work: figures, theme, methods shown and hidden, files to take away. Pictures that move: pictures.js.
const root = document.documentElement;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const plots = [];

// Plotly stands in the page compressed; browsers of before 2023 cannot unpack it, and say so where the figures would be
async function plotly() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
}

function drawFigure(f) {
  const node = document.getElementById(f.id);
  const layout = { ...f.plot.layout, font: { ...f.plot.layout.font, color: css("--soft") } };
  if (f.log_x) layout.xaxis.type = "log";
  Plotly.newPlot(node, f.plot.data, layout, { displayModeBar: false, responsive: true });
  for (const drawn of node.querySelectorAll("svg")) drawn.setAttribute("aria-hidden", "true"); // the node's label says it
  plots.push(node);
}

const movies = [...document.querySelectorAll(".movie")].map(
  (node) => new Movie(node, SECTIONS.find((s) => s.id === node.dataset.section).scenes));

function setTheme(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = dark ? "Light" : "Dark";
  const tip = { "hoverlabel.bgcolor": css("--card"), "hoverlabel.font.color": css("--ink"), "hoverlabel.bordercolor": css("--line") };
  for (const node of plots) {
    const words = {};
    (node.layout.annotations || []).forEach((_, i) => { words[`annotations[${i}].font.color`] = css("--soft"); });
    Plotly.relayout(node, { "font.color": css("--soft"), ...tip, ...words });
  }
  for (const movie of movies) movie.draw();
}
for (const button of document.querySelectorAll("[data-plot]")) button.addEventListener("click", () => {
  const node = document.getElementById(button.dataset.plot), axis = button.dataset.axis;
  if (!plots.includes(node)) return; // not drawn
  const log = node.layout[axis].type !== "log";
  Plotly.relayout(node, { [axis + ".type"]: log ? "log" : "linear", [axis + ".autorange"]: true, [axis + ".dtick"]: null });
  const [low, high] = node._fullLayout[axis].range; // of logarithms: over few decades the ticks are 1, 2 and 5
  if (log && high - low < 2) Plotly.relayout(node, { [axis + ".dtick"]: "D2" });
  button.textContent = (log ? "linear " : "log ") + axis[0];
});
for (const chip of document.querySelectorAll(".chip")) chip.addEventListener("click", () => {
  const show = chip.getAttribute("aria-pressed") !== "true";
  chip.setAttribute("aria-pressed", String(show));
  for (const node of plots) if (node.id.startsWith(chip.dataset.section + "-")) {
    const hit = node.data.map((t, i) => t.legendgroup === chip.dataset.label ? i : -1).filter((i) => i >= 0);
    if (hit.length) Plotly.restyle(node, { visible: show }, hit);
  }
});

// files: a figure's numbers, a picture's frames
function save(parts, kind, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const quoted = (word) => /[",\n]/.test(String(word)) ? `"${String(word).replaceAll('"', '""')}"` : String(word);
const rows = (table) => table.map((row) => row.map((v) => v === null || v === undefined ? "" : quoted(v)).join(",")).join("\n") + "\n";
for (const button of document.querySelectorAll("[data-csv]")) button.addEventListener("click", () => {
  const node = document.getElementById(button.dataset.csv);
  if (!plots.includes(node)) return;
  const table = [["line", "x", "y"]];
  for (const t of node.data) if (t.fill !== "toself") (t.y || []).forEach((y, i) => table.push([t.name, t.x ? t.x[i] : i, y]));
  save([rows(table)], "text/csv", button.dataset.csv + ".csv");
});

const stored = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
const wanted = new URLSearchParams(location.search).get("theme") || stored;
setTheme(wanted ? wanted === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme !== "dark";
  try { localStorage.setItem("theme", dark ? "dark" : "light"); } catch { /* private mode */ }
  setTheme(dark);
});
let before = null; // paper is white, whatever the screen was
addEventListener("beforeprint", () => { before = root.dataset.theme; setTheme(false); });
addEventListener("afterprint", () => { if (before === "dark") setTheme(true); before = null; });
(async () => {
  try {
    await plotly();
    for (const s of SECTIONS) for (const f of s.figures) drawFigure(f);
    setTheme(root.dataset.theme === "dark");
  } catch (error) {
    const words = typeof DecompressionStream === "undefined" ? "This browser can't unpack the figures; those made since 2023 can." : String(error);
    for (const node of document.querySelectorAll(".plot")) if (!plots.includes(node)) node.textContent = words;
  }
  root.dataset.ready = "yes";
})();
