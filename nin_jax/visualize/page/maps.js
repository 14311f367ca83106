// Class maps and layers as pictures: nin_jax/visualize/cam.py and drawing.py in the browser.

const HEAT = [ // black, violet, orange, pale yellow
  [0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99],
  [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164],
];

function color(value) {
  const place = Math.min(1, Math.max(0, value)) * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((v, c) => v + (HEAT[low + 1][c] - v) * (place - low));
}

/** One class's map from the tensor (1, height, width, K): {width, height, data}, data float. */
export function classMap(maps, k) {
  const [, height, width, classes] = maps.dims;
  const data = Float32Array.from({ length: width * height }, (_, i) => maps.data[i * classes + k]);
  return { width, height, data };
}

/** What speaks for a class more than for the others, blurred by 1.5 cells; see cam.evidence. */
export function evidence(maps, k) {
  const [, height, width, classes] = maps.dims;
  const data = new Float32Array(width * height);
  for (let i = 0; i < data.length; i++) {
    let total = 0;
    for (let c = 0; c < classes; c++) total += maps.data[i * classes + c];
    data[i] = maps.data[i * classes + k] - total / classes;
  }
  const blurred = blur(blur({ width, height, data }, 1), width);
  return { ...blurred, data: blurred.data.map((v) => Math.max(v, 0)) };
}

/** Gaussian along one axis, whose neighbors are `step` apart; mirrored at the border. */
function blur({ width, height, data }, step, sigma = 1.5) {
  const radius = Math.round(4 * sigma);
  const taps = Array.from({ length: 2 * radius + 1 },
    (_, i) => Math.exp(-((i - radius) ** 2) / (2 * sigma ** 2)));
  const total = taps.reduce((a, b) => a + b, 0);
  const size = step === 1 ? width : height;
  const mirrored = (p) => {
    const q = ((p % (2 * size)) + 2 * size) % (2 * size);
    return q < size ? q : 2 * size - 1 - q;
  };
  const out = data.map((_, i) => {
    const place = step === 1 ? i % width : Math.floor(i / width);
    let sum = 0;
    taps.forEach((tap, t) => {
      sum += tap * data[i + (mirrored(place + t - radius) - place) * step];
    });
    return sum / total;
  });
  return { width, height, data: out };
}

/** Lays a map over the picture on the canvas below: warm where it is high, darker where low.
 * @param {HTMLCanvasElement} canvas over the picture, of any size.
 * @param map {width, height, data}.
 * @param size {width, height} of the image that the network saw.
 * @param stride pixels of that image between two cells of the map.
 */
export function layOver(canvas, map, size, stride) {
  const scale = Math.max(1, 448 / Math.max(size.width, size.height));
  canvas.width = Math.round(size.width * scale);
  canvas.height = Math.round(size.height * scale);
  let [low, high] = [Infinity, -Infinity];
  for (const v of map.data) [low, high] = [Math.min(low, v), Math.max(high, v)];
  const place = (pixel, last) => {
    const position = (pixel + 0.5 - (stride - 0.5) * scale) / (stride * scale);
    return Math.min(last, Math.max(0, position));
  };
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let y = 0, i = 0; y < canvas.height; y++) {
    const row = place(y, map.height - 1);
    for (let x = 0; x < canvas.width; x++, i += 4) {
      const value = bilinear(map, row, place(x, map.width - 1));
      const heat = (value - low) / Math.max(high - low, 1e-12);
      pixels.data.set(color(heat), i);
      pixels.data[i + 3] = 255 * (0.35 + 0.4 * heat);
    }
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
}

function bilinear({ width, height, data }, row, column) {
  const [y, x] = [Math.floor(row), Math.floor(column)];
  const [dy, dx] = [row - y, column - x];
  const [y1, x1] = [Math.min(y + 1, height - 1), Math.min(x + 1, width - 1)];
  const top = data[y * width + x] * (1 - dx) + data[y * width + x1] * dx;
  const bottom = data[y1 * width + x] * (1 - dx) + data[y1 * width + x1] * dx;
  return top * (1 - dy) + bottom * dy;
}

/** Draws every channel of a layer, a tensor (1, C, H, W), as a tile. */
export function mosaic(canvas, layer, roomWidth) {
  const [, channels, height, width] = layer.dims;
  const zoom = Math.max(1, Math.round((roomWidth < 500 ? 36 : 56) / Math.max(width, height)));
  const [cellWidth, cellHeight] = [width * zoom + 3, height * zoom + 3];
  const columns = Math.max(1, Math.min(channels, Math.floor((roomWidth + 3) / cellWidth)));
  canvas.width = columns * cellWidth - 3;
  canvas.height = Math.ceil(channels / columns) * cellHeight - 3;
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = false;
  const tile = new OffscreenCanvas(width, height);
  for (let c = 0; c < channels; c++) {
    const values = layer.data.subarray(c * width * height, (c + 1) * width * height);
    const most = values.reduce((a, b) => Math.max(a, b), 1e-12);
    const pixels = new ImageData(width, height);
    values.forEach((value, i) => pixels.data.set([...color(value / most), 255], 4 * i));
    tile.getContext('2d').putImageData(pixels, 0, 0);
    const [x, y] = [(c % columns) * cellWidth, Math.floor(c / columns) * cellHeight];
    context.drawImage(tile, x, y, width * zoom, height * zoom);
  }
}
