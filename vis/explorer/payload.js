// This file unpacks the page's data: the network's layers, the test images and their posteriors.
// It needs no import or export: main.py puts it and map.js, which uses it, into one module of page.html.

const $ = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------------ the payload
// The arrays form one gzipped block of bytes. `content` has the position of each.

const content = JSON.parse($("content").textContent);

async function unpack() {
  const text = atob($("payload").textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  $("payload").remove(); // it is no longer needed, and it is megabytes long
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
const bytes = await unpack();

function array({ dtype, offset, length }) {
  const type = { uint8: Uint8Array, int8: Int8Array, int16: Int16Array, float32: Float32Array }[dtype];
  return new type(bytes.slice(offset, offset + length * type.BYTES_PER_ELEMENT));
}

function unpackLayers(layers) {
  for (const layer of layers) {
    if (layer.layers) unpackLayers(layer.layers);
    if (layer.bias) layer.bias = array(layer.bias);
    if (layer.weight) { // weights are stored as integers, with a scale for each output
      const scale = array(layer.scale), weight = new Float64Array(array(layer.weight)), n = weight.length / layer.outputs;
      layer.weight = weight.map((w, i) => w * scale[Math.floor(i / n)]);
    }
  }
  return layers;
}

const decoder = [...unpackLayers(content.decoder), { op: "bias", bias: array(content.outputBias) }];
const encoder = content.encoder && unpackLayers(content.encoder);
const couplings = content.couplings.map(({ mask, layers }) => ({ mask, layers: unpackLayers(layers) })); // [] without a flow
const L = content.kl.length, N_PIXELS = 784;

// The page works with u ~ N(0, I), which the prior maps to z. Without a flow, u is z.
const toPixels = (logits) => logits.map((logit) => 1 / (1 + Math.exp(-logit)));
const decode = (u) => toPixels(run(decoder, fromNormal(couplings, u))); // the pixels are in [0, 1]
function encode(pixels) { // the second half of the encoder's output is the logit of the variance
  const head = new Float32Array(run(encoder, new Float64Array(pixels)));
  const logSigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
  return { mu: head.slice(0, L), logvar: head.slice(L).map(logSigmoid) };
}

// ------------------------------------------------------------------------------------------- the test images

const images = array(content.images), labels = array(content.labels), N = labels.length;
const mus = array(content.mu), logvars = array(content.logvar); // of q(z|x)
const points = array(content.points); // mu on the map, (N, 2)
const [P, Q] = content.plane; // the map shows dimension P to the right and Q upwards

// The card shows an image, its posterior with mean `u` and covariance `shape` on the map, and the ELBO's terms in nats. With a
// flow, `kl` and `shape` have no closed form, so the worker computes them.
function subject(title, pixels, mu, logvar) {
  const { u } = toNormal(couplings, mu), [xx, yy] = [P, Q].map((d) => Math.exp(logvar[d]));
  const closed = couplings.length ? {} : { kl: klDivergence(mu, logvar), shape: { x: u[P], y: u[Q], xx, xy: 0, yy } };
  return { title, pixels, mu, logvar, u, reconstruction: decode(u), ...closed };
}
const testImage = (i) => subject(`Test image ${i.toLocaleString("en")}, a ${labels[i]}`,
  new Float32Array(images.subarray(i * N_PIXELS, (i + 1) * N_PIXELS)).map((grey) => grey / 255),
  mus.slice(i * L, (i + 1) * L), logvars.slice(i * L, (i + 1) * L));
