// This file runs the network and has the terms of the ELBO. It knows nothing of the page: a worker runs it too.

// A network is a list of layers. Each has its own output array `y`, so that a move allocates no more than views.
// Images are square, and their arrays are flat: channel by channel, row by row, of a batch one image behind the other.

const operations = {
  linear({ inputs, outputs, weight, bias }, x, y, n) {
    // Tiles of four outputs by two images: each number that is read serves several products. What juts out repeats the last.
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
  conv3x3(layer, x, y) {
    const { inputs, outputs, weight, bias } = layer, side = Math.sqrt(x.length / inputs), area = side * side, wide = side + 2;
    const padded = (layer.padded ??= new Float32Array(inputs * wide * wide)); // it has zeros around each channel
    for (let i = 0; i < x.length; i++) {
      const channel = Math.floor(i / area), row = Math.floor(i / side) % side;
      padded[(channel * wide + row + 1) * wide + (i % side) + 1] = x[i];
    }
    for (let o = 0; o < outputs; o++) {
      y.fill(bias ? bias[o] : 0, o * area, (o + 1) * area);
      for (let c = 0; c < inputs; c++) {
        const [a, b, d, e, f, g, h, k, l] = weight.subarray((o * inputs + c) * 9, (o * inputs + c) * 9 + 9);
        for (let row = 0, p = c * wide * wide, q = o * area; row < side; row++, p += 2) {
          for (let column = 0; column < side; column++, p++, q++) {
            const r = p + wide, s = r + wide;
            y[q] += a * padded[p] + b * padded[p + 1] + d * padded[p + 2] + e * padded[r] + f * padded[r + 1]
              + g * padded[r + 2] + h * padded[s] + k * padded[s + 1] + l * padded[s + 2];
          }
        }
      }
    }
  },
  conv1x1({ inputs, outputs, weight, bias }, x, y) {
    const area = x.length / inputs;
    for (let o = 0; o < outputs; o++) {
      y.fill(bias ? bias[o] : 0, o * area, (o + 1) * area);
      for (let c = 0; c < inputs; c++) {
        const w = weight[o * inputs + c];
        for (let i = 0; i < area; i++) y[o * area + i] += w * x[c * area + i];
      }
    }
  },
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

// Pairs each pixel of side x side images with its place among factor² as many channels of (side / factor)² pixels.
function shuffle({ factor, side }, length, move) {
  const small = side / factor;
  for (let image = 0; image < length; image++) {
    const channel = Math.floor(image / (side * side)), row = Math.floor(image / side) % side, column = image % side;
    const part = (channel * factor + (row % factor)) * factor + (column % factor);
    move(image, (part * small + Math.floor(row / factor)) * small + Math.floor(column / factor));
  }
}

// Runs the layers on n images, whose arrays lie one behind the other in the Float64Array x: loops are faster if all arrays
// are of one type.
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
// In nats. The formulas are those of loss.py and prior.py.

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

// log p(z) under N(0, I), or under a flow by the change of variables to u ~ N(0, I).
function logPrior(couplings, z) {
  const u = new Float64Array(z), L = u.length;
  let logDet = 0;
  for (const { mask, layers } of couplings ?? []) {
    const st = run(layers, u.map((value, d) => value * mask[d]));
    for (let d = 0; d < L; d++) {
      if (mask[d]) continue; // it stays
      const s = Math.tanh(st[d]);
      u[d] = u[d] * Math.exp(s) + st[L + d];
      logDet += s;
    }
  }
  return logDet - 0.5 * (dot(u, u) + L * LOG_2_PI);
}

// The mean of -log q(z|x) over q(z|x), a Gaussian.
const entropy = (logvar) => logvar.reduce((sum, value) => sum + 0.5 * (value + 1 + LOG_2_PI), 0);
