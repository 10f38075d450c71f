// This file is all that is seen and touched: the map, its backgrounds, the interpolation, the drawing pad, hands and keys.
// It needs no import: main.py puts it behind payload.js, which it uses, into one module of page.html.

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const subscript = (d) => "z" + String(d + 1).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const [P, Q] = content.plane; // the map shows dimension P to the right and Q upwards

// ------------------------------------------------------------------------------------------------ the state

const state = {
  z: new Float32Array(L), // the large digit is decoded from it
  index: -1, // which test image is on the card; N means the drawing
  subject: null, // what `subject` returned for it
  drawing: null, // what `subject` returned for the drawing
  shown: Array(10).fill(true), // which digits the legend has switched on
  background: "none",
  posterior: null, // the worker's latest answer
  ends: [], // {z, name} of A and of B
  t: 0, // how far from A to B
  playing: false,
  milliseconds: 0, // how long decoding and painting the digit took at the last move
};
const wholeMap = { x: content.centre[P], y: content.centre[Q], zoom: 1 };
const view = { ...wholeMap }; // x, y is the map's centre; at zoom 1 its shorter side spans +-reach
const sliders = []; // {d, input, output} of each

// Paints pixels in [0, 1] onto a canvas 28 pixels high: white on black, as in all figures of this repository.
function paint(canvas, pixels, left = 0) {
  const image = new ImageData(28, 28), { data } = image;
  for (let i = 0; i < N_PIXELS; i++) {
    data[4 * i] = data[4 * i + 1] = data[4 * i + 2] = Math.round(255 * pixels[i]);
    data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, left, 0);
}

function setZ(z) {
  const start = performance.now();
  const slice = z.findIndex((value, d) => d !== P && d !== Q && value !== state.z[d]); // if it is -1, the map stays as it is
  state.z.set(z);
  paint($("digit"), decode(state.z));
  state.milliseconds = performance.now() - start;
  $("z").innerHTML = [P, Q].map((d) => `<span>${subscript(d)} = ${number(z[d])}</span>`).join("");
  $("milliseconds").value = `${state.milliseconds.toFixed(1)} ms`;
  for (const { d, input, output } of sliders) {
    input.value = z[d];
    output.value = number(z[d]);
  }
  if (slice >= 0 && state.background === "manifold") restartBackground(120);
  drawOverlay();
}

// Moves the cursor to a place on the map; the other dimensions stay. A point nearby goes onto the card.
function moveTo(x, y) {
  const z = state.z.slice();
  [z[P], z[Q]] = [x, y];
  setZ(z);
  const near = nearest(x, y);
  if (near >= 0 && near !== state.index && state.background !== "posterior") show(near); // a posterior stays till a click
}

// Finds the nearest of the points shown within 14 pixels. It returns a test image's number, N for the drawing or -1 for none.
function nearest(x, y) {
  let found = -1, closest = (14 / scale()) ** 2;
  const distance = (mu, start) => (mu[start + P] - x) ** 2 + (mu[start + Q] - y) ** 2;
  for (let i = 0; i < N; i++) {
    if (state.shown[labels[i]] && distance(mus, i * L) < closest) closest = distance(mus, (found = i) * L);
  }
  return state.drawing && distance(state.drawing.mu, 0) <= closest ? N : found;
}

function show(index) {
  const item = index === N ? state.drawing : testImage(index);
  Object.assign(state, { index, subject: item });
  $("title").textContent = item.title;
  paint($("original"), item.pixels);
  paint($("reconstruction"), item.reconstruction);
  for (const term of ["recon", "kl"]) $(term).textContent = `${number(item[term], 1)} nats`;
  $("sum").textContent = `${number(item.recon + item.kl, 1)} nats`;
  if (state.background === "posterior") askPosterior();
  drawOverlay();
}

// -------------------------------------------------------------------------------------------------- the map
// The map has three canvases. `backdrop` has the background. `base` has the grid and the points, and is drawn anew when
// the view changes. `overlay` has all that follows the pointer, and is drawn anew at every move.

const [backdrop, base, overlay] = ["backdrop", "base", "map"].map((id) => $(id).getContext("2d"));
let width = 1, height = 1, colours = {}, baseRequested = false;

const leastZoom = () => Math.max(0.6, width / height / content.farthest, height / width / content.farthest);
const scale = () => (view.zoom * Math.min(width, height)) / (2 * content.reach); // in CSS pixels for a unit of z
const toX = (x) => width / 2 + (x - view.x) * scale(), toY = (y) => height / 2 - (y - view.y) * scale();
const fromX = (px) => view.x + (px - width / 2) / scale(), fromY = (py) => view.y - (py - height / 2) / scale();

function resize() {
  [width, height] = [$("frame").clientWidth, $("frame").clientHeight];
  for (const context of [backdrop, base, overlay]) {
    Object.assign(context.canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
    context.scale(devicePixelRatio, devicePixelRatio);
  }
  viewChanged();
}

function viewChanged() {
  const { reach, farthest } = content;
  view.zoom = clamp(view.zoom, leastZoom(), 60);
  const room = (side) => Math.max(0, farthest * reach - side / 2 / scale());
  view.x = clamp(view.x, wholeMap.x - room(width), wholeMap.x + room(width));
  view.y = clamp(view.y, wholeMap.y - room(height), wholeMap.y + room(height));
  if (!baseRequested) requestAnimationFrame(drawBase); // it is drawn at most once a frame
  baseRequested = true;
  drawOverlay();
  if (state.background !== "none") restartBackground(120);
}

function zoomBy(factor, px = width / 2, py = height / 2) { // what is under (px, py) stays there
  const x = fromX(px), y = fromY(py);
  view.zoom = clamp(view.zoom * factor, leastZoom(), 60);
  view.x += x - fromX(px);
  view.y += y - fromY(py);
  viewChanged();
}

function fit() {
  Object.assign(view, wholeMap);
  viewChanged();
}

function readColours() { // the style sheet has the light ones now, or the dark ones
  for (const name of ["ink", "soft", "line", "sheet"]) {
    $("name").style.color = `var(--${name})`;
    colours[name] = getComputedStyle($("name")).color;
  }
  $("name").style.color = "";
}

function drawBase() {
  baseRequested = false;
  moveBackdrop();
  drawPoints();
  drawGrid();
}

// Writes the points pixel by pixel: thousands of drawing commands would take longer than a frame. Where dots overlap
// the later one wins. At their edges, which fade out, the more opaque one does.
function drawPoints() {
  const ratio = devicePixelRatio, image = base.createImageData(base.canvas.width, base.canvas.height);
  const pixels = new Uint32Array(image.data.buffer), columns = image.width, opacity = { none: 210, manifold: 120, density: 80, posterior: 90 }[state.background];
  const rgb = content.colours.map((colour) => parseInt(colour.slice(5, 7) + colour.slice(3, 5) + colour.slice(1, 3), 16)); // little endian
  const radius = clamp(0.19 * Math.sqrt(scale()), 1.2, 6) * ratio, half = Math.ceil(radius);
  for (let i = 0; i < N; i++) {
    const px = toX(mus[i * L + P]) * ratio, py = toY(mus[i * L + Q]) * ratio;
    if (!state.shown[labels[i]] || !(px > half && py > half && px < columns - half - 1 && py < image.height - half - 1)) continue;
    for (let y = Math.floor(py) - half; y <= py + half; y++) {
      for (let x = Math.floor(px) - half; x <= px + half; x++) {
        const cover = radius + 0.5 - Math.hypot(x + 0.5 - px, y + 0.5 - py), alpha = Math.round(opacity * Math.min(1, cover));
        if (cover > 0 && alpha >= pixels[y * columns + x] >>> 24) pixels[y * columns + x] = (alpha << 24) | rgb[labels[i]];
      }
    }
  }
  base.putImageData(image, 0, 0);
}

function drawGrid() { // its lines lie below the points, its labels above them
  const rough = clamp(Math.min(width, height) / 6, 40, 90) / scale(), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough), digits = Math.max(0, -Math.floor(Math.log10(step)));
  const multiples = (low, high) => Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, k) => (k + Math.ceil(low / step)) * step);
  const columns = multiples(fromX(0), fromX(width)), rows = multiples(fromY(height), fromY(0));
  Object.assign(base, { globalCompositeOperation: "destination-over", fillStyle: colours.line });
  if (state.background !== "manifold") { // the grid would cross out its pictures
    for (const x of columns) base.fillRect(Math.round(toX(x)), 0, 1, height);
    for (const y of rows) base.fillRect(0, Math.round(toY(y)), width, 1);
  }
  base.globalCompositeOperation = "source-over";
  for (const x of columns) if (Math.abs(toX(x) - width / 2) < width / 2 - 40) write(base, number(x, digits), toX(x), height - 10, "center");
  for (const y of rows) if (Math.abs(toY(y) - height / 2) < height / 2 - 30) write(base, number(y, digits), 10, toY(y) + 4, "left");
  write(base, subscript(P), width - 12, height - 10, "right");
  write(base, subscript(Q), 10, 20, "left");
}

function disc(context, px, py, radius, fill, stroke) {
  context.beginPath();
  context.arc(px, py, radius, 0, 2 * Math.PI);
  if (fill) Object.assign(context, { fillStyle: fill }).fill();
  if (stroke) Object.assign(context, { strokeStyle: stroke, lineWidth: 1.5 }).stroke();
}

function write(context, text, px, py, align, colour = colours.soft) { // the halo makes it readable on any background
  Object.assign(context, { font: "12px system-ui, sans-serif", textAlign: align, fillStyle: colour, strokeStyle: colours.sheet });
  Object.assign(context, { lineWidth: 4, lineJoin: "round" }).strokeText(text, px, py);
  context.fillText(text, px, py);
}

function halo(path) { // strokes a path twice, so that it stands out from any background
  for (const [strokeStyle, lineWidth] of [[colours.sheet, 4.5], [colours.ink, 1.5]]) {
    Object.assign(overlay, { strokeStyle, lineWidth }).beginPath();
    path();
    overlay.stroke();
  }
}

function drawOverlay() {
  overlay.clearRect(0, 0, width, height);
  const place = (z) => [toX(z[P]), toY(z[Q])];
  if (state.subject) {
    const { mu, logvar } = state.subject, [px, py] = place(mu);
    for (const k of [1, 2]) { // one and two standard deviations of q(z|x)
      const radius = (d) => k * Math.exp(0.5 * logvar[d]) * scale();
      halo(() => overlay.ellipse(px, py, radius(P), radius(Q), 0, 0, 2 * Math.PI));
    }
    disc(overlay, px, py, 4, state.index === N ? colours.ink : content.colours[labels[state.index]], colours.sheet);
  }
  if (state.drawing) {
    const [px, py] = place(state.drawing.mu);
    disc(overlay, px, py, 5, colours.ink, colours.sheet);
    write(overlay, "your drawing", px + 17, py + 4, "left", colours.ink);
  }
  if (state.ends.length === 2) {
    halo(() => state.ends.forEach(({ z }) => overlay.lineTo(...place(z))));
    disc(overlay, ...place(between(state.t)), 6, colours.sheet, colours.ink);
  }
  state.ends.forEach(({ z }, i) => {
    const [px, py] = place(z);
    disc(overlay, px, py, 10, colours.ink, colours.sheet);
    Object.assign(overlay, { font: "600 11px system-ui, sans-serif", textAlign: "center", fillStyle: colours.sheet });
    overlay.fillText("AB"[i], px, py + 4);
  });
  const [px, py] = place(state.z);
  halo(() => [[1, 0], [-1, 0], [0, 1], [0, -1]].forEach(([dx, dy]) => { // cross hairs
    overlay.moveTo(px + 5 * dx, py + 5 * dy);
    overlay.lineTo(px + 12 * dx, py + 12 * dy);
  }));
}

// ---------------------------------------------------------------------------------------------- backgrounds
// Each is a generator that draws a little and yields, so that the pointer is answered while it works.

let drawn = { x: 0, y: 0, scale: 1 }; // the backdrop's view; the picture is moved and stretched until a new one is there
let job = null, jobTimer = 0;

function backdropPlace() { // returns its left, top and stretch in the present view
  const stretch = scale() / drawn.scale;
  return [toX(drawn.x) - (width / 2) * stretch, toY(drawn.y) - (height / 2) * stretch, stretch];
}

function moveBackdrop() {
  const [left, top, stretch] = backdropPlace();
  backdrop.canvas.style.transform = `translate(${left}px, ${top}px) scale(${stretch})`;
}

function restartBackground(delay = 0) {
  clearTimeout(jobTimer);
  jobTimer = setTimeout(() => {
    const [left, top, stretch] = backdropPlace(), idle = !job;
    backdrop.globalCompositeOperation = "copy"; // the old picture stays, moved to its new place, till it is drawn over
    backdrop.drawImage(backdrop.canvas, left, top, width * stretch, height * stretch);
    backdrop.globalCompositeOperation = "source-over";
    drawn = { x: view.x, y: view.y, scale: scale() };
    moveBackdrop();
    job = backgrounds[state.background]();
    if (idle) work();
  }, delay);
}

function work() {
  if (!job) return;
  const end = performance.now() + 10; // it may take 10 milliseconds of each frame
  while (job && performance.now() < end) if (job.next().done) job = null;
  requestAnimationFrame(work);
}

// Returns a picture whose opacity is `alpha(i)`. Its colour is that of the text, so it suits light and dark.
function inked(columns, rows, alpha) {
  const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext("2d"), image = new ImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) image.data[4 * i + 3] = 255 * alpha(i);
  context.putImageData(image, 0, 0);
  Object.assign(context, { globalCompositeOperation: "source-in", fillStyle: colours.ink }).fillRect(0, 0, columns, rows);
  return canvas;
}

const backgrounds = {
  *none() {
    backdrop.clearRect(0, 0, width, height);
  },
  *manifold() { // p(x|z) for z on a grid, from the centre of the view outwards
    const tile = clamp(Math.min(width, height) / 16, 24, 48), step = tile / scale(), places = [];
    const [left, top, firstX, firstY] = [fromX(0), fromY(0), Math.floor(fromX(0) / step), Math.floor(fromY(height) / step)];
    for (let x = firstX * step; x < fromX(width) + step; x += step) {
      for (let y = firstY * step; y < top + step; y += step) places.push([x, y]);
    }
    const middle = [view.x, view.y], distance = (place) => Math.hypot(place[0] - middle[0], place[1] - middle[1]);
    for (const [x, y] of places.sort((a, b) => distance(a) - distance(b))) {
      const z = state.z.slice();
      [z[P], z[Q]] = [x, y];
      const pixels = decode(z), corner = [((x - left) / step - 0.5) * tile, ((top - y) / step - 0.5) * tile];
      backdrop.clearRect(...corner, tile, tile);
      backdrop.drawImage(inked(28, 28, (i) => 0.75 * pixels[i]), ...corner, tile, tile);
      yield;
    }
  },
  *density() { // the mean of q(z|x) over the points shown
    const cell = 3, columns = Math.ceil(width / cell), rows = Math.ceil(height / cell);
    const sum = new Float32Array(columns * rows), [left, top, size] = [fromX(cell / 2), fromY(cell / 2), cell / scale()];
    const profile = (mean, logvar, first, step, n) => { // returns the first cell and the values of a Gaussian along one axis
      const std = Math.exp(0.5 * logvar), middle = (mean - first) / step, far = Math.abs((4 * std) / step);
      const begin = Math.max(0, Math.ceil(middle - far)), end = Math.min(n, Math.floor(middle + far) + 1);
      const value = (_, k) => Math.exp(-0.5 * (((begin + k - middle) * step) / std) ** 2) / std;
      return [begin, Float32Array.from({ length: Math.max(0, end - begin) }, value)];
    };
    for (let i = 0; i < N; i++) {
      if (!state.shown[labels[i]]) continue;
      const [x, across] = profile(mus[i * L + P], logvars[i * L + P], left, size, columns);
      const [y, down] = profile(mus[i * L + Q], logvars[i * L + Q], top, -size, rows);
      down.forEach((d, row) => {
        for (let k = 0, at = (y + row) * columns + x; k < across.length; k++, at++) sum[at] += d * across[k];
      });
      if (i % 50 === 0) yield;
    }
    const most = sum.reduce((a, b) => Math.max(a, b), 1e-30);
    backdrop.clearRect(0, 0, width, height);
    const level = (i) => Math.max(0, 9 + Math.floor(Math.log2(sum[i] / most + 1e-9))); // a step is a factor of two, 9 at the top
    backdrop.drawImage(inked(columns, rows, (i) => 0.07 * level(i)), 0, 0, columns * cell, rows * cell);
  },
  *posterior() { // log p(z|x), smoothed over the worker's cells and cut into levels
    if (!state.posterior) return; // the picture before stays till there is an answer
    backdrop.clearRect(0, 0, width, height);
    const { cells, levels } = state.posterior, peak = cells[0][4], size = clamp(Math.sqrt(width * height / 200_000), 0.5, 3);
    const raster = { columns: Math.ceil(width / size), rows: Math.ceil(height / size), size };
    const boxes = placeCells(raster, cells);
    yield;
    const values = smooth(raster, boxes, interpolate(raster, boxes, cells, peak - 300));
    yield;
    const opacity = (value) => levels.find(({ least }) => value >= least)?.opacity ?? FAINT * Math.max(0, 1 - (peak - value) / FADES_OVER);
    backdrop.drawImage(inked(raster.columns, raster.rows, (i) => opacity(values[i])), 0, 0, raster.columns * size, raster.rows * size);
  },
};

// ------------------------------------------------------------------------------------------ the true posterior
// A worker, made of this page's own scripts, integrates p(x|z) p(z) over the plane (posterior.js) and answers with the
// cells that it divided the plane into: x, y, width, height and log p(z|x) of each.

const LEVELS = [[0.5, 0.8], [0.9, 0.55], [0.99, 0.34]]; // the densest regions with so much of the probability, and their opacity
const FAINT = 0.16, FADES_OVER = 30; // the opacity beside them, which fades out over so many nats
let posteriorWorker = null, question = 0, frameIt = false;

function startPosteriorWorker() {
  if (posteriorWorker) return;
  const code = new Blob([$("network").textContent, $("worker").textContent], { type: "text/javascript" });
  posteriorWorker = new Worker(URL.createObjectURL(code));
  posteriorWorker.postMessage({ decoder, couplings, centre: content.centre, reach: content.farthest * content.reach });
  posteriorWorker.onmessage = ({ data }) => {
    if (data.id === question && state.background === "posterior") showPosterior(data);
  };
}

function askPosterior() {
  startPosteriorWorker();
  const { pixels, mu, logvar } = state.subject;
  state.posterior = null; // its picture stays till the first answer
  posteriorWorker.postMessage({ id: ++question, pixels, mu, logvar });
}

function showPosterior(answer) {
  const n = answer.cells.length / 5, cell = (k) => answer.cells.subarray(5 * k, 5 * k + 5);
  const cells = Array.from({ length: n }, (_, k) => cell(k)).sort((a, b) => b[4] - a[4]); // the densest first
  let mass = 0;
  const levels = LEVELS.map(([share, opacity]) => ({ share, opacity, least: Infinity }));
  for (const [, , w, h, logDensity] of cells) {
    for (const level of levels) if (mass < level.share) level.least = logDensity;
    mass += w * h * Math.exp(logDensity);
  }
  state.posterior = { ...answer, cells, levels };
  const nats = { "neg-elbo": -answer.bound, nll: -answer.logP, gap: answer.logP - answer.bound };
  for (const [id, value] of Object.entries(nats)) {
    $(id).textContent = Number.isNaN(value) ? "…" : `${number(value, 1)} nats`;
    $(id).classList.toggle("rough", !answer.done);
  }
  if (answer.done && frameIt) framePosterior();
  restartBackground();
}

// Moves the map so that 99 % of the posterior and two deviations of q(z|x) fill half of it.
function framePosterior() {
  frameIt = false;
  const { cells, levels } = state.posterior, { mu, logvar } = state.subject;
  const inside = cells.filter((cell) => cell[4] >= levels.at(-1).least);
  const edges = [0, 1].map((d) => [-1, 1].map((side) => side * Math.max(
    side * mu[d] + 2 * Math.exp(0.5 * logvar[d]), ...inside.map((cell) => side * cell[d] + cell[2 + d] / 2))));
  const [x, y] = edges.map(([low, high]) => (low + high) / 2), [wide, high] = edges.map(([low, high]) => high - low);
  glideTo({ x, y, zoom: content.reach / Math.min(width, height) * Math.min(width / wide, height / high) });
}

// Puts the cells, of which the first is the densest, on a raster: `owner` has the number of the one at each pixel.
// Returns the box of each, in pixels.
function placeCells(raster, cells) {
  const { columns, rows, size } = raster, edge = (position) => Math.round(position / size + 1e-6); // the same for both that share it
  raster.owner = new Int32Array(columns * rows).fill(-1);
  const boxes = cells.map(([x, y, w, h]) => {
    const left = edge(toX(x - w / 2)), top = edge(toY(y + h / 2));
    return { left, top, right: Math.max(left + 1, edge(toX(x + w / 2))), bottom: Math.max(top + 1, edge(toY(y - h / 2))) };
  });
  for (let k = cells.length - 1; k >= 0; k--) { // the densest comes last, so it is seen however small it is
    const { left, top, right, bottom } = boxes[k], from = clamp(left, 0, columns), to = clamp(right, 0, columns);
    for (let row = Math.max(0, top); row < Math.min(rows, bottom); row++) raster.owner.fill(k, row * columns + from, row * columns + to);
  }
  return boxes;
}

// Returns the log density at each pixel: that of its cell, with the slopes between the cells on both sides.
function interpolate({ columns, rows, size, owner }, boxes, cells, least) {
  const at = (column, row) => (column >= 0 && row >= 0 && column < columns && row < rows ? owner[row * columns + column] : -1);
  const slope = (a, b, d) => (a < 0 || b < 0 || a === b ? 0 : (cells[b][4] - cells[a][4]) / (cells[b][d] - cells[a][d]));
  const values = new Float64Array(columns * rows).fill(least);
  cells.forEach((cell, k) => {
    const { left, top, right, bottom } = boxes[k], column = (left + right) >> 1, row = (top + bottom) >> 1;
    const across = slope(at(left - 1, row), at(right, row), 0), up = slope(at(column, bottom), at(column, top - 1), 1);
    for (let y = Math.max(0, top); y < Math.min(rows, bottom); y++) {
      const middle = cell[4] + up * clamp(fromY((y + 0.5) * size) - cell[1], -cell[3] / 2, cell[3] / 2);
      for (let x = Math.max(0, left), i = y * columns + x; x < Math.min(columns, right); x++, i++) {
        if (owner[i] !== k) continue;
        values[i] = Math.max(least, middle + across * clamp(fromX((x + 0.5) * size) - cell[0], -cell[2] / 2, cell[2] / 2));
      }
    }
  });
  return values;
}

// Returns the mean around each pixel over a box as large as its cell, by differences of the sums over all above and to the left.
function smooth({ columns, rows, owner }, boxes, values) {
  const stride = columns + 1, sums = new Float64Array(stride * (rows + 1));
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0, line = 0; column < columns; column++, i++) {
      line += values[i];
      sums[(row + 1) * stride + column + 1] = sums[row * stride + column + 1] + line;
    }
  }
  return values.map((value, i) => {
    if (owner[i] < 0) return value;
    const { left, top, right, bottom } = boxes[owner[i]], column = i % columns, row = Math.floor(i / columns);
    const half = (right - left) >> 1, tall = (bottom - top) >> 1;
    const x0 = Math.max(0, column - half), x1 = Math.min(columns, column + half + 1);
    const y0 = Math.max(0, row - tall), y1 = Math.min(rows, row + tall + 1);
    return (sums[y1 * stride + x1] - sums[y0 * stride + x1] - sums[y1 * stride + x0] + sums[y0 * stride + x0]) / ((x1 - x0) * (y1 - y0));
  });
}

function glideTo(target) {
  const from = { ...view }, start = performance.now(), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let now = from;
  const frame = (time) => {
    if (view.x !== now.x || view.y !== now.y || view.zoom !== now.zoom) return; // a hand has moved the map
    const t = still ? 1 : clamp((time - start) / 700, 0, 1), zoom = from.zoom * (target.zoom / from.zoom) ** (t * t * (3 - 2 * t));
    // The centre moves as 1 / zoom does, and so do the sides of the view: a straight and steady way on the screen.
    const way = t < 1 && target.zoom !== from.zoom ? (1 / from.zoom - 1 / zoom) / (1 / from.zoom - 1 / target.zoom) : t;
    Object.assign(view, { x: from.x + way * (target.x - from.x), y: from.y + way * (target.y - from.y), zoom });
    viewChanged();
    now = { ...view };
    if (t < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

// -------------------------------------------------------------------------------------------- interpolation

const between = (t) => state.ends[0].z.map((a, d) => a + t * (state.ends[1].z[d] - a));

function choose() { // takes the point on the map that is nearest to the cursor, or the cursor itself
  const index = nearest(state.z[P], state.z[Q]);
  if (state.background === "posterior") { // then a click asks for another image's posterior
    frameIt = true;
    return index >= 0 && show(index);
  }
  if (index >= 0) {
    show(index);
    setZ(state.subject.mu); // with more than two dimensions the map becomes the slice through this point
  }
  const name = index < 0 ? "a place on the map" : index === N ? "your drawing" : `a ${labels[index]}`;
  if (state.ends.length === 2) forgetEnds();
  state.ends.push({ z: state.z.slice(), name });
  $("ends").textContent = `From A, ${state.ends[0].name}, ` + (state.ends.length === 2 ? `to B, ${name}.` : "to … click a second point.");
  if (state.ends.length === 2) {
    for (let i = 0; i <= 10; i++) paint($("strip"), decode(between(i / 10)), 28 * i);
    $("strip").hidden = $("player").hidden = false;
    setT(0);
    play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  }
  drawOverlay();
}

function forgetEnds() {
  play(false);
  state.ends = [];
  $("strip").hidden = $("player").hidden = true;
  $("ends").textContent = "Click two points on the map.";
  drawOverlay();
}

function setT(t) {
  state.t = t;
  $("t").value = t;
  paint($("frame-now"), decode(between(t)));
  drawOverlay();
}

function play(on) {
  const started = on && !state.playing;
  state.playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  if (!started) return;
  const offset = Math.acos(1 - 2 * state.t) / Math.PI, start = performance.now(); // it goes on from where it is
  const frame = (now) => {
    if (!state.playing) return;
    setT(0.5 - 0.5 * Math.cos(Math.PI * (offset + Math.max(0, now - start) / 2500))); // it is slow at both ends
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

// -------------------------------------------------------------------------------------------------- drawing

const strokes = []; // each is a list of [x, y], which go from 0 to 1 across the pad

function trace(context, toPixel, lineWidth) {
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  Object.assign(context, { strokeStyle: "#fff", lineWidth, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    context.beginPath();
    for (const point of [stroke[0], ...stroke]) context.lineTo(...toPixel(point));
    context.stroke();
  }
}

// Returns the strokes as MNIST has its digits: 28 x 28 pixels, of which the longer side of the digit takes 20. The centre of
// mass is in the middle.
function normalised() {
  const points = strokes.flat(), low = [0, 1].map((k) => Math.min(...points.map((p) => p[k])));
  const size = Math.max(...[0, 1].map((k) => Math.max(...points.map((p) => p[k])) - low[k]), 0.1);
  const context = new OffscreenCanvas(28, 28).getContext("2d", { willReadFrequently: true }), line = 2.6;
  const pixelsAt = (dx, dy) => {
    trace(context, ([x, y]) => [((x - low[0]) / size) * (20 - line) + dx, ((y - low[1]) / size) * (20 - line) + dy], line);
    return Float32Array.from({ length: N_PIXELS }, (_, i) => context.getImageData(0, 0, 28, 28).data[4 * i] / 255);
  };
  const pixels = pixelsAt(4, 4), mass = pixels.reduce((sum, value) => sum + value, 0);
  const mean = (coordinate) => pixels.reduce((sum, value, i) => sum + value * coordinate(i), 0) / mass + 0.5;
  return pixelsAt(18 - mean((i) => i % 28), 18 - mean((i) => Math.floor(i / 28)));
}

function encodeDrawing() {
  const grey = normalised(), pixels = content.binary ? grey.map((value) => (value > 0.5 ? 1 : 0)) : grey;
  const { mu, logvar } = encode(pixels);
  state.drawing = subject("Your drawing", pixels, mu, logvar);
  frameIt = true; // when the hand rests
  show(N);
  setZ(mu);
  $("clear").disabled = false;
}

function paintPad() {
  trace($("pad").getContext("2d"), ([x, y]) => [x * $("pad").width, y * $("pad").height], 22);
}

function clearDrawing() {
  strokes.length = 0;
  paintPad();
  state.drawing = null;
  $("clear").disabled = true;
  if (state.index === N) show(0);
  drawOverlay();
}

// ------------------------------------------------------------------------------------------ hands and keys

const pointers = new Map(); // where each pointer is that is down
let travelled = 0; // how many pixels since the first went down; a click travels little

const onMap = ({ clientX, clientY }) => { // we avoid event.offsetX, which would be rounded
  const { left, top } = $("map").getBoundingClientRect();
  return [clientX - left, clientY - top];
};

$("map").onpointerdown = (event) => {
  $("map").setPointerCapture(event.pointerId);
  const [px, py] = onMap(event);
  pointers.set(event.pointerId, [px, py]);
  travelled = pointers.size === 1 ? 0 : Infinity;
  if (pointers.size === 1) moveTo(fromX(px), fromY(py));
};
$("map").onpointermove = (event) => {
  const before = pointers.get(event.pointerId), now = onMap(event);
  if (before) {
    const apart = () => { const [a, b] = pointers.values(); return Math.hypot(a[0] - b[0], a[1] - b[1]); };
    const old = pointers.size === 2 ? apart() : 0, [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    pointers.set(event.pointerId, now);
    travelled += Math.abs(dx) + Math.abs(dy);
    if (pointers.size === 2 || (event.pointerType === "mouse" && travelled > 4)) { // each of two fingers moves it by half
      view.x -= dx / pointers.size / scale();
      view.y += dy / pointers.size / scale();
      if (old) zoomBy(apart() / old, ...[0, 1].map((k) => [...pointers.values()].reduce((sum, at) => sum + at[k] / 2, 0)));
      return viewChanged();
    }
  }
  if (pointers.size < 2) moveTo(fromX(now[0]), fromY(now[1]));
};
$("map").onpointerup = $("map").onpointercancel = (event) => {
  if (event.type === "pointerup" && travelled <= 4) choose();
  pointers.delete(event.pointerId);
};
$("map").addEventListener("wheel", (event) => {
  event.preventDefault();
  const pixels = event.deltaY * (event.deltaMode ? 30 : 1);
  zoomBy(Math.exp(-clamp(pixels, -150, 150) * (event.ctrlKey ? 0.01 : 0.002)), ...onMap(event));
}, { passive: false });

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
$("map").onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return; // these keys are the browser's own
  const actions = { "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), Home: fit, Enter: choose, Escape: forgetEnds };
  actions[" "] = () => state.ends.length === 2 && play(!state.playing);
  for (const [key, [dx, dy]] of Object.entries(arrows)) {
    actions[key] = () => {
      const step = (event.shiftKey ? 50 : 8) / scale();
      moveTo(state.z[P] + dx * step, state.z[Q] + dy * step);
      const [px, py] = [toX(state.z[P]), toY(state.z[Q])]; // the map follows the cursor
      view.x += (px - clamp(px, 30, width - 30)) / scale();
      view.y -= (py - clamp(py, 30, height - 30)) / scale();
      viewChanged();
    };
  }
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
};

$("backgrounds").onpointerenter = () => L === 2 && startPosteriorWorker(); // it has begun when the button is pressed
$("in").onclick = () => zoomBy(1.5);
$("out").onclick = () => zoomBy(1 / 1.5);
$("fit").onclick = fit;
$("backgrounds").onchange = (event) => {
  state.background = event.target.value;
  const isPosterior = (frameIt = state.background === "posterior");
  for (const element of [$("scale"), ...document.querySelectorAll(".exact")]) element.hidden = !isPosterior;
  $("interpolation").hidden = isPosterior; // a click then chooses an image
  $("help").textContent = `Move to decode, ${isPosterior ? "click a point for its posterior" : "drag to pan, scroll to zoom"}`;
  if (isPosterior) askPosterior();
  backdrop.clearRect(0, 0, width, height);
  viewChanged(); // the points are fainter on a background
  restartBackground();
};

const systemDark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(dark) {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
  readColours();
  viewChanged();
}
$("theme").onclick = () => setTheme($("theme").textContent === "Dark");
systemDark.onchange = () => setTheme(systemDark.matches);

$("play").onclick = () => play(!state.playing);
$("t").oninput = () => { play(false); setT(Number($("t").value)); };
$("strip").onpointerdown = $("strip").onpointermove = (event) => {
  if (!event.buttons) return;
  play(false);
  setT(clamp((event.offsetX / $("strip").clientWidth) * 1.1 - 0.05, 0, 1)); // the middle of the first picture is 0
};

function setLegend(shown) {
  state.shown = shown;
  [...$("legend").querySelectorAll("[aria-pressed]")].forEach((button, digit) => button.setAttribute("aria-pressed", shown[digit]));
  $("all").textContent = shown.every(Boolean) ? "None" : "All";
  viewChanged();
}
content.colours.forEach((colour, digit) => {
  const button = document.createElement("button");
  button.innerHTML = `<i style="--colour: ${colour}"></i>${digit}`;
  button.onclick = () => setLegend(state.shown.map((on, other) => (other === digit ? !on : on)));
  button.ondblclick = () => setLegend(state.shown.map((_, other) => other === digit));
  button.setAttribute("aria-pressed", true);
  $("legend").append(button);
});
$("legend").insertAdjacentHTML("beforeend", '<button id="all">None</button><p id="help">Move to decode, drag to pan, scroll to zoom</p>');
$("all").onclick = () => setLegend(Array(10).fill(!state.shown.every(Boolean)));

for (const d of content.sliders) {
  const label = document.createElement("label"), { centre, reach } = content;
  const range = `min="${centre[d] - reach}" max="${centre[d] + reach}" step="0.01"`;
  label.innerHTML = `${subscript(d)} <input type="range" ${range}><output aria-live="off"></output><small>${number(content.kl[d], 1)} nats</small>`;
  const [input, output] = [label.querySelector("input"), label.querySelector("output")];
  input.oninput = () => setZ(state.z.map((value, other) => (other === d ? Number(input.value) : value)));
  sliders.push({ d, input, output });
  $("sliders").append(label);
}
$("latent").hidden = sliders.length === 0;

$("posterior").hidden = L !== 2;
$("levels").innerHTML = [...LEVELS.map(([share, opacity]) => [opacity, `${100 * share} %`]), [FAINT, "less likely"]]
  .map(([opacity, text]) => `<i style="opacity: ${opacity}"></i>${text}`).join("");
$("draw").hidden = !encoder;
paintPad();
$("pad").onpointerdown = $("pad").onpointermove = (event) => {
  if (!event.buttons) return;
  if (event.type === "pointerdown") {
    $("pad").setPointerCapture(event.pointerId);
    strokes.push([]);
  }
  strokes.at(-1)?.push([event.offsetX / $("pad").clientWidth, event.offsetY / $("pad").clientHeight]);
  paintPad();
  encodeDrawing();
};
$("clear").onclick = clearDrawing;

// --------------------------------------------------------------------------------------------------- begin

if (couplings) $("kl-name").title += `: an estimate from ${eps.length / L} draws of z`;
$("name").textContent = `${content.name}, ${N.toLocaleString("en")} test images`;
setTheme(systemDark.matches);
new ResizeObserver(resize).observe($("frame"));
resize();
show(0);
for (let i = 0; i < 10; i++) setZ(state.subject.mu); // a loop's first runs are slow, so we have them before the first move

// This is for tests and for curious people at the console. explorer.decode([0, 1]) gives 784 pixels in [0, 1],
// explorer.encode(pixels) gives {mu, logvar}, explorer.testImage(i) gives what is known of a test image, and
// explorer.show(i) puts it onto the card.
// explorer.place(z) says where z is in the window, and explorer.at(x, y) which place of the map is there.
window.explorer = { content, state, view, decode, encode, testImage, moveTo, show,
  place(z) {
    const [left, top] = onMap({ clientX: 0, clientY: 0 });
    return [toX(z[P]) - left, toY(z[Q]) - top];
  },
  at(clientX, clientY) {
    const [px, py] = onMap({ clientX, clientY });
    return [fromX(px), fromY(py)];
  },
};
