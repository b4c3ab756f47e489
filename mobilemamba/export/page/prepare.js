// From a picture's pixels to the numbers that the network takes, as Pillow, torchvision and timm do it in training:
// a browser's own scaling would give other pixels, and so other answers.

/* Pixels {data, width, height}: RGB, 8 bits, by row. */

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const cubic = (a) => (x) =>
  x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
// Each with the distance from its centre beyond which it is 0.
const KERNELS = {
  box: [0.5, (x) => (x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  hamming: [1, (x) => (x < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, cubic(-0.5)],
  lanczos: [3, (x) => (x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/* For each place along a side: the first source pixel, and the weights of those from it on. */
function weights(from, to, interpolation, antialias) {
  const scale = from / to;
  if (interpolation === "nearest") {
    let at = antialias ? scale / 2 : 0; // added up, as others do, or it would be rounded to another side at times
    return Array.from({ length: to }, () => [Math.min(from - 1, Math.floor(at)), [1], (at += scale)]);
  }
  let [reach, kernel] = KERNELS[interpolation];
  if (!antialias && interpolation === "bicubic") kernel = cubic(-0.75);
  const wide = antialias ? Math.max(1, scale) : 1;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    let first = Math.floor(centre - reach * wide + 0.5);
    let last = Math.floor(centre + reach * wide + 0.5);
    if (antialias) [first, last] = [Math.max(0, first), Math.min(from, last)];
    const of = Array.from({ length: last - first }, (_, j) => kernel(Math.abs(first + j - centre + 0.5) / wide));
    const total = of.reduce((a, b) => a + b, 0);
    const normed = of.map((value) => value / total);
    if (antialias) return [first, normed];
    const inside = new Map(); // what lies beyond the edge is as the edge
    normed.forEach((value, j) => {
      const at = Math.min(from - 1, Math.max(0, first + j));
      inside.set(at, (inside.get(at) ?? 0) + value);
    });
    const start = Math.min(...inside.keys());
    return [start, Array.from({ length: inside.size }, (_, j) => inside.get(start + j) ?? 0)];
  });
}

const ONE = 2 ** 22; // of Pillow's weights of 8-bit pixels, whole numbers, whose sums are rounded up from a half

/* Values (height, width, channels) at another size; 8 bits stay such. */
export function scaled(source, width, height, newWidth, newHeight, channels, interpolation, antialias = true) {
  const bytes = source instanceof Uint8ClampedArray, Kind = source.constructor;
  const whole = bytes && antialias; // else rounded once, at the end
  const of = (from, to) =>
    weights(from, to, interpolation, antialias).map(([first, w]) => [first, whole ? w.map((v) => Math.round(v * ONE)) : w]);
  const value = whole ? (sum) => Math.floor(sum / ONE + 0.5) : bytes ? (sum) => Math.floor(sum + 0.5) : (sum) => sum;
  const across = new (whole ? Kind : Float32Array)(newWidth * height * channels);
  of(width, newWidth).forEach(([first, of], x) => {
    for (let y = 0; y < height; y++)
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let j = 0; j < of.length; j++) sum += of[j] * source[(y * width + first + j) * channels + c];
        across[(y * newWidth + x) * channels + c] = whole ? value(sum) : sum; // which clips
      }
  });
  const result = new Kind(newWidth * newHeight * channels);
  const row = newWidth * channels;
  of(height, newHeight).forEach(([first, of], y) => {
    for (let x = 0; x < row; x++) {
      let sum = 0;
      for (let j = 0; j < of.length; j++) sum += of[j] * across[(first + j) * row + x];
      result[y * row + x] = value(sum);
    }
  });
  return result;
}

function resized(picture, width, height, how) {
  if (width === picture.width && height === picture.height) return picture;
  // Pillow, which prepares for classifiers, takes the nearest pixel by its centre, torchvision by its corner.
  const antialias = how.task === "classification" || (how.antialias && how.interpolation !== "nearest");
  const { data } = picture;
  return { data: scaled(data, picture.width, picture.height, width, height, 3, how.interpolation, antialias), width, height };
}

const half = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // Python's: to the even one

/* A rectangle of a picture, black where that does not reach. */
function cut(picture, left, top, width, height) {
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = Math.max(0, -top); y < Math.min(height, picture.height - top); y++) {
    const from = Math.max(0, left), to = Math.min(picture.width, left + width);
    const row = picture.data.subarray(((top + y) * picture.width + from) * 3, ((top + y) * picture.width + to) * 3);
    data.set(row, (y * width + from - left) * 3);
  }
  return { data, width, height };
}

/* timm's: the shorter side to the size over crop_pct, then the centre. */
function centre(picture, how) {
  const [height, width] = how.img_size;
  const [tall, wide] = how.img_size.map((side) => Math.floor(side / how.crop_pct));
  let size;
  if (tall === wide) {
    const short = Math.min(picture.width, picture.height);
    size = [picture.width, picture.height].map((side) => (side === short ? tall : Math.floor((tall * side) / short)));
  } else {
    const ratio = Math.min(picture.height / tall, picture.width / wide);
    size = [picture.width, picture.height].map((side) => half(side / ratio));
  }
  const small = resized(picture, ...size, how);
  const left = small.width < width ? -Math.floor((width - small.width) / 2) : half((small.width - width) / 2);
  const top = small.height < height ? -Math.floor((height - small.height) / 2) : half((small.height - height) / 2);
  return cut(small, left, top, width, height);
}

const fitted = (picture, factor) =>
  [picture.width, picture.height].map((side) => Math.max(1, Math.floor(side * factor + 0.5)));

function prepared(picture, how) {
  const short = Math.min(picture.width, picture.height), long = Math.max(picture.width, picture.height);
  const [height, width] = how.img_size;
  if (how.task === "classification") return centre(picture, how);
  if (how.task === "segmentation") {
    const side = Math.min(height, width);
    return resized(picture, ...fitted(picture, Math.min(side / short, (4 * side) / long)), how);
  }
  if (how.resize === "stretch") return resized(picture, width, height, how);
  return resized(picture, ...fitted(picture, Math.min(height / short, width / long)), how);
}

/* The network's input (1, 3, height, width), and which part [width, height] of it the picture takes. */
export function input(picture, how, [height, width]) {
  const seen = prepared(picture, how);
  const normed = Float32Array.from(seen.data, (value, i) => (value / 255 - how.mean[i % 3]) / how.std[i % 3]);
  let [values, shown] = [normed, [seen.width, seen.height]];
  if (how.task === "segmentation") shown = [width, height];
  if (how.task === "detection") shown = fitted(seen, Math.min(1, width / seen.width, height / seen.height));
  if (shown[0] !== seen.width || shown[1] !== seen.height)
    values = scaled(normed, seen.width, seen.height, ...shown, 3, "bilinear");
  const planes = new Float32Array(3 * height * width);
  for (let y = 0; y < shown[1]; y++)
    for (let x = 0; x < shown[0]; x++)
      for (let c = 0; c < 3; c++) planes[(c * height + y) * width + x] = values[(y * shown[0] + x) * 3 + c];
  return [planes, shown];
}
