// This file runs the network and computes the terms of the ELBO. It does not use the page, because a worker runs it too.

// A network is a list of layers. Each layer has its own output array `y`, so repeated runs allocate little.
// Images are square. The array of a batch is flat: image by image, channel by channel, row by row.

const operations = {
  linear({ inputs, outputs, weight, bias }, x, y, n) {
    // We use tiles of four outputs by two images, so each number read serves several products. Indices past the end are clamped.
    for (let o = 0; o < outputs; o += 4) {
      const o1 = Math.min(o + 1, outputs - 1), o2 = Math.min(o + 2, outputs - 1), o3 = Math.min(o + 3, outputs - 1);
      const w0 = o * inputs, w1 = o1 * inputs, w2 = o2 * inputs, w3 = o3 * inputs;
      for (let p = 0; p < n; p += 2) {
        const q = Math.min(p + 1, n - 1), xp = p * inputs, xq = q * inputs;
        let a = bias ? bias[o] : 0, b = bias ? bias[o1] : 0, c = bias ? bias[o2] : 0, d = bias ? bias[o3] : 0;
        let e = a, f = b, g = c, h = d;
        for (let i = 0; i < inputs; i++) {
          const u = x[xp + i], v = x[xq + i], k = weight[w0 + i], l = weight[w1 + i], m = weight[w2 + i], r = weight[w3 + i];
          a += k * u; b += l * u; c += m * u; d += r * u;
          e += k * v; f += l * v; g += m * v; h += r * v;
        }
        const yp = p * outputs, yq = q * outputs;
        y[yp + o] = a; y[yp + o1] = b; y[yp + o2] = c; y[yp + o3] = d;
        y[yq + o] = e; y[yq + o1] = f; y[yq + o2] = g; y[yq + o3] = h;
      }
    }
  },
  conv3x3: (layer, x, y) => convolve(layer, x, y, 3),
  conv1x1: (layer, x, y) => convolve(layer, x, y, 1),
  residual({ layers }, x, y, n) {
    const f = run(layers, x, n);
    for (let i = 0; i < x.length; i++) y[i] = x[i] + f[i];
  },
  linearPlusMLP({ layers: [linear, ...f] }, x, y, n) {
    const a = run([linear], x, n), b = run(f, x, n);
    for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i];
  },
  silu(_, x, y) {
    for (let i = 0; i < x.length; i++) y[i] = x[i] / (1 + Math.exp(-x[i]));
  },
  bias({ bias }, x, y) {
    for (let i = 0; i < x.length; i++) y[i] = x[i] + bias[i % bias.length];
  },
  pixelShuffle: (layer, x, y) => shuffle(layer, x.length, (image, channels) => { y[image] = x[channels]; }),
  pixelUnshuffle: (layer, x, y) => shuffle(layer, x.length, (image, channels) => { y[channels] = x[image]; }),
};

// A convolution is a linear map of the size x size patch around each pixel. Beyond the image's edges, a patch has zeros.
function convolve(layer, x, y, size) {
  const { inputs, outputs, weight, bias } = layer, area = x.length / inputs, side = Math.sqrt(area), half = (size - 1) / 2;
  const patches = (layer.patches ??= new Float64Array(area * inputs * size * size)), rows = (layer.rows ??= new Float64Array(y.length));
  for (let p = 0, k = 0; p < area; p++) {
    const row = Math.floor(p / side), column = p % side;
    for (let c = 0; c < inputs; c++) {
      for (let i = row - half; i <= row + half; i++) {
        for (let j = column - half; j <= column + half; j++, k++) {
          if (i >= 0 && i < side && j >= 0 && j < side) patches[k] = x[(c * side + i) * side + j];
        }
      }
    }
  }
  operations.linear({ inputs: inputs * size * size, outputs, weight, bias }, patches, rows, area);
  for (let i = 0; i < y.length; i++) y[i] = rows[(i % area) * outputs + Math.floor(i / area)];
}

// Pairs the index of each pixel in side x side images with its index in factor² times as many channels of (side / factor)² pixels.
function shuffle({ factor, side }, length, move) {
  const small = side / factor;
  for (let image = 0; image < length; image++) {
    const channel = Math.floor(image / (side * side)), row = Math.floor(image / side) % side, column = image % side;
    const part = (channel * factor + (row % factor)) * factor + (column % factor);
    move(image, (part * small + Math.floor(row / factor)) * small + Math.floor(column / factor));
  }
}

// Runs the layers on n images, whose arrays follow each other in the Float64Array x. Loops are faster if all arrays
// have one type.
function run(layers, x, n = 1) {
  for (const layer of layers) {
    const isConv = layer.op.startsWith("conv");
    const length = isConv ? (x.length / layer.inputs) * layer.outputs : n * layer.outputs || x.length;
    if (layer.y?.length !== length) layer.y = new Float64Array(length);
    const parts = isConv ? n : 1, from = x.length / parts, to = length / parts; // a convolution takes one image at a time
    for (let k = 0; k < parts; k++) {
      operations[layer.op](layer, x.subarray(k * from, (k + 1) * from), layer.y.subarray(k * to, (k + 1) * to), n);
    }
    x = layer.y;
  }
  return x;
}

// ---------------------------------------------------------------------------------------------- log-probabilities
// All values are in nats. The formulas come from loss.py and prior.py.

const LOG_2_PI = Math.log(2 * Math.PI);

// log p(x|z) is x · logits - logNormaliser(logits). A product of 784 factors of at most 2 does not overflow.
function logNormaliser(logits) {
  let sum = 0, product = 1;
  for (const logit of logits) {
    sum += Math.max(logit, 0);
    product *= 1 + Math.exp(-Math.abs(logit));
  }
  return sum + Math.log(product);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// ------------------------------------------------------------------------------------------------ the prior
// As in prior.py, a flow is a list of couplings between z and u ~ N(0, I). Without couplings, u is z. The arrays of n points
// follow each other.

function scaleAndShift({ mask, layers }, x, n) {
  const L = mask.length, st = run(layers, x.map((value, i) => value * mask[i % L]), n);
  return (i) => { // returns s and t of element i, which are 0 where the mask is 1
    const d = i % L, row = 2 * (i - d);
    return mask[d] ? [0, 0] : [Math.tanh(st[row + d]), st[row + L + d]];
  };
}

// Returns u (n, L) and log |det du/dz| (n).
function toNormal(couplings, z, n = 1) {
  const u = Float64Array.from(z), L = u.length / n, logDet = new Float64Array(n);
  for (const coupling of couplings) {
    const at = scaleAndShift(coupling, u, n);
    for (let i = 0; i < u.length; i++) {
      const [s, t] = at(i);
      u[i] = u[i] * Math.exp(s) + t;
      logDet[Math.floor(i / L)] += s;
    }
  }
  return { u, logDet };
}

// Returns z (n, L), the inverse of `toNormal`.
function fromNormal(couplings, u, n = 1) {
  const z = Float64Array.from(u);
  for (const coupling of [...couplings].reverse()) {
    const at = scaleAndShift(coupling, z, n);
    for (let i = 0; i < z.length; i++) {
      const [s, t] = at(i);
      z[i] = (z[i] - t) * Math.exp(-s);
    }
  }
  return z;
}

const logNormal = (u) => -0.5 * (dot(u, u) + u.length * LOG_2_PI); // log N(u; 0, I)

// The mean of -log q(z|x) over q(z|x), a Gaussian.
const entropy = (logvar) => logvar.reduce((sum, value) => sum + 0.5 * (value + 1 + LOG_2_PI), 0);

// KL(q(z|x) || N(0, I)).
const klDivergence = (mu, logvar) => 0.5 * mu.reduce((sum, mean, d) => sum + mean ** 2 + Math.expm1(logvar[d]) - logvar[d], 0);

// Returns a function that draws from N(0, 1), the same numbers for the same seed (mulberry32 and Box-Muller).
function makeNormal(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}
