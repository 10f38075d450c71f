// This file has the controls beside the map: the card and its terms, the true posterior, the modes and the page's address,
// samples, the interpolation, the drawing pad, pointers and keys. It follows map.js in the module of page.html.

// ---------------------------------------------------------------------------------------------------- the card
// A worker, made of this page's own scripts, finds the ELBO's terms and integrates p(x|u) p(u) over the plane (worker.js).

let worker = null, restTimer = 0, frameIt = false;
const questions = { terms: 0, posterior: 0 }; // the number of the latest question of each kind

function startWorker() {
  const code = new Blob([$("network").textContent, $("worker").textContent], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(code));
  worker.postMessage({ decoder, couplings, L, plane: content.plane });
  worker.onmessage = ({ data }) => {
    if (data.id !== questions[data.kind]) return;
    if (data.kind === "posterior") return showPosterior(data);
    const { recon, kl, stderr, shape } = data;
    Object.assign(state.subject, { recon, kl: state.subject.kl ?? kl, stderr, shape, done: data.done });
    showTerms();
    drawOverlay();
  };
}

function ask(kind) {
  const { pixels, mu, logvar } = state.subject;
  worker.postMessage({ kind, id: ++questions[kind], pixels, mu, logvar });
}

function show(index) {
  const item = index === N ? state.drawing : testImage(index);
  Object.assign(state, { index, subject: item });
  $("title").textContent = item.title;
  $("image").value = index < N ? index : "";
  paint($("original"), item.pixels);
  paint($("reconstruction"), item.reconstruction);
  questions.terms++; // an answer about the previous image would be stale
  clearTimeout(restTimer);
  restTimer = setTimeout(ask, 100, "terms"); // when the pointer rests
  showTerms();
  drawOverlay();
}

// Writes the terms in nats. Terms estimated from draws have a ~, and a decimal only if their standard error allows it.
function showTerms() {
  const { recon, kl, stderr } = state.subject, negElbo = recon + kl, nll = state.posterior ? -state.posterior.logP : NaN;
  const drawn = L > 2, terms = { recon: [recon, drawn], kl: [kl, drawn && couplings.length > 0], "neg-elbo": [negElbo, drawn] };
  for (const [id, [value, isDrawn]] of Object.entries({ ...terms, nll: [nll, false], gap: [negElbo - nll, false] })) {
    const text = isDrawn ? `~${number(value ?? NaN, stderr < 0.05 ? 1 : 0)}` : number(value ?? NaN, 1);
    $(id).textContent = text.includes("NaN") ? "…" : `${text} nats`;
  }
  $("bar").style.setProperty("--share", (100 * nll) / negElbo || 100);
  for (const id of ["nll", "gap"]) $(id).classList.toggle("rough", !state.posterior?.done);
}

// Pins an image, which stays on the card until another is pinned, or unpins it (-1). In Posterior, its posterior shades the map.
function pin(index) {
  if (index < 0 && state.mode === "posterior") setMode("points"); // a posterior needs a pinned image
  play(false);
  clearSamples();
  Object.assign(state, { pinned: index, posterior: null });
  if (index >= 0) {
    show(index);
    setU(state.subject.u); // with more than two dimensions, the map becomes the slice through this point
    if (state.mode === "posterior") {
      frameIt = true;
      ask("posterior"); // the previous shading stays until the first answer
    } else {
      const [px, py] = place(state.subject.u);
      if (Math.abs(px - width / 2) > width / 2 || Math.abs(py - height / 2) > height / 2) fit();
    }
  }
  $("pin").textContent = index < 0 ? "Pin" : "Unpin";
  writeAddress();
  drawOverlay();
}

// ------------------------------------------------------------------------------------------ the true posterior

function showPosterior(answer) {
  const n = answer.cells.length / 5, cell = (k) => answer.cells.subarray(5 * k, 5 * k + 5); // x, y, width, height, log p(u|x)
  const cells = Array.from({ length: n }, (_, k) => cell(k)).sort((a, b) => b[4] - a[4]); // the densest first
  let mass = 0;
  const levels = LEVELS.map(([share, opacity]) => ({ share, opacity, least: Infinity }));
  for (const [, , w, h, logDensity] of cells) {
    for (const level of levels) if (mass < level.share) level.least = logDensity;
    mass += w * h * Math.exp(logDensity);
  }
  state.posterior = { ...answer, cells, levels };
  showTerms();
  if (answer.done && frameIt) framePosterior();
  restartBackground();
  drawOverlay();
}

// Returns the densest cell of the posterior beyond 3 standard deviations of q(u|x) or, if there is none, the densest of all.
// Also returns whether such a cell exists while over a tenth of the posterior lies inside these 3 standard deviations.
function truthBeside({ x, y, xx, xy, yy }) {
  const { cells, levels } = state.posterior, limit = 9 * (xx * yy - xy * xy);
  const isInside = ([a, b]) => yy * (a - x) ** 2 - 2 * xy * (a - x) * (b - y) + xx * (b - y) ** 2 <= limit;
  const beside = cells.find((cell) => cell[4] >= levels[1].least && !isInside(cell));
  const share = cells.filter(isInside).reduce((sum, [, , w, h, logDensity]) => sum + w * h * Math.exp(logDensity), 0);
  return [beside ?? cells[0], beside && share > 0.1];
}

// Moves the map so that 99 % of the posterior and two standard deviations of q(u|x) fill two thirds of it.
function framePosterior() {
  frameIt = false;
  const { cells, levels } = state.posterior, { u, shape } = state.subject;
  const inside = cells.filter((cell) => cell[4] >= levels.at(-1).least), std = shape ? [shape.xx, shape.yy].map(Math.sqrt) : [0, 0];
  const edges = [0, 1].map((d) => [-1, 1].map((side) => side * Math.max(
    side * u[d] + 2 * std[d], ...inside.map((cell) => side * cell[d] + cell[2 + d] / 2))));
  const [x, y] = edges.map(([low, high]) => (low + high) / 2), [wide, high] = edges.map(([low, high]) => high - low);
  glideTo({ x, y, zoom: 1.33 * content.reach / Math.min(width, height) * Math.min(width / wide, height / high) });
}

// ------------------------------------------------------------------------------------- the modes and the address

const LEADS = {
  points: "Each dot is a test image where the encoder puts it. Move over the map, and the decoder draws a digit for each point.",
  manifold: "The digit that the decoder draws at each point of the map.",
  density: "Where the encoder puts the test images: darker means more of them.",
  posterior: "Shading shows where the pinned image could really come from; ellipses show the encoder’s guess.",
};
if (L > 2) LEADS.manifold = `The digit that the decoder draws at each point of the map; the other ${L - 2} dimensions are fixed.`;
let viewBefore = { ...wholeMap }; // the view from which Posterior was entered

function setMode(mode) {
  if (mode === state.mode) return;
  const before = state.mode, isPosterior = mode === "posterior";
  state.mode = mode;
  document.querySelector(`#modes [value=${mode}]`).checked = true;
  $("lead").textContent = LEADS[mode];
  for (const element of [$("scale"), ...document.querySelectorAll(".exact")]) element.hidden = !isPosterior;
  $("interpolation").hidden = isPosterior; // a click then chooses an image
  $("dots").hidden = mode === "points";
  backdrop.clearRect(0, 0, width, height);
  if (isPosterior) {
    forgetEnds();
    viewBefore = { ...view };
    pin(state.index);
  } else if (before === "posterior") {
    questions.posterior++; // its answer is no longer wanted
    state.posterior = null;
    frameIt = false;
    glideTo(viewBefore);
  }
  viewChanged(); // the points are smaller on a background
  restartBackground();
  writeAddress();
}

function writeAddress() { // such as #image=45&mode=posterior
  const { pinned, mode } = state, parts = { ...(pinned >= 0 && pinned < N && { image: pinned }), ...(mode !== "points" && { mode }) };
  const hash = `#${new URLSearchParams(parts)}`;
  if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
}

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1)), image = wanted.get("image"), mode = wanted.get("mode") ?? "points";
  if (/^\d+$/.test(image) && image < N) pin(Number(image));
  if (mode in LEADS && !$(mode)?.hidden) setMode(mode);
}

// ---------------------------------------------------------------------------------------------------- samples

const N_SAMPLES = 11;

// Calls `step(t)` in each frame with t from 0 to 1, or only with 1 if the user prefers reduced motion.
function animate(milliseconds, step) {
  const start = performance.now();
  const frame = (now) => {
    const t = isStill() ? 1 : clamp((now - start) / milliseconds, 0, 1);
    if (step(t) !== false && t < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

// Draws from the prior drop onto the map, and their digits appear. Draws from q(z|x) show the reparameterization:
// eps ~ N(0, I) moves to mu + std * eps.
function sample(source) {
  const normal = makeNormal(crypto.getRandomValues(new Uint32Array(1))[0]), { mu, logvar } = state.subject;
  const samples = Array.from({ length: N_SAMPLES }, (_, k) => {
    const eps = Float64Array.from({ length: L }, normal), isPrior = source === "prior";
    const u = isPrior ? eps : toNormal(couplings, eps.map((value, d) => mu[d] + Math.exp(0.5 * logvar[d]) * value)).u;
    const pixels = decode(u), picture = new OffscreenCanvas(28, 28);
    paint(picture, pixels);
    paint($("sampled"), pixels, 28 * k);
    return { from: isPrior ? [eps[P], fromY(0)] : [eps[P], eps[Q]], to: [u[P], u[Q]], picture: isPrior && picture };
  });
  Object.assign(state, { samples, fallen: 0 });
  if (source === "prior") fit();
  $("sampled").hidden = false;
  animate(1200, (t) => {
    if (state.samples !== samples) return false; // newer ones have replaced them
    state.fallen = t * t;
    drawOverlay();
  });
}

function clearSamples() {
  state.samples = [];
  $("sampled").hidden = true;
  drawOverlay();
}

// -------------------------------------------------------------------------------------------- interpolation

const between = (t) => state.ends[0].u.map((a, d) => a + t * (state.ends[1].u[d] - a));

// A click pins the image under the cursor, or unpins it. Once A is chosen, a click sets B, an image or any place on the map.
function choose() {
  const index = nearest(state.u[P], state.u[Q]);
  if (state.ends.length === 1) addEnd(index);
  else if (index >= 0) pin(index === state.pinned ? -1 : index);
}

function addEnd(index) { // an image's index, or -1 for the cursor
  const item = index === N ? state.drawing : testImage(Math.max(0, index));
  const name = index < 0 ? "a place on the map" : index === N ? "your drawing" : `a ${labels[index]}`;
  if (state.ends.length === 2) forgetEnds();
  state.ends.push({ u: (index < 0 ? state.u : item.u).slice(), name });
  $("ends").textContent = `From A, ${state.ends[0].name}, ` + (state.ends.length === 2 ? `to B, ${name}.` : "to … choose B on the map.");
  if (state.ends.length === 2) {
    for (let i = 0; i <= 10; i++) paint($("strip"), decode(between(i / 10)), 28 * i);
    $("strip").hidden = $("player").hidden = false;
    setT(0);
    play(!isStill());
  }
  drawOverlay();
}

function forgetEnds() {
  play(false);
  state.ends = [];
  $("strip").hidden = $("player").hidden = true;
  $("ends").textContent = "From A, the pinned image or the cursor, to B, any point of the map.";
  drawOverlay();
}

function setT(t) { // the large digit follows
  state.t = t;
  $("t").value = t;
  setU(between(t));
}

function play(on) {
  const started = on && !state.playing;
  state.playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  if (!started) return;
  const offset = Math.acos(1 - 2 * state.t) / Math.PI, start = performance.now(); // it continues from t
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

// Returns the strokes in MNIST's format: 28 x 28 pixels, of which the digit's longer side takes 20, with the centre of mass
// in the middle.
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
  pin(N);
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
  if (state.pinned === N) pin(-1);
  if (state.index === N) show(0);
  drawOverlay();
}

// --------------------------------------------------------------------------------------- pointers and keys

const pointers = new Map(); // the position of each pressed pointer
let travelled = 0; // pixels since the first press; in a click they are few

const onMap = ({ clientX, clientY }) => { // we avoid event.offsetX, which is rounded
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
    if (pointers.size === 2 || (event.pointerType === "mouse" && travelled > 4)) { // with two fingers, each moves the map by half
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

const arrowKeys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
$("map").onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return; // these keys are the browser's own
  const actions = { "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), Home: fit, Enter: choose };
  actions[" "] = () => state.ends.length === 2 && play(!state.playing);
  for (const [key, [dx, dy]] of Object.entries(arrowKeys)) {
    actions[key] = () => {
      const step = (event.shiftKey ? 50 : 8) / scale();
      moveTo(state.u[P] + dx * step, state.u[Q] + dy * step);
      const [px, py] = place(state.u); // the map follows the cursor
      view.x += (px - clamp(px, 30, width - 30)) / scale();
      view.y -= (py - clamp(py, 30, height - 30)) / scale();
      viewChanged();
    };
  }
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
};
document.addEventListener("keydown", ({ key }) => { // Esc removes the interpolation, else the samples, else the pin
  if (key !== "Escape" || $("words").matches(":popover-open")) return;
  if (state.ends.length) forgetEnds();
  else if (state.samples.length) clearSamples();
  else pin(-1);
});

$("in").onclick = () => zoomBy(1.5);
$("out").onclick = () => zoomBy(1 / 1.5);
$("fit").onclick = fit;
$("modes").onchange = (event) => setMode(event.target.value);
$("pin").onclick = () => pin(state.pinned < 0 ? state.index : -1);
$("image").onchange = () => $("image").value !== "" && $("image").checkValidity() && pin(Number($("image").value));
$("random").onclick = () => pin(Math.floor(Math.random() * N));
$("sample-prior").onclick = () => sample("prior");
$("sample-q").onclick = () => sample("q");
$("from").onclick = () => {
  forgetEnds();
  addEnd(state.pinned);
};
$("dots").onclick = () => {
  state.dots = !state.dots;
  $("dots").setAttribute("aria-pressed", state.dots);
  viewChanged();
};
["A posterior with two modes", "A poor fit", "A good fit"].slice(0, content.presets.length).forEach((text, k) => {
  const button = Object.assign(document.createElement("button"), { textContent: text });
  button.onclick = () => {
    pin(content.presets[k]);
    setMode("posterior");
  };
  $("presets").append(button);
});

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
  setT(clamp((event.offsetX / $("strip").clientWidth) * 1.1 - 0.05, 0, 1)); // t is 0 in the middle of the first picture
};

function setLegend(shown) {
  state.shown = shown;
  [...$("legend").querySelectorAll("[aria-pressed]:not(#dots)")].forEach((button, digit) => button.setAttribute("aria-pressed", shown[digit]));
  $("all").textContent = shown.every(Boolean) ? "None" : "All";
  viewChanged();
}
content.colours.forEach((_, digit) => {
  const button = document.createElement("button");
  button.innerHTML = `<i style="--colour: var(--digit-${digit})"></i>${digit}`;
  button.onclick = () => setLegend(state.shown.map((on, other) => (other === digit ? !on : on)));
  button.ondblclick = () => setLegend(state.shown.map((_, other) => other === digit));
  button.setAttribute("aria-pressed", true);
  $("legend").append(button);
});
$("legend").append($("all"), $("dots"));
$("all").onclick = () => setLegend(Array(10).fill(!state.shown.every(Boolean)));

content.sliders.forEach((d, k) => {
  const label = document.createElement("label"), range = `min="${-content.reach}" max="${content.reach}" step="0.01"`;
  label.innerHTML = `${subscript(d)} <input type="range" ${range}><span></span><small>${number(content.kl[d], 1)} nats</small>`;
  const [input, output] = [label.querySelector("input"), label.querySelector("span")];
  input.oninput = () => setU(state.u.map((value, other) => (other === d ? Number(input.value) : value)));
  sliders.push({ d, input, output });
  label.hidden = k >= 8;
  $("sliders").append(label);
});
$("latent").hidden = sliders.length === 0;
$("all-sliders").hidden = sliders.length <= 8;
$("all-sliders").textContent = `Show all ${sliders.length}`;
$("all-sliders").onclick = () => {
  $("sliders").querySelectorAll("label").forEach((label) => { label.hidden = false; });
  $("all-sliders").hidden = true;
};

$("posterior").hidden = L !== 2;
$("density").hidden = couplings.length > 0;
$("levels").innerHTML = [...LEVELS.map(([share, opacity]) => [opacity, `${100 * share} %`]), [FAINT, "the rest"]]
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

startWorker();
$("name").textContent = `${content.name}, ${N.toLocaleString("en")} test images`;
$("lead").textContent = LEADS.points;
$("image").max = N - 1;
setTheme(systemDark.matches);
forgetEnds();
new ResizeObserver(resize).observe($("frame"));
resize();
show(0);
for (let i = 0; i < 10; i++) setU(state.subject.u); // a loop's first runs are slow, so we do them before the first move
readAddress();
addEventListener("hashchange", readAddress);

// This is for the tests and for the browser's console. explorer.decode([0, 1]) gives 784 pixels in [0, 1],
// explorer.encode(pixels) gives {mu, logvar}, explorer.testImage(i) gives the data of a test image, and
// explorer.pin(i) pins it to the card. explorer.place(u) gives the position of u in the window, and
// explorer.at(x, y) gives the point of the map at a position in the window.
window.explorer = { content, state, view, colours, decode, encode, testImage, pin,
  place(u) {
    const [left, top] = onMap({ clientX: 0, clientY: 0 }), [px, py] = place(u);
    return [px - left, py - top];
  },
  at(clientX, clientY) {
    const [px, py] = onMap({ clientX, clientY });
    return [fromX(px), fromY(py)];
  },
};
