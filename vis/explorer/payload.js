// This file unpacks the page's data: the network's layers, the test images and their posteriors.
// It needs no import or export: main.py puts it and map.js, which uses it, into one module of page.html.

const $ = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------------ the payload
// The arrays lie in one gzipped stretch of bytes. `content` says which of them lies where.

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
    if (layer.weight) { // it comes as whole numbers, with a scale for each output
      const scale = array(layer.scale), weight = new Float64Array(array(layer.weight)), n = weight.length / layer.outputs;
      layer.weight = weight.map((w, i) => w * scale[Math.floor(i / n)]);
    }
  }
  return layers;
}

const decoder = unpackLayers(content.decoder), encoder = content.encoder && unpackLayers(content.encoder);
const couplings = content.prior?.couplings.map(({ mask, layers }) => ({ mask, layers: unpackLayers(layers) })), eps = content.prior && array(content.prior.eps);
const L = content.kl.length, N_PIXELS = 784;

const decodeLogits = (z) => run(decoder, new Float64Array(z));
const toPixels = (logits) => logits.map((logit) => 1 / (1 + Math.exp(-logit)));
const decode = (z) => toPixels(decodeLogits(z)); // the pixels are in [0, 1]
function encode(pixels) { // the second half of its output is the logit of the variance
  const head = new Float32Array(run(encoder, new Float64Array(pixels))), logSigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
  return { mu: head.slice(0, L), logvar: head.slice(L).map(logSigmoid) };
}

// With a flow the KL divergence has no closed form. It is then estimated by the mean of log q(z|x) - log p(z) over fixed
// draws of z, as in prior.py. `eps` holds the draws one behind the other, with exactly the variances of N(0, I).
function klDivergence(mu, logvar) {
  let kl = 0;
  if (!couplings) {
    for (let d = 0; d < L; d++) kl += 0.5 * (mu[d] ** 2 + Math.expm1(logvar[d]) - logvar[d]);
    return kl;
  }
  for (let k = 0; k < eps.length; k += L) {
    kl -= logPrior(couplings, mu.map((mean, d) => mean + Math.exp(0.5 * logvar[d]) * eps[k + d]));
  }
  return (kl * L) / eps.length - entropy(logvar);
}

// ------------------------------------------------------------------------------------------- the test images

const images = array(content.images), labels = array(content.labels), N = labels.length;
const mus = array(content.mu), logvars = array(content.logvar);

// The card shows an image with its posterior and the ELBO's two terms, in nats. The formulas are those of loss.py.
function subject(title, pixels, mu, logvar) {
  const logits = decodeLogits(mu), recon = logNormaliser(logits) - dot(logits, pixels);
  return { title, pixels, mu, logvar, recon, kl: klDivergence(mu, logvar), reconstruction: toPixels(logits) };
}
const testImage = (i) => subject(`Test image ${i.toLocaleString("en")}, a ${labels[i]}`,
  new Float32Array(images.subarray(i * N_PIXELS, (i + 1) * N_PIXELS)).map((grey) => grey / 255),
  mus.slice(i * L, (i + 1) * L), logvars.slice(i * L, (i + 1) * L));
