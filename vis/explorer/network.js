// This file unpacks the cargo and runs the network: the decoder, the encoder, a flow, and the terms of the ELBO.
// It needs no import or export: main.py puts it and map.js, which uses it, into one module of page.html.

const $ = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------------ the cargo
// The arrays lie in one gzipped stretch of bytes. `content` says which of them lies where.

const content = JSON.parse($("content").textContent);

async function unpack() {
  const text = atob($("cargo").textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  $("cargo").remove(); // it is no longer needed, and it is megabytes long
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
const bytes = await unpack();

function array({ dtype, offset, length }) {
  const type = { uint8: Uint8Array, int8: Int8Array, int16: Int16Array, float32: Float32Array }[dtype];
  return new type(bytes.slice(offset, offset + length * type.BYTES_PER_ELEMENT));
}

// ---------------------------------------------------------------------------------------------- the network
// A network is a list of layers. Each has its own output array `y`, so that a move allocates nothing.
// Images are square, and their arrays are flat: channel by channel, row by row.

function unpackLayers(layers) {
  for (const layer of layers) {
    if (layer.layers) unpackLayers(layer.layers);
    if (layer.bias) layer.bias = array(layer.bias);
    if (layer.weight) { // it comes as whole numbers, with a scale for each output
      const scale = array(layer.scale), weight = new Float32Array(array(layer.weight)), n = weight.length / layer.outputs;
      layer.weight = weight.map((w, i) => w * scale[Math.floor(i / n)]);
    }
  }
  return layers;
}

const operations = {
  linear({ inputs, outputs, weight, bias }, x, y) {
    const fours = inputs - (inputs % 4);
    for (let o = 0; o < outputs; o++) {
      let a = bias ? bias[o] : 0, b = 0, c = 0, d = 0; // with four sums an addition need not wait for the one before
      for (let i = 0, w = o * inputs; i < fours; i += 4, w += 4) {
        a += weight[w] * x[i];
        b += weight[w + 1] * x[i + 1];
        c += weight[w + 2] * x[i + 2];
        d += weight[w + 3] * x[i + 3];
      }
      for (let i = fours; i < inputs; i++) a += weight[o * inputs + i] * x[i];
      y[o] = a + b + c + d;
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
  residual({ layers }, x, y) {
    const f = run(layers, x);
    for (let i = 0; i < x.length; i++) y[i] = x[i] + f[i];
  },
  shortcut({ layers: [linear, ...f] }, x, y) {
    const a = run([linear], x), b = run(f, x);
    for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i];
  },
  silu(_, x, y) {
    for (let i = 0; i < x.length; i++) y[i] = x[i] / (1 + Math.exp(-x[i]));
  },
  bias({ bias }, x, y) {
    for (let i = 0; i < x.length; i++) y[i] = x[i] + bias[i];
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

function run(layers, x) {
  for (const layer of layers) {
    layer.y ??= new Float32Array(layer.op.startsWith("conv") ? (x.length / layer.inputs) * layer.outputs : layer.outputs ?? x.length);
    operations[layer.op](layer, x, layer.y);
    x = layer.y;
  }
  return x;
}

const decoder = unpackLayers(content.decoder), encoder = content.encoder && unpackLayers(content.encoder);
const L = content.kl.length, N_PIXELS = 784;

const decodeLogits = (z) => run(decoder, z);
const toPixels = (logits) => logits.map((logit) => 1 / (1 + Math.exp(-logit)));
const decode = (z) => toPixels(decodeLogits(z)); // the pixels are in [0, 1]
function encode(pixels) { // the second half of its output is the logit of the variance
  const head = run(encoder, pixels), logSigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
  return { mu: head.slice(0, L), logvar: head.slice(L).map(logSigmoid) };
}

// With a flow the KL divergence has no closed form. It is then estimated by the mean of log q(z|x) - log p(z) over fixed
// draws of z, as in prior.py. `eps` holds the draws one behind the other.
const couplings = content.prior?.couplings.map(unpackLayers), eps = content.prior && array(content.prior.eps);
function klDivergence(mu, logvar) {
  let kl = 0;
  if (!couplings) {
    for (let d = 0; d < L; d++) kl += 0.5 * (mu[d] ** 2 + Math.expm1(logvar[d]) - logvar[d]);
    return kl;
  }
  for (let k = 0; k < eps.length; k += L) {
    const u = mu.map((mean, d) => mean + Math.exp(0.5 * logvar[d]) * eps[k + d]); // it begins as z
    for (const layers of couplings) {
      const a = layers[0].inputs, b = L - a, st = run(layers, u.reverse().subarray(0, a)); // if L is odd, a varies
      for (let i = 0; i < b; i++) {
        const s = Math.tanh(st[i]);
        u[a + i] = u[a + i] * Math.exp(s) + st[b + i];
        kl -= s;
      }
    }
    for (let d = 0; d < L; d++) kl += 0.5 * (u[d] ** 2 - eps[k + d] ** 2 - logvar[d]);
  }
  return (kl * L) / eps.length;
}

// ------------------------------------------------------------------------------------------- the test images

const images = array(content.images), labels = array(content.labels), N = labels.length;
const mus = array(content.mu), logvars = array(content.logvar);

// The card shows an image with its posterior and the ELBO's two terms, in nats. The formulas are those of loss.py.
function subject(title, pixels, mu, logvar) {
  const logits = decodeLogits(mu);
  let recon = 0;
  for (let i = 0; i < N_PIXELS; i++) recon += Math.max(logits[i], 0) - logits[i] * pixels[i] + Math.log1p(Math.exp(-Math.abs(logits[i])));
  return { title, pixels, mu, logvar, recon, kl: klDivergence(mu, logvar), reconstruction: toPixels(logits) };
}
const testImage = (i) => subject(`Test image ${i.toLocaleString("en")}, a ${labels[i]}`,
  new Float32Array(images.subarray(i * N_PIXELS, (i + 1) * N_PIXELS)).map((grey) => grey / 255),
  mus.slice(i * L, (i + 1) * L), logvars.slice(i * L, (i + 1) * L));
