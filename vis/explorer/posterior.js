// This file is the worker behind *Posterior*: log p(x) and p(z|x) of a two-dimensional model, by quadrature over z.
// main.py puts it into page.html as text, and map.js starts a worker on network.js and it.

// The plane is divided into cells, and in each p(x|z) p(z) counts as what it is in the middle (the midpoint rule). A cell
// is split in three along one axis, so its middle is used again. Where two cells decode to p and p', no image can tell them
// apart better than by D = KL(p||p') + KL(p'||p): for a posterior of deviation s and cells of width h, it is (h / s)². So
// the divergence says how fine the cells must be, for whatever image. The cells and their decoded logits serve all
// images, and what an image adds is one scalar product for each.

const COARSE = 27; // cells along each axis of the first grid
const LOG_PRIOR_DROP = 18; // nats: the grid ends where p(z) is so far below its peak; the mass of N(0, I) beyond is 2e-8
const BATCH = 32; // cells that are split at once
const TOLERANCE = 0.1; // of the bound on the relative error of p(x); the error itself is about a tenth of it
const MAX_CELLS = 20_000; // with their logits they take 70 MB; beyond that they are forgotten
const MAX_LEAVES = 8000;

let model = null, roots = null, nCells = 0, current = 0; // `current` is the number of the latest question

// Decodes places [x, y, width, height], 64 together: more would not stay in a processor's cache.
function makeCells(places) {
  if (!places.length) return [];
  if (places.length > 64) return [...makeCells(places.slice(0, 64)), ...makeCells(places.slice(64))];
  const logits = run(model.decoder, Float64Array.from(places.flatMap(([x, y]) => [x, y])), places.length);
  const nPixels = logits.length / places.length;
  nCells += places.length;
  return places.map(([x, y, width, height], k) => {
    const own = new Float32Array(logits.subarray(k * nPixels, (k + 1) * nPixels)), prior = logPrior(model.couplings, [x, y]);
    return { x, y, width, height, logits: own, prior, normaliser: logNormaliser(own), d: [0, 0], children: null };
  });
}

const logJoint = (cell, pixels) => cell.prior - cell.normaliser + dot(cell.logits, pixels); // log p(x, z) in a cell's middle

// The symmetrised KL divergence between what two cells decode to, in nats.
function divergence({ logits: a }, { logits: b }) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (1 / (1 + Math.exp(-a[i])) - 1 / (1 + Math.exp(-b[i]))) * (a[i] - b[i]);
  return sum;
}

function compare(axis, a, b) { // neighbours along an axis; a flow's p(z) can vary faster than p(x|z)
  const between = divergence(a, b) + Math.abs(a.prior - b.prior);
  for (const cell of [a, b]) cell.d[axis] = Math.max(cell.d[axis], between);
}

function makeRoots() {
  const { centre, reach } = model, width = (2 * reach) / COARSE, at = (k, d) => centre[d] + (k - (COARSE - 1) / 2) * width;
  const places = Array.from({ length: COARSE ** 2 }, (_, k) => [at(k % COARSE, 0), at(Math.floor(k / COARSE), 1), width, width]);
  const density = places.map((place) => logPrior(model.couplings, place.slice(0, 2))), peak = Math.max(...density);
  const inside = places.map((_, k) => k).filter((k) => density[k] > peak - LOG_PRIOR_DROP), grid = [];
  makeCells(inside.map((k) => places[k])).forEach((cell, i) => { grid[inside[i]] = cell; });
  for (const k of inside) {
    if ((k + 1) % COARSE && grid[k + 1]) compare(0, grid[k], grid[k + 1]);
    if (grid[k + COARSE]) compare(1, grid[k], grid[k + COARSE]);
  }
  return inside.map((k) => grid[k]);
}

// Splits cells along the axis on which their neighbours differ most.
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

// The mean of log p(x, z) over q(z|x), by the trapezoidal rule over 4 deviations, plus the entropy of q(z|x).
function elbo(pixels, mu, logvar) {
  const steps = [-4, -3, -2, -1, 0, 1, 2, 3, 4], std = logvar.map((value) => Math.exp(0.5 * value));
  const eps = steps.flatMap((a) => steps.map((b) => [a, b])), weights = eps.map(([a, b]) => Math.exp(-0.5 * (a * a + b * b)));
  const cells = makeCells(eps.map((e) => e.map((step, d) => mu[d] + step * std[d])));
  const values = cells.map((cell) => logJoint(cell, pixels));
  nCells -= eps.length; // they are not kept
  return dot(weights, values) / weights.reduce((a, b) => a + b) + entropy(logvar);
}

// log p(x) from leaves {cell, logJoint}, and of each leaf a bound on its error, relative to p(x). Within a cell the
// density is at most exp(D / 2) times as high as in the middle: a rule of thumb, which missed no mode of 60 test images.
function integrate(leaves) {
  const logMass = leaves.map(({ cell, logJoint }) => logJoint + Math.log(cell.width * cell.height));
  const most = Math.max(...logMass), logP = most + Math.log(logMass.reduce((sum, value) => sum + Math.exp(value - most), 0));
  leaves.forEach((leaf, k) => {
    const [a, b] = leaf.cell.d;
    leaf.error = Math.exp(logMass[k] - logP + Math.min(0.5 * (a + b), 600)) * -Math.expm1(-0.5 * (a + b));
  });
  return { logP, error: leaves.reduce((sum, leaf) => sum + leaf.error, 0) };
}

async function isStale(id) { // waits till newer questions have been heard
  await new Promise((done) => setTimeout(done));
  return id !== current;
}

// Answers with the leaves as they are at first, every 150 milliseconds, and when the bound on the error is small.
async function answer({ id, pixels, mu, logvar }) {
  if (await isStale(id)) return;
  if (nCells > MAX_CELLS) {
    for (const root of roots) root.children = null;
    nCells = roots.length;
  }
  const weigh = (cell) => ({ cell, logJoint: logJoint(cell, pixels) });
  let leaves = roots.map(weigh), { logP, error } = integrate(leaves), bound = NaN, told = performance.now();
  const tell = (done) => {
    const cells = Float64Array.from(leaves.flatMap(({ cell, logJoint }) => [cell.x, cell.y, cell.width, cell.height, logJoint - logP]));
    postMessage({ id, cells, logP, bound, done }, [cells.buffer]);
    told = performance.now();
  };
  tell(false);
  if (await isStale(id)) return;
  bound = elbo(pixels, mu, logvar);
  while (error > TOLERANCE && leaves.length < MAX_LEAVES) {
    if (await isStale(id)) return;
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
    roots = makeRoots();
  } else {
    current = data.id;
    answer(data);
  }
};
