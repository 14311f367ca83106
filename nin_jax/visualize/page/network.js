// The network in ONNX Runtime Web: uint8 images in; logits, class maps and layers out.

/** Loads settings, runtime and network; throws an Error whose message is one sentence. */
export async function load() {
  const settings = await (await get('network.json')).json().catch(() => {
    throw new Error(missing('network.json')); // some servers answer with another page
  });
  let ort;
  try {
    ort = await import(new URL('ort.wasm.min.mjs', new URL(settings.runtime, location.href)).href);
  } catch {
    throw new Error(`ONNX Runtime Web does not load from ${settings.runtime}: check the connection, `
      + 'or write the page with a copy of it (--runtime=DIR).');
  }
  ort.env.wasm.wasmPaths = new URL(settings.runtime, location.href).href;
  ort.env.wasm.numThreads = 1; // more need headers that static servers do not send
  const model = new Uint8Array(await (await get('model.onnx')).arrayBuffer());
  let session;
  try {
    session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'] });
  } catch (error) {
    throw new Error(`The network does not start in this browser: ${error.message}.`);
  }
  return { settings, run: queue((image, names) => run(ort, session, image, names)) };
}

async function get(path) {
  const response = await fetch(path).catch(() => null);
  if (!response?.ok) {
    throw new Error(missing(path));
  }
  return response;
}

const missing = (path) => `${path} is missing beside this page: write the page again.`;

async function run(ort, session, image, names) {
  const { width, height, channels, data } = image;
  const images = new ort.Tensor('uint8', data, [1, height, width, channels]);
  const found = await session.run({ images }, names);
  return Object.fromEntries(names.map((name) => [name, found[name]]));
}

/** A session computes one answer at a time. A request that is stale on its turn gives null. */
function queue(task) {
  let last = Promise.resolve();
  return (image, names, isStale) => {
    const next = last.then(() => (isStale() ? null : task(image, names)));
    last = next.catch(() => {});
    return next;
  };
}

/** Probabilities and the order of the classes, the likeliest first. */
export function rank(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (v) => Math.exp(v - most));
  const total = powers.reduce((a, b) => a + b, 0);
  const probabilities = powers.map((p) => p / total);
  const order = probabilities.map((_, k) => k).sort((a, b) => probabilities[b] - probabilities[a]);
  return { probabilities, order };
}
