// This file is the worker. It computes the terms of the ELBO by an integration rule over q(z|x). For the mode Posterior, it
// computes log p(x) and p(u|x) of a two-dimensional model by quadrature over u ~ N(0, I). main.py puts this file into page.html
// as text, and card.js starts a worker from network.js and this file.

// ------------------------------------------------------------------------------------------------ the ELBO's terms

const MANY = 24, FEWEST = 8; // blocks of points eps ~ N(0, I), in more than two dimensions
const SMALL_ERROR = 0.02; // nats: at this standard error we stop drawing

// The trapezoidal rule on 9 x 9 points, 1 standard deviation apart. With the published weights, its error is at most 0.001 nats.
function trapezoid() {
  const steps = [-4, -3, -2, -1, 0, 1, 2, 3, 4], eps = steps.flatMap((a) => steps.map((b) => [a, b]));
  const weights = eps.map(([a, b]) => Math.exp(-0.5 * (a * a + b * b))), sum = weights.reduce((a, b) => a + b);
  return { eps, weights: weights.map((weight) => weight / sum) };
}

// The spherical-radial rule of Genz and Monahan (1998): points in random orthogonal directions, and their opposites, at a random
// radius. Its means are unbiased, and exact for polynomials of degree 3.
function sphericalRadial(L, normal) {
  const directions = [];
  while (directions.length < L) {
    const v = Float64Array.from({ length: L }, normal);
    for (const other of directions) {
      const along = dot(v, other);
      v.forEach((value, d) => { v[d] = value - along * other[d]; });
    }
    directions.push(v.map((value) => value / Math.sqrt(dot(v, v))));
  }
  const square = Array.from({ length: L + 2 }, () => normal() ** 2).reduce((a, b) => a + b), radius = Math.sqrt(square);
  const signed = (side) => directions.map((v) => v.map((value) => side * radius * value));
  const eps = [new Float64Array(L), ...signed(1), ...signed(-1)];
  return { eps, weights: eps.map((_, k) => (k === 0 ? 1 - L / square : 0.5 / square)) };
}

// Returns means over q(z|x): of -log p(x|z) and log q(z|x) - log p(z), in nats, and of u's map coordinates and their products.
function average({ eps, weights }, { pixels, mu, logvar }) {
  const { decoder, couplings, plane } = model, L = mu.length, std = logvar.map((value) => Math.exp(0.5 * value));
  const means = { recon: 0, kl: -entropy(logvar), x: 0, y: 0, xx: 0, xy: 0, yy: 0 };
  for (let first = 0; first < eps.length; first += 64) { // more at once would not fit into the processor's cache
    const part = eps.slice(first, first + 64), n = part.length;
    const z = Float64Array.from(part.flatMap((e) => Array.from(e, (value, d) => mu[d] + std[d] * value)));
    const { u, logDet } = toNormal(couplings, z, n), logits = run(decoder, z, n);
    for (let k = 0; k < n; k++) {
      const weight = weights[first + k], place = u.subarray(k * L, (k + 1) * L), [x, y] = plane.map((d) => place[d]);
      const own = logits.subarray((k * logits.length) / n, ((k + 1) * logits.length) / n);
      means.recon += weight * (logNormaliser(own) - dot(own, pixels));
      means.kl -= weight * (logNormal(place) + logDet[k]);
      for (const [name, value] of Object.entries({ x, y, xx: x * x, xy: x * y, yy: y * y })) means[name] += weight * value;
    }
  }
  return means;
}

// Answers with the terms, the larger of their standard errors, and the mean and covariance of q(u|x) on the map.
async function answerTerms({ id, pixels, mu, logvar }) {
  const found = [], isExact = rule.length === 1;
  for (const block of rule) {
    if (await isStale("terms", id)) return;
    found.push(average(block, { pixels, mu, logvar }));
    const mean = (value) => found.reduce((sum, one) => sum + value(one), 0) / found.length;
    const error = (value) => Math.sqrt(mean((one) => (value(one) - mean(value)) ** 2) / (found.length - 1));
    const [recon, kl, x, y] = ["recon", "kl", "x", "y"].map((name) => mean((one) => one[name]));
    const stderr = isExact ? 0 : Math.max(...["recon", "kl"].map((name) => error((one) => one[name])));
    const done = isExact || found.length === rule.length || (found.length >= FEWEST && stderr < SMALL_ERROR);
    if (!done && found.length % FEWEST) continue;
    const shape = { x, y, xx: mean((one) => one.xx) - x * x, xy: mean((one) => one.xy) - x * y, yy: mean((one) => one.yy) - y * y };
    postMessage({ kind: "terms", id, recon, kl, stderr, shape, done });
    if (done) return;
  }
}

// ---------------------------------------------------------------------------------------------- the true posterior
// The plane is divided into cells. In each cell, we take p(x|u) p(u) to equal its value in the middle (the midpoint rule). A cell
// is split into three along one axis, so its middle is reused. If two cells decode to p and p', D = KL(p||p') + KL(p'||p)
// measures how well an image can tell them apart. For a posterior of standard deviation s and cells of width h, D is about
// (h / s)². So D determines how fine the cells must be, for any image. The cells and their decoded logits serve all images;
// each image adds one scalar product per cell.

const COARSE = 21; // cells along each axis of the first grid
const EDGE = 6; // the grid ends at this radius; the mass of N(0, I) beyond is 2e-8
const BATCH = 32; // cells that are split at once
const TOLERANCE = 0.1; // for the bound on the relative error of p(x); the error itself is about a tenth of the bound
const MAX_CELLS = 20_000; // with their logits they take 70 MB; beyond that number, all splits are undone
const MAX_LEAVES = 8000;

let model = null, rule = null, roots = null, nCells = 0;
const current = { terms: 0, posterior: 0 }; // the number of the latest question of each kind

// Makes cells at places [x, y, width, height] and decodes them, 64 at once: more would not fit into the processor's cache.
function makeCells(places) {
  if (!places.length) return [];
  if (places.length > 64) return [...makeCells(places.slice(0, 64)), ...makeCells(places.slice(64))];
  const u = places.flatMap(([x, y]) => [x, y]), logits = run(model.decoder, fromNormal(model.couplings, u, places.length), places.length);
  const nPixels = logits.length / places.length;
  nCells += places.length;
  return places.map(([x, y, width, height], k) => {
    const own = new Float32Array(logits.subarray(k * nPixels, (k + 1) * nPixels)), prior = logNormal([x, y]);
    return { x, y, width, height, logits: own, prior, normaliser: logNormaliser(own), d: [0, 0], children: null };
  });
}

const logJoint = (cell, pixels) => cell.prior - cell.normaliser + dot(cell.logits, pixels); // log p(x, u) at a cell's middle

// The symmetrised KL divergence between the pixel distributions of two cells, in nats.
function divergence({ logits: a }, { logits: b }) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (1 / (1 + Math.exp(-a[i])) - 1 / (1 + Math.exp(-b[i]))) * (a[i] - b[i]);
  return sum;
}

function compare(axis, a, b) { // neighbours along an axis
  const between = divergence(a, b) + Math.abs(a.prior - b.prior);
  for (const cell of [a, b]) cell.d[axis] = Math.max(cell.d[axis], between);
}

function makeRoots() {
  const width = (2 * EDGE) / COARSE, at = (k) => (k - (COARSE - 1) / 2) * width;
  const places = Array.from({ length: COARSE ** 2 }, (_, k) => [at(k % COARSE), at(Math.floor(k / COARSE)), width, width]);
  const inside = places.map((_, k) => k).filter((k) => Math.hypot(places[k][0], places[k][1]) < EDGE), grid = [];
  makeCells(inside.map((k) => places[k])).forEach((cell, i) => { grid[inside[i]] = cell; });
  for (const k of inside) {
    if ((k + 1) % COARSE && grid[k + 1]) compare(0, grid[k], grid[k + 1]);
    if (grid[k + COARSE]) compare(1, grid[k], grid[k + COARSE]);
  }
  return inside.map((k) => grid[k]);
}

// Splits each cell along the axis on which it differs most from its neighbours.
function split(cells) {
  const axes = cells.map(({ d }) => (d[1] > d[0] ? 1 : 0));
  const sides = makeCells(cells.flatMap(({ x, y, width, height }, k) => [-1, 1].map((side) => (
    axes[k] ? [x, y + (side * height) / 3, width, height / 3] : [x + (side * width) / 3, y, width / 3, height]))));
  cells.forEach((cell, k) => {
    const [low, high] = [sides[2 * k], sides[2 * k + 1]], { x, y, width, height } = low, axis = axes[k];
    const middle = { ...cell, width, height, d: [...cell.d] };
    cell.children = [low, middle, high];
    for (const child of cell.children) child.d = cell.d.map((d, other) => (other === axis ? 0 : d));
    compare(axis, low, middle);
    compare(axis, middle, high);
  });
}

// Computes log p(x) from leaves {cell, logJoint} and, for each leaf, a bound on its error relative to p(x). We assume that the
// density in a cell is at most exp(D / 2) times its value in the middle, a rule of thumb that missed no mode of 60 test images.
function integrate(leaves) {
  const logMass = leaves.map(({ cell, logJoint }) => logJoint + Math.log(cell.width * cell.height));
  const most = Math.max(...logMass), logP = most + Math.log(logMass.reduce((sum, value) => sum + Math.exp(value - most), 0));
  leaves.forEach((leaf, k) => {
    const [a, b] = leaf.cell.d;
    leaf.error = Math.exp(logMass[k] - logP + Math.min(0.5 * (a + b), 600)) * -Math.expm1(-0.5 * (a + b));
  });
  return { logP, error: leaves.reduce((sum, leaf) => sum + leaf.error, 0) };
}

async function isStale(kind, id) { // first lets newer questions arrive
  await new Promise((done) => setTimeout(done));
  return id !== current[kind];
}

// Answers with the leaves at the start, every 150 milliseconds, and when the bound on the error is small.
async function answerPosterior({ id, pixels }) {
  if (await isStale("posterior", id)) return;
  roots ??= makeRoots();
  if (nCells > MAX_CELLS) {
    for (const root of roots) root.children = null;
    nCells = roots.length;
  }
  const weigh = (cell) => ({ cell, logJoint: logJoint(cell, pixels) });
  let leaves = roots.map(weigh), { logP, error } = integrate(leaves), told = performance.now();
  const tell = (done) => {
    const cells = Float64Array.from(leaves.flatMap(({ cell, logJoint }) => [cell.x, cell.y, cell.width, cell.height, logJoint - logP]));
    postMessage({ kind: "posterior", id, cells, logP, done }, [cells.buffer]);
    told = performance.now();
  };
  tell(false);
  while (error > TOLERANCE && leaves.length < MAX_LEAVES) {
    if (await isStale("posterior", id)) return;
    leaves.sort((a, b) => b.error - a.error);
    const chosen = leaves.slice(0, BATCH).filter((leaf) => leaf.error > TOLERANCE / leaves.length / 4);
    split(chosen.map(({ cell }) => cell).filter((cell) => !cell.children));
    leaves = [...leaves.slice(chosen.length), ...chosen.flatMap(({ cell }) => cell.children.map(weigh))];
    ({ logP, error } = integrate(leaves));
    if (performance.now() > told + 150) tell(false);
  }
  tell(true);
}

onmessage = ({ data }) => {
  if (data.decoder) {
    model = data;
    const normal = makeNormal(0);
    rule = data.L === 2 ? [trapezoid()] : Array.from({ length: MANY }, () => sphericalRadial(data.L, normal));
  } else {
    current[data.kind] = data.id;
    (data.kind === "terms" ? answerTerms : answerPosterior)(data);
  }
};
