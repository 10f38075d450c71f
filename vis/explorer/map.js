// This file draws the map: its state, its view, the points, the marks that follow the pointer, and the backgrounds.
// It needs no import: main.py puts payload.js, map.js and card.js, in this order, into one module of page.html.

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const subscript = (d) => content.symbol + String(d + 1).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

// ------------------------------------------------------------------------------------------------ the state

const state = {
  u: new Float64Array(L), // the large digit is decoded from it
  index: -1, // which test image is on the card; N means the drawing
  subject: null, // what `subject` returned for it
  pinned: -1, // the image that stays on the card, or -1 while the card previews the image under the pointer
  drawing: null, // what `subject` returned for the drawing
  shown: Array(10).fill(true), // which digits the legend has switched on
  mode: "points", // or "manifold", "density", "posterior": the background
  dots: true, // whether the points are drawn over a background
  posterior: null, // the worker's latest answer
  samples: [], // {from, to, picture} of each draw on the map
  fallen: 1, // how far the draws have moved, from 0 to 1
  ends: [], // {u, name} of A and of B
  t: 0, // how far from A to B
  playing: false,
};
const wholeMap = { x: 0, y: 0, zoom: 1 };
const view = { ...wholeMap }; // x, y is the map's centre; at zoom 1 its shorter side spans +-reach
const sliders = []; // {d, input, output} of each
const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Paints pixels in [0, 1] onto a canvas 28 pixels high: white on black, as in all figures of this repository.
function paint(canvas, pixels, left = 0) {
  const image = new ImageData(28, 28), { data } = image;
  for (let i = 0; i < N_PIXELS; i++) {
    data[4 * i] = data[4 * i + 1] = data[4 * i + 2] = Math.round(255 * pixels[i]);
    data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, left, 0);
}

function setU(u) {
  const slice = u.some((value, d) => d !== P && d !== Q && value !== state.u[d]); // otherwise the map stays as it is
  state.u.set(u);
  paint($("digit"), decode(state.u));
  $("place").textContent = [P, Q].map((d) => `${subscript(d)}\u00a0=\u00a0${number(u[d])}`).join("\u2003");
  for (const { d, input, output } of sliders) {
    input.value = u[d];
    output.textContent = number(u[d]);
  }
  if (slice && state.mode === "manifold") restartBackground(120);
  drawOverlay();
}

// Moves the cursor to a place on the map and keeps the other dimensions. If no image is pinned, the card previews a nearby point.
function moveTo(x, y) {
  if (state.playing) return;
  const u = state.u.slice();
  [u[P], u[Q]] = [x, y];
  setU(u);
  const near = nearest(x, y);
  if (near >= 0 && near !== state.index && state.pinned < 0) show(near);
}

// Returns the nearest visible point within 14 pixels: the number of its test image, N for the drawing or -1 for none.
function nearest(x, y) {
  let found = -1, closest = (14 / scale()) ** 2;
  for (let i = 0; i < N; i++) {
    const distance = (points[2 * i] - x) ** 2 + (points[2 * i + 1] - y) ** 2;
    if (distance < closest && state.shown[labels[i]]) [found, closest] = [i, distance];
  }
  const { u } = state.drawing ?? {};
  return u && (u[P] - x) ** 2 + (u[Q] - y) ** 2 <= closest ? N : found;
}

// -------------------------------------------------------------------------------------------------- the map
// The map has three canvases. `backdrop` has the background. `base` has the grid and the points and is redrawn when
// the view changes. `overlay` has everything that follows the pointer and is redrawn at every move.

const [backdrop, base, overlay] = ["backdrop", "base", "map"].map((id) => $(id).getContext("2d"));
let width = 1, height = 1, colours = {}, baseRequested = false, overlayRequested = false;

const leastZoom = () => Math.max(0.6, width / height / content.farthest, height / width / content.farthest);
const scale = () => (view.zoom * Math.min(width, height)) / (2 * content.reach); // in CSS pixels per unit of u
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
  if (state.mode !== "points") restartBackground(120);
}

function zoomBy(factor, px = width / 2, py = height / 2) { // the point under (px, py) stays there
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

// The relative luminance of a colour [red, green, blue], and the contrast of two (WCAG 2).
const luminance = (rgb) => dot([0.2126, 0.7152, 0.0722], rgb.map((v) => (v <= 10 ? v / 3295 : ((v / 255 + 0.055) / 1.055) ** 2.4)));
function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

// Reads the style sheet's colours for the current theme, light or dark, and mixes each digit's colour with just enough ink for
// a contrast of 3 : 1.
function readColours() {
  const rgb = (colour) => colour.match(/\d+/g).map(Number);
  for (const name of ["ink", "soft", "line", "sheet"]) {
    $("lead").style.color = `var(--${name})`;
    colours[name] = getComputedStyle($("lead")).color;
  }
  $("lead").style.color = "";
  const sheet = rgb(colours.sheet), ink = rgb(colours.ink);
  colours.digits = content.colours.map((hex) => {
    const own = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)), mixed = (share) => own.map((v, k) => Math.round(v + share * (ink[k] - v)));
    let share = 0;
    while (contrast(mixed(share), sheet) < 3) share += 0.02;
    return mixed(share);
  });
  colours.digits.forEach((colour, digit) => $("legend").style.setProperty(`--digit-${digit}`, `rgb(${colour})`));
}

function drawBase() {
  baseRequested = false;
  moveBackdrop();
  drawPoints();
  drawGrid();
}

// Writes the points pixel by pixel, because thousands of drawing commands would take longer than a frame. Where dots overlap,
// the more opaque pixel wins, or the later one if both are equally opaque. On a background, dots are smaller.
function drawPoints() {
  const ratio = devicePixelRatio, image = base.createImageData(base.canvas.width, base.canvas.height);
  const pixels = new Uint32Array(image.data.buffer), columns = image.width, alone = state.mode === "points";
  const colour = colours.digits.map(([red, green, blue]) => (blue << 16) | (green << 8) | red); // little endian
  const radius = clamp(0.19 * Math.sqrt(scale()) * (alone ? 1 : 0.5), 1.1, 6) * ratio, half = Math.ceil(radius);
  for (let i = 0; i < N; i++) {
    const px = toX(points[2 * i]) * ratio, py = toY(points[2 * i + 1]) * ratio;
    if (!state.shown[labels[i]] || !(alone || state.dots)) continue;
    if (!(px > half && py > half && px < columns - half - 1 && py < image.height - half - 1)) continue;
    for (let y = Math.floor(py) - half; y <= py + half; y++) {
      for (let x = Math.floor(px) - half; x <= px + half; x++) {
        const cover = radius + 0.5 - Math.hypot(x + 0.5 - px, y + 0.5 - py), alpha = Math.round(255 * Math.min(1, cover));
        if (cover > 0 && alpha >= pixels[y * columns + x] >>> 24) pixels[y * columns + x] = (alpha << 24) | colour[labels[i]];
      }
    }
  }
  base.putImageData(image, 0, 0);
}

function drawGrid() { // its lines and the prior's circles lie below the points, the labels above them
  const rough = clamp(Math.min(width, height) / 6, 40, 90) / scale(), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough), digits = Math.max(0, -Math.floor(Math.log10(step)));
  const multiples = (low, high) => Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, k) => (k + Math.ceil(low / step)) * step);
  const columns = multiples(fromX(0), fromX(width)), rows = multiples(fromY(height), fromY(0));
  Object.assign(base, { globalCompositeOperation: "destination-over", fillStyle: colours.line, strokeStyle: colours.soft, lineWidth: 1 });
  for (const k of [1, 2, 3]) { // standard deviations of N(0, I)
    base.beginPath();
    base.arc(toX(0), toY(0), k * scale(), 0, 2 * Math.PI);
    base.stroke();
  }
  if (state.mode !== "manifold") { // grid lines would cross the decoded digits
    for (const x of columns) base.fillRect(Math.round(toX(x)), 0, 1, height);
    for (const y of rows) base.fillRect(0, Math.round(toY(y)), width, 1);
  }
  base.globalCompositeOperation = "source-over";
  for (const x of columns) if (Math.abs(toX(x) - width / 2) < width / 2 - 40) write(base, number(x, digits), toX(x), height - 10, "center");
  for (const y of rows) if (Math.abs(toY(y) - height / 2) < height / 2 - 30) write(base, number(y, digits), 10, toY(y) + 4, "left");
  write(base, subscript(P), width - 12, height - 10, "right");
  write(base, subscript(Q), 10, 20, "left");
  for (const k of [1, 2, 3]) write(base, k === 1 ? "prior: 1 std" : `${k} std`, toX(0), toY(k) - 5, "center");
}

function disc(context, px, py, radius, fill, stroke) {
  context.beginPath();
  context.arc(px, py, radius, 0, 2 * Math.PI);
  if (fill) Object.assign(context, { fillStyle: fill }).fill();
  if (stroke) Object.assign(context, { strokeStyle: stroke, lineWidth: 1.5 }).stroke();
}

// Writes text with a halo, which makes it readable on any background.
function write(context, text, px, py, textAlign, fillStyle = colours.soft, font = "12px system-ui, sans-serif") {
  Object.assign(context, { font, textAlign, fillStyle, strokeStyle: colours.sheet, lineWidth: 4, lineJoin: "round" }).strokeText(text, px, py);
  context.fillText(text, px, py);
}

function halo(path) { // strokes a path twice, so that it stands out from any background
  for (const [strokeStyle, lineWidth] of [[colours.sheet, 4.5], [colours.ink, 1.5]]) {
    Object.assign(overlay, { strokeStyle, lineWidth }).beginPath();
    path();
    overlay.stroke();
  }
}

function drawOverlay() { // at most once a frame
  if (!overlayRequested) requestAnimationFrame(paintOverlay);
  overlayRequested = true;
}

const place = (u) => [toX(u[P]), toY(u[Q])]; // in the map, in CSS pixels

function paintOverlay() {
  overlayRequested = false;
  overlay.clearRect(0, 0, width, height);
  if (state.subject) paintSubject(state.subject);
  if (state.drawing) {
    const [px, py] = place(state.drawing.u);
    disc(overlay, px, py, 5, colours.ink, colours.sheet);
    write(overlay, "your drawing", px + 17, py + 4, "left", colours.ink);
  }
  for (const { from, to, picture } of state.samples) {
    const [px, py] = [toX(from[0] + state.fallen * (to[0] - from[0])), toY(from[1] + state.fallen * (to[1] - from[1]))];
    disc(overlay, px, py, 4, colours.ink, colours.sheet);
    if (!picture || state.fallen < 1) continue;
    overlay.fillStyle = colours.sheet;
    overlay.fillRect(px - 21, py - 49, 42, 42);
    overlay.drawImage(picture, px - 20, py - 48, 40, 40);
  }
  const [px, py] = place(state.u);
  halo(() => [[1, 0], [-1, 0], [0, 1], [0, -1]].forEach(([dx, dy]) => { // cross hairs
    overlay.moveTo(px + 5 * dx, py + 5 * dy);
    overlay.lineTo(px + 12 * dx, py + 12 * dy);
  }));
  if (state.ends.length === 2) halo(() => state.ends.forEach(({ u }) => overlay.lineTo(...place(u))));
  state.ends.forEach(({ u }, i) => { // last, so that nothing covers A and B
    const [x, y] = place(u);
    disc(overlay, x, y, 12, colours.ink, colours.sheet);
    Object.assign(overlay, { font: "600 14px system-ui, sans-serif", textAlign: "center", fillStyle: colours.sheet }).fillText("AB"[i], x, y + 5);
  });
}

// Marks the card's image: its point, with a ring if it is pinned, and q(u|x) at 1 and 2 standard deviations.
function paintSubject({ u, shape }) {
  const [px, py] = place(u);
  if (shape) {
    const mean = (shape.xx + shape.yy) / 2, half = Math.hypot((shape.xx - shape.yy) / 2, shape.xy); // the variances along the ellipse's axes
    const angle = 0.5 * Math.atan2(2 * shape.xy, shape.xx - shape.yy), axes = [mean + half, mean - half];
    for (const k of [1, 2]) {
      const radii = axes.map((variance) => k * scale() * Math.sqrt(Math.max(0, variance)));
      halo(() => overlay.ellipse(toX(shape.x), toY(shape.y), ...radii, -angle, 0, 2 * Math.PI));
    }
  }
  disc(overlay, px, py, 4, state.index === N ? colours.ink : `rgb(${colours.digits[labels[state.index]]})`, colours.sheet);
  if (state.pinned >= 0) halo(() => overlay.arc(px, py, 9, 0, 2 * Math.PI));
  if (state.mode === "posterior" && state.posterior?.done && shape) {
    const [[x, y], isElsewhere] = truthBeside(shape), [tx, ty] = [toX(x), toY(y)], apart = Math.hypot(tx - px, ty - py);
    const [dx, dy] = apart > 30 ? [(tx - px) / apart, (ty - py) / apart] : [0, -1], below = dx < 0 ? -1 : 1;
    arrow(isElsewhere ? "the truth is here too" : "the truth", [tx, ty], [dx, dy]); // the label is on the side away from the guess
    arrow("the encoder’s guess", [toX(shape.x), toY(shape.y)], [-below * dy, below * dx], 12 + 2 * scale() * Math.sqrt(Math.max(shape.xx, shape.yy)));
  }
}

// Writes a label in the direction (dx, dy) from (px, py); its arrow ends `gap` pixels before that point.
function arrow(text, [px, py], [dx, dy], gap = 14) {
  const at = (far, side = 0) => [px + far * dx - side * dy, py + far * dy + side * dx], end = gap + 46;
  halo(() => {
    overlay.moveTo(...at(end));
    overlay.lineTo(...at(gap));
    overlay.moveTo(...at(gap + 9, 5));
    overlay.lineTo(...at(gap));
    overlay.lineTo(...at(gap + 9, -5));
  });
  const font = "600 15px system-ui, sans-serif", [x, y] = at(end + 12), wide = Object.assign(overlay, { font }).measureText(text).width / 2 + 8;
  write(overlay, text, clamp(x, wide, width - wide - 56), clamp(y + 5, 20, height - 30), "center", colours.ink, font);
}

// ---------------------------------------------------------------------------------------------- backgrounds
// Each background is a generator that draws a little and yields, so that the page can respond to the pointer in between.

let drawn = { x: 0, y: 0, scale: 1 }; // the backdrop's view; the picture is moved and stretched until a new one replaces it
let job = null, jobTimer = 0;

function backdropPlace() { // returns its left, top and stretch in the current view
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
    backdrop.globalCompositeOperation = "copy"; // the old picture is moved to its new place and stays until it is drawn over
    backdrop.drawImage(backdrop.canvas, left, top, width * stretch, height * stretch);
    backdrop.globalCompositeOperation = "source-over";
    drawn = { x: view.x, y: view.y, scale: scale() };
    moveBackdrop();
    job = backgrounds[state.mode]();
    if (idle) work();
  }, delay);
}

function work() {
  if (!job) return;
  const end = performance.now() + 10; // it may take 10 milliseconds of each frame
  while (job && performance.now() < end) if (job.next().done) job = null;
  requestAnimationFrame(work);
}

// Returns a picture with opacity `alpha(i)` in the colour of the text, which suits both themes.
function inked(columns, rows, alpha) {
  const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext("2d"), image = new ImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) image.data[4 * i + 3] = 255 * alpha(i);
  context.putImageData(image, 0, 0);
  Object.assign(context, { globalCompositeOperation: "source-in", fillStyle: colours.ink }).fillRect(0, 0, columns, rows);
  return canvas;
}

const LEVELS = [[0.5, 0.8], [0.9, 0.55], [0.99, 0.34]]; // of the densest regions: share of the probability, opacity
const FAINT = 0.16, FADES_OVER = 30; // the opacity outside them, and the nats over which it fades

const backgrounds = {
  *points() {
    backdrop.clearRect(0, 0, width, height);
  },
  *manifold() { // p(x|u) for u on a grid, from the centre of the view outwards
    const tile = clamp(Math.min(width, height) / 16, 24, 48), step = tile / scale(), places = [];
    const [left, top, firstX, firstY] = [fromX(0), fromY(0), Math.floor(fromX(0) / step), Math.floor(fromY(height) / step)];
    for (let x = firstX * step; x < fromX(width) + step; x += step) {
      for (let y = firstY * step; y < top + step; y += step) places.push([x, y]);
    }
    const middle = [view.x, view.y], distance = (place) => Math.hypot(place[0] - middle[0], place[1] - middle[1]);
    for (const [x, y] of places.sort((a, b) => distance(a) - distance(b))) {
      const u = state.u.slice();
      [u[P], u[Q]] = [x, y];
      const pixels = decode(u), corner = [((x - left) / step - 0.5) * tile, ((top - y) / step - 0.5) * tile];
      backdrop.clearRect(...corner, tile, tile);
      backdrop.drawImage(inked(28, 28, (i) => 0.75 * pixels[i]), ...corner, tile, tile);
      yield;
    }
  },
  *density() { // the mean of q(z|x) over the points shown; with a flow, it has no closed form on the map
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
      const [x, across] = profile(points[2 * i], logvars[i * L + P], left, size, columns);
      const [y, down] = profile(points[2 * i + 1], logvars[i * L + Q], top, -size, rows);
      down.forEach((d, row) => {
        for (let k = 0, at = (y + row) * columns + x; k < across.length; k++, at++) sum[at] += d * across[k];
      });
      if (i % 50 === 0) yield;
    }
    const most = sum.reduce((a, b) => Math.max(a, b), 1e-30);
    backdrop.clearRect(0, 0, width, height);
    const level = (i) => Math.max(0, 9 + Math.floor(Math.log2(sum[i] / most + 1e-9))); // one level per factor of two; the top is 9
    backdrop.drawImage(inked(columns, rows, (i) => 0.07 * level(i)), 0, 0, columns * cell, rows * cell);
  },
  *posterior() { // log p(u|x), smoothed over the worker's cells and cut into levels
    if (!state.posterior) return; // the old picture stays until an answer comes
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

// Puts the cells, sorted from the densest, on a raster, where `owner` has the index of the cell at each pixel.
// Returns each cell's box in pixels.
function placeCells(raster, cells) {
  const { columns, rows, size } = raster, edge = (position) => Math.round(position / size + 1e-6); // equal for cells that share it
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

// Returns the log density at each pixel: its cell's value, with the slopes between the neighbouring cells.
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

// Returns the mean over a box around each pixel, as large as the pixel's cell, by a summed-area table.
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

let glides = 0; // only the latest glide moves the map

function glideTo(target) {
  const from = { ...view }, start = performance.now(), still = isStill(), mine = ++glides;
  let now = from;
  const frame = (time) => {
    if (mine !== glides || view.x !== now.x || view.y !== now.y || view.zoom !== now.zoom) return; // a newer glide or the user has moved the map
    const t = still ? 1 : clamp((time - start) / 700, 0, 1);
    const zoom = t < 1 ? from.zoom * (target.zoom / from.zoom) ** (t * t * (3 - 2 * t)) : target.zoom;
    // The centre moves in proportion to 1 / zoom, like the view's sides, so its path on the screen is straight and steady.
    const way = t < 1 && target.zoom !== from.zoom ? (1 / from.zoom - 1 / zoom) / (1 / from.zoom - 1 / target.zoom) : t;
    Object.assign(view, { x: from.x + way * (target.x - from.x), y: from.y + way * (target.y - from.y), zoom });
    viewChanged();
    now = { ...view };
    if (t < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
