// Pictures that move: a grid, a network or an episode, one run of a method frame by frame.
const unpacked = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

class Movie {
  constructor(node, scenes) {
    this.scenes = scenes;
    for (const v of Object.values(scenes)) for (const key of ["policy", "visitation", "flow"]) if (v[key]) v[key] = unpacked(v[key]);
    this.name = node.dataset.section;
    this.canvas = node.querySelector("canvas");
    this.select = node.querySelector("select");
    this.slider = node.querySelector("input");
    this.readout = node.querySelector(".readout");
    this.button = node.querySelector(".play");
    this.markerKey = node.querySelector(".marker-key");
    this.timer = null;
    this.select.addEventListener("change", () => this.choose());
    this.slider.addEventListener("input", () => { this.stop(); this.draw(); });
    this.button.addEventListener("click", () => this.timer ? this.stop() : this.play());
    node.querySelector(".csv").addEventListener("click", () => save([rows(this.table())], "text/csv", this.name + "-frames.csv"));
    node.querySelector(".gif").addEventListener("click", (event) => this.film(event.target));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.choose();
  }
  get scene() { return this.scenes[this.select.value]; }
  choose() {
    const v = this.scene, last = v.frames - 1;
    this.slider.max = last;
    this.slider.value = last;
    if (this.markerKey) this.markerKey.hidden = !v.marker;
    this.canvas.style.aspectRatio = String(this.ratio());
    this.draw();
  }
  ratio() { // of width to height
    const v = this.scene;
    if (v.kind === "grid") return v.columns / v.rows;
    if (v.kind === "network") return 1.75;
    const [w, h] = [v.high[0] - v.low[0], v.high[1] - v.low[1]];
    return v.paths.bars ? 1.5 : Math.min(2.4, Math.max(0.8, (w || 1) / (h || 1)));
  }
  stop() { clearInterval(this.timer); this.timer = null; this.button.textContent = "Play"; }
  play() {
    const last = Number(this.slider.max);
    if (Number(this.slider.value) >= last) this.slider.value = 0;
    this.button.textContent = "Pause";
    this.timer = setInterval(() => {
      if (Number(this.slider.value) >= last) return this.stop();
      this.slider.value = Number(this.slider.value) + 1;
      this.draw();
    }, 70);
  }
  draw() {
    const ratio = window.devicePixelRatio || 1, width = this.canvas.clientWidth, k = Number(this.slider.value);
    if (!width) return;
    this.paint(this.canvas, width, ratio, k);
    const words = this.reading(k);
    this.readout.innerHTML = words;
    const plain = this.readout.textContent;
    this.slider.setAttribute("aria-valuetext", plain);
    this.canvas.setAttribute("aria-label", `${this.canvas.dataset.what} ${this.select.value}: ${plain}`);
  }
  reading(k) {
    const v = this.scene;
    if (v.kind === "episode") return `<b>step ${k + 1}</b> of ${v.frames}`;
    const objective = v.objective ? ` · objective <b>${v.objective[k].toPrecision(4)}</b>` : "";
    const spent = v.samples[k] ? `${Math.round(v.samples[k]).toLocaleString("en")} samples` : `iteration ${Math.round(v.iteration[k]).toLocaleString("en")}`;
    const x = v.x_names.map((name, i) => ` · ${escaped(name)} <b>${v.x[k][i].toPrecision(3)}</b>`).join("");
    return `<b>${spent}</b>${objective}${x}`;
  }
  paint(canvas, width, ratio, k) {
    const height = width / this.ratio();
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const c = canvas.getContext("2d", { willReadFrequently: true });
    c.scale(ratio, ratio);
    ({ grid: paintGrid, network: paintNetwork, episode: paintEpisode })[this.scene.kind](c, this.scene, k, width, height);
  }
  table() {
    const v = this.scene;
    if (v.kind === "episode") {
      const table = [["step", "what", "number", "across", "up"]];
      for (const [what, frames] of Object.entries(v.paths)) frames.forEach((points, k) => points.forEach(([x, y], i) => table.push([k, what, i, x, y])));
      return table;
    }
    const S = v.names.length, E = (v.edges || []).length;
    const heads = ["iteration", "samples", "objective", ...v.x_names, ...(v.marker ? ["goal row", "goal column"] : []),
      ...v.names.map((name) => `visitation ${name}`), ...(v.edges || []).map(([i, j]) => `flow ${v.names[i]} > ${v.names[j]}`)];
    const share = (bytes, k, n) => Array.from(bytes.subarray(k * n, (k + 1) * n), (b) => (b / 255).toFixed(3));
    return [heads, ...v.samples.map((samples, k) => [v.iteration[k], samples, v.objective ? v.objective[k] : "",
      ...(v.x_names.length ? v.x[k] : []), ...(v.marker ? v.marker[k] : []), ...share(v.visitation, k, S), ...(E ? share(v.flow, k, E) : [])])];
  }
  film(button) {
    const canvas = document.createElement("canvas"), count = Math.min(this.scene.frames, 60), frames = [];
    button.disabled = true;
    for (let i = 0; i < count; i++) {
      this.paint(canvas, 420, 1, Math.round(i * (this.scene.frames - 1) / Math.max(1, count - 1)));
      frames.push(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
    }
    save([gif(frames, canvas.width, canvas.height, 8)], "image/gif", this.name + ".gif");
    button.disabled = false;
  }
}
const escaped = (word) => word.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

function arrow(c, x0, y0, x1, y1, tip) {
  const length = Math.hypot(x1 - x0, y1 - y0) || 1, ux = (x1 - x0) / length, uy = (y1 - y0) / length;
  c.beginPath(); c.moveTo(x0, y0); c.lineTo(x1, y1); c.stroke();
  c.beginPath(); c.moveTo(x1 + ux * tip, y1 + uy * tip);
  c.lineTo(x1 - uy * tip * 0.7, y1 + ux * tip * 0.7); c.lineTo(x1 + uy * tip * 0.7, y1 - ux * tip * 0.7); c.fill();
}

const MAP = { H: "hole", C: "cliff" }; // what is no place to stand
function paintGrid(c, v, k, width, height) {
  const cell = width / v.columns, S = v.cells.length, A = v.arrows.length;
  c.fillStyle = css("--wall");
  c.fillRect(0, 0, width, height);
  const gap = Math.max(0.5, cell * 0.02), heat = css("--heat"), card = css("--card"), ink = css("--arrow");
  v.cells.forEach(([row, column], s) => {
    const x = column * cell + gap, y = row * cell + gap, side = cell - 2 * gap;
    const letter = (v.letters[row] || "")[column] || "";
    c.fillStyle = card; c.fillRect(x, y, side, side);
    if (MAP[letter]) { c.fillStyle = css("--hole"); c.fillRect(x, y, side, side); }
    c.fillStyle = `rgba(${heat},${0.03 + 0.9 * v.visitation[k * S + s] / 255})`; c.fillRect(x, y, side, side);
    if (letter.trim() && letter !== "F" && cell >= 14) {
      c.fillStyle = ink; c.font = `600 ${Math.max(9, Math.min(15, 0.24 * cell))}px system-ui, sans-serif`;
      c.textAlign = "left"; c.textBaseline = "top"; c.fillText(letter, x + 0.07 * cell, y + 0.06 * cell);
    }
    if (cell < 9 || MAP[letter]) return;
    const cx = (column + 0.5) * cell, cy = (row + 0.5) * cell;
    v.arrows.forEach(([dr, dc], a) => {
      const p = v.policy[(k * S + s) * A + a] / 255, length = Math.hypot(dr, dc);
      if (!length || p < 0.04) return;
      const reach = 0.42 * cell * p, ux = dc / length, uy = dr / length, tip = Math.min(5.5, 0.1 * cell + reach * 0.12);
      c.globalAlpha = 0.25 + 0.65 * p; c.strokeStyle = c.fillStyle = ink; c.lineWidth = Math.max(0.8, 0.022 * cell);
      arrow(c, cx, cy, cx + ux * reach, cy + uy * reach, tip);
      c.globalAlpha = 1;
    });
  });
  c.strokeStyle = ink; c.lineWidth = Math.max(2, 0.06 * cell);
  for (const [r0, c0, r1, c1] of v.walls) {
    const x = cell * Math.max(c0, c1), y = cell * Math.max(r0, r1);
    c.beginPath();
    if (r0 === r1) { c.moveTo(x, cell * r0); c.lineTo(x, cell * (r0 + 1)); } else { c.moveTo(cell * c0, y); c.lineTo(cell * (c0 + 1), y); }
    c.stroke();
  }
  if (v.marker) star(c, v, k, cell);
}
function star(c, v, k, cell) {
  const at = ([row, column]) => [(column + 0.5) * cell, (row + 0.5) * cell];
  c.strokeStyle = "#e08a00"; c.lineWidth = 2; c.globalAlpha = 0.75; c.beginPath();
  for (let i = 0; i <= k; i++) { const [x, y] = at(v.marker[i]); if (i) c.lineTo(x, y); else c.moveTo(x, y); }
  c.stroke(); c.globalAlpha = 1;
  const [x, y] = at(v.marker[k]), r = Math.max(8, 0.19 * cell);
  c.beginPath();
  for (let i = 0; i < 10; i++) {
    const angle = -Math.PI / 2 + i * Math.PI / 5, d = i % 2 ? 0.45 * r : r;
    c.lineTo(x + d * Math.cos(angle), y + d * Math.sin(angle));
  }
  c.closePath(); c.fillStyle = "#ffc02e"; c.fill(); c.strokeStyle = "#7a4b00"; c.lineWidth = 1.5; c.stroke();
}

function paintNetwork(c, v, k, width, height) {
  const heat = css("--heat"), ink = css("--arrow"), card = css("--card"), E = v.edges.length, S = v.names.length;
  c.fillStyle = card; c.fillRect(0, 0, width, height);
  const radius = Math.max(5, Math.min(11, 42 / Math.sqrt(S))), size = S > 20 ? 10 : 12.5;
  const pad = [46, 44], at = v.places.map(([x, y]) => [pad[0] + x * (width - 2 * pad[0]), height - pad[1] - y * (height - 2 * pad[1])]);
  const back = new Set(v.edges.map(([i, j]) => `${i},${j}`));
  v.edges.forEach(([i, j], e) => {
    const f = v.flow[k * E + e] / 255, [x0, y0] = at[i], [x1, y1] = at[j];
    const length = Math.hypot(x1 - x0, y1 - y0) || 1, ux = (x1 - x0) / length, uy = (y1 - y0) / length;
    // a bend where the way back is a road too, or where another place lies in between
    const through = at.some(([x, y], s) => s !== i && s !== j && passes(x0, y0, x1, y1, x, y, radius + 4));
    const bend = through ? Math.min(70, 0.28 * length) : back.has(`${j},${i}`) ? Math.min(26, 0.18 * length) : 0;
    const cx = (x0 + x1) / 2 - uy * bend, cy = (y0 + y1) / 2 + ux * bend;
    const w = 1.2 + 11 * f, tip = Math.max(5, 0.9 * w + 2), away = Math.hypot(x1 - cx, y1 - cy) || 1;
    const vx = (x1 - cx) / away, vy = (y1 - cy) / away, end = radius + tip + 1;
    const ex = x1 - vx * end, ey = y1 - vy * end;
    c.strokeStyle = c.fillStyle = `rgba(${heat},${0.25 + 0.7 * f})`; c.lineWidth = w; c.lineCap = "butt";
    c.beginPath(); c.moveTo(x0, y0); c.quadraticCurveTo(cx, cy, ex, ey); c.stroke();
    c.beginPath(); c.moveTo(ex + vx * tip, ey + vy * tip);
    c.lineTo(ex - vy * tip * 0.75, ey + vx * tip * 0.75); c.lineTo(ex + vy * tip * 0.75, ey - vx * tip * 0.75); c.fill();
  });
  c.font = `${size}px system-ui, sans-serif`; c.textAlign = "center"; c.textBaseline = "alphabetic"; c.lineJoin = "round";
  const taken = at.map(([x, y]) => [x - radius, y - radius, x + radius, y + radius]);
  at.forEach(([x, y], s) => {
    c.beginPath(); c.arc(x, y, radius, 0, 2 * Math.PI);
    c.fillStyle = card; c.fill();
    c.fillStyle = `rgba(${heat},${0.05 + 0.85 * v.visitation[k * S + s] / 255})`; c.fill();
    c.strokeStyle = ink; c.lineWidth = 1.2; c.stroke();
  });
  at.forEach(([x, y], s) => {
    const word = v.names[s].length > 22 ? v.names[s].slice(0, 21) + "…" : v.names[s], w = c.measureText(word).width;
    const left = Math.min(Math.max(x, w / 2 + 3), width - w / 2 - 3);
    const spots = [[left, y - radius - 6], [left, y + radius + size + 3], [left, y - radius - 8 - size], [left, y + radius + 2 * size + 5]];
    const box = ([bx, by]) => [bx - w / 2 - 2, by - size, bx + w / 2 + 2, by + 3];
    const free = spots.find((spot) => { const b = box(spot); return b[1] > 0 && b[3] < height && !taken.some((t) => b[0] < t[2] && t[0] < b[2] && b[1] < t[3] && t[1] < b[3]); }) || spots[0];
    taken.push(box(free));
    c.strokeStyle = card; c.lineWidth = 4; c.strokeText(word, ...free);
    c.fillStyle = ink; c.fillText(word, ...free);
  });
}
function passes(x0, y0, x1, y1, x, y, near) {
  const dx = x1 - x0, dy = y1 - y0, t = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1);
  return t > 0.05 && t < 0.95 && Math.hypot(x0 + t * dx - x, y0 + t * dy - y) < near;
}

function paintEpisode(c, v, k, width, height) {
  const heat = css("--heat"), ink = css("--arrow"), card = css("--card"), pad = 26;
  c.fillStyle = card; c.fillRect(0, 0, width, height);
  if (v.paths.bars) return paintBars(c, v, k, width, height);
  const span = [0, 1].map((i) => v.high[i] - v.low[i] || 1);
  const unit = Math.min((width - 2 * pad) / span[0], (height - 2 * pad) / span[1]);
  const off = [(width - unit * span[0]) / 2, (height - unit * span[1]) / 2];
  const at = ([x, y]) => [off[0] + (x - v.low[0]) * unit, v.flip ? height - off[1] - (y - v.low[1]) * unit : off[1] + (y - v.low[1]) * unit];
  if (v.walls) {
    c.fillStyle = css("--wall");
    v.walls.forEach((row, r) => row.forEach((wall, col) => { if (wall) { const [x, y] = at([col - 0.5, r - 0.5]); c.fillRect(x, y, unit + 0.5, unit + 0.5); } }));
  }
  c.lineCap = "round"; c.lineJoin = "round";
  if (v.paths.segments) for (let t = Math.max(0, k - 8); t <= k; t++) {
    c.strokeStyle = `rgba(${heat},${t === k ? 1 : 0.08 + 0.05 * (t - k + 8)})`; c.lineWidth = t === k ? 4 : 2;
    c.beginPath(); v.paths.segments[t].forEach((p, i) => i ? c.lineTo(...at(p)) : c.moveTo(...at(p))); c.stroke();
    if (t === k) for (const p of v.paths.segments[t]) { c.fillStyle = ink; c.beginPath(); c.arc(...at(p), 4, 0, 7); c.fill(); }
  }
  if (v.paths.goals) for (const p of v.paths.goals[k]) {
    const [x, y] = at(p); c.strokeStyle = "#d4582a"; c.lineWidth = 2.5;
    c.beginPath(); c.moveTo(x - 6, y - 6); c.lineTo(x + 6, y + 6); c.moveTo(x - 6, y + 6); c.lineTo(x + 6, y - 6); c.stroke();
  }
  if (v.paths.points) v.paths.points[k].forEach((_, i) => {
    c.strokeStyle = `rgba(${heat},.5)`; c.lineWidth = 2; c.beginPath();
    for (let t = 0; t <= k; t++) { const p = at(v.paths.points[t][i]); if (t) c.lineTo(...p); else c.moveTo(...p); }
    c.stroke();
    c.fillStyle = `rgb(${heat})`; c.beginPath(); c.arc(...at(v.paths.points[k][i]), 7, 0, 7); c.fill();
    c.strokeStyle = ink; c.lineWidth = 1; c.stroke();
  });
}
function paintBars(c, v, k, width, height) {
  const bars = v.paths.bars[k], all = v.paths.bars.flat().map((p) => p[1]), low = Math.min(0, ...all), high = Math.max(0, ...all);
  const y = (value) => height - 24 - (value - low) / (high - low || 1) * (height - 48), w = (width - 40) / bars.length;
  bars.forEach(([, value], i) => {
    c.fillStyle = `rgba(${css("--heat")},.85)`;
    c.fillRect(20 + i * w + 0.14 * w, Math.min(y(0), y(value)), 0.72 * w, Math.max(1, Math.abs(y(value) - y(0))));
  });
  c.strokeStyle = css("--arrow"); c.lineWidth = 1; c.beginPath(); c.moveTo(20, y(0)); c.lineTo(width - 20, y(0)); c.stroke();
}
