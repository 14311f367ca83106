// From a file, a camera or a drawing to the pixels that the network takes: the same steps, in the
// same order, as nin_jax/data/images.py. An image is {width, height, channels, data}, data row by
// row, uint8.

const LARGEST_SIDE = 4096; // of a canvas that every browser can read back

/** Decodes a picture file, upright; what is transparent becomes white. Throws if it cannot. */
export async function decode(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: 'from-image' });
  try {
    return fromDrawable(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

/** The pixels of anything that a canvas can draw, RGB. */
export function fromDrawable(drawable, width, height) {
  const factor = Math.min(1, LARGEST_SIDE / Math.max(width, height));
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor)));
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(drawable, 0, 0, canvas.width, canvas.height);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const image = empty(canvas.width, canvas.height, 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    for (let c = 0; c < 3; c++) image.data[j++] = rgba[i + c];
  }
  return image;
}

function empty(width, height, channels) {
  return { width, height, channels, data: new Uint8Array(width * height * channels) };
}

/** RGB to the network's channels. Gray images with a light border become negative. */
export function toChannels(image, channels) {
  if (channels === 3) return { image, done: '' };
  const gray = empty(image.width, image.height, 1);
  for (let i = 0, j = 0; j < gray.data.length; i += 3, j++) { // as Pillow's convert('L')
    const [r, g, b] = image.data.subarray(i, i + 3);
    gray.data[j] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  }
  if (borderMedian(gray) < 128) return { image: gray, done: 'turned gray' };
  gray.data.forEach((value, i) => { gray.data[i] = 255 - value; });
  return { image: gray, done: 'turned gray and negative, as its border is light' };
}

function borderMedian({ width, height, data }) {
  const border = [];
  for (let x = 0; x < width; x++) border.push(data[x], data[(height - 1) * width + x]);
  for (let y = 0; y < height; y++) border.push(data[y * width], data[y * width + width - 1]);
  border.sort((a, b) => a - b);
  const middle = border.length / 2; // an even number of pixels
  return (border[middle - 1] + border[middle]) / 2;
}

/** The largest square in the middle. */
export function middleSquare(image) {
  const side = Math.min(image.width, image.height);
  return crop(image, (image.width - side) >> 1, (image.height - side) >> 1, side, side);
}

function crop(image, left, top, width, height) {
  const { channels } = image;
  const out = empty(width, height, channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * image.width + left) * channels;
    out.data.set(image.data.subarray(start, start + width * channels), y * width * channels);
  }
  return out;
}

/** Scales with Lanczos, smoothed where it shrinks, rounding where Pillow does. */
export function resize(image, width, height) {
  if (image.width === width && image.height === height) return image;
  const wide = image.width === width ? image : resizeRows(image, width);
  return height === image.height ? wide : transpose(resizeRows(transpose(wide), height));
}

/** Scales so that the longer side has so many pixels at most. */
export function shrink(image, longest) {
  const factor = Math.min(1, longest / Math.max(image.width, image.height));
  return resize(image, Math.max(1, Math.round(image.width * factor)),
    Math.max(1, Math.round(image.height * factor)));
}

function resizeRows(image, width) {
  const { channels, height } = image;
  const out = empty(width, height, channels);
  const filters = lanczos(image.width, width);
  for (let y = 0; y < height; y++) {
    const row = y * image.width;
    for (let x = 0; x < width; x++) {
      const { first, weights } = filters[x];
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * image.data[(row + first + k) * channels + c];
        }
        out.data[(y * width + x) * channels + c] = Math.min(255, Math.max(0, Math.floor(sum + 0.5)));
      }
    }
  }
  return out;
}

function transpose(image) {
  const { width, height, channels, data } = image;
  const out = empty(height, width, channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++) {
        out.data[(x * height + y) * channels + c] = data[(y * width + x) * channels + c];
      }
    }
  }
  return out;
}

/** For each output pixel, the first input pixel and the weights from there on. */
function lanczos(from, to) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = 3 * stretch;
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) => {
      const x = (first + k - center + 0.5) / stretch;
      return Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0;
    });
    const total = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / total) };
  });
}

/** A drawing, light on black, placed as MNIST's digits are: its box scaled to 20 of 28 pixels, its
 * center of mass in the middle. Null if nothing was drawn. */
export function centerDigit(gray, side) {
  const { width, height, data } = gray;
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let i = 0; i < data.length; i++) {
    if (data[i] < 64) continue;
    const [x, y] = [i % width, Math.floor(i / width)];
    [left, right] = [Math.min(left, x), Math.max(right, x)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
  }
  if (right < 0) return null;
  const box = crop(gray, left, top, right - left + 1, bottom - top + 1);
  const factor = (side * 20 / 28) / Math.max(box.width, box.height);
  const digit = resize(box, Math.max(1, Math.round(box.width * factor)),
    Math.max(1, Math.round(box.height * factor)));
  let [mass, momentX, momentY] = [0, 0, 0];
  digit.data.forEach((value, i) => {
    mass += value;
    momentX += value * (i % digit.width + 0.5);
    momentY += value * (Math.floor(i / digit.width) + 0.5);
  });
  const place = (moment, size) => Math.min(side - size, Math.max(0, Math.round(side / 2 - moment / mass)));
  const [x0, y0] = [place(momentX, digit.width), place(momentY, digit.height)];
  const out = empty(side, side, 1);
  for (let y = 0; y < digit.height; y++) {
    const row = digit.data.subarray(y * digit.width, (y + 1) * digit.width);
    out.data.set(row, (y0 + y) * side + x0);
  }
  return out;
}

/** Shows an image on a canvas of its own size. */
export function paint(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  const pixels = new ImageData(image.width, image.height);
  for (let i = 0; i < image.width * image.height; i++) {
    for (let c = 0; c < 3; c++) {
      pixels.data[4 * i + c] = image.data[i * image.channels + (image.channels === 3 ? c : 0)];
    }
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
}
