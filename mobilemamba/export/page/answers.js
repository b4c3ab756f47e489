// From what the network gives to what is on the picture.

/* The likeliest of C logits, or probabilities: [{index, probability}]. */
export function classes(values, most, probabilities) {
  const highest = values.reduce((a, b) => Math.max(a, b));
  const exponents = Array.from(values, (value) => (probabilities ? value : Math.exp(value - highest)));
  const total = probabilities ? 1 : exponents.reduce((a, b) => a + b, 0);
  const all = exponents.map((value, index) => ({ index, probability: value / total }));
  return all.sort((a, b) => b.probability - a.probability).slice(0, most);
}

/* The class of each pixel, of C planes, and the share of each class: [Uint16Array, [{index, share}]]. */
export function pixels(values, count) {
  const size = values.length / count, labels = new Uint16Array(size), best = values.slice(0, size);
  for (let c = 1; c < count; c++)
    for (let i = 0; i < size; i++) {
      const value = values[c * size + i];
      if (value > best[i]) [best[i], labels[i]] = [value, c];
    }
  const counts = new Array(count).fill(0);
  for (const label of labels) counts[label]++;
  const found = counts.map((pixels, index) => ({ index, share: pixels / size })).filter(({ share }) => share > 0);
  return [labels, found.sort((a, b) => b.share - a.share)];
}

const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const both = Math.max(0, width) * Math.max(0, height);
  return both / (area(a) + area(b) - both);
}

/* Objects of candidates (N, 4 + classes), best first: [{index, score, box}], sides as shares of the shown part. */
export function objects(values, count, kept, shown, canvas) {
  const width = 4 + count, share = [canvas[0] / shown[0], canvas[1] / shown[1]];
  // Cells beyond the picture are never trained, so their scores mean nothing.
  const part = shown.map((side) => Math.ceil(side / kept.divisor) * kept.divisor);
  let first = 0;
  const found = kept.levels.flatMap((length, level) => {
    const of = [], [rows, columns, stride] = kept.cells[level];
    for (let n = first; n < first + length; n++) {
      const cell = Math.floor((n - first) / (length / (rows * columns)));
      if ((cell % columns) * stride >= part[0] || Math.floor(cell / columns) * stride >= part[1]) continue;
      for (let index = 0; index < count; index++) {
        const score = values[n * width + 4 + index];
        if (score > kept.score_threshold) of.push({ index, score, at: n });
      }
    }
    first += length;
    return of.sort((a, b) => b.score - a.score).slice(0, kept.candidates);
  });
  for (const one of found)
    one.box = Array.from(values.subarray(one.at * width, one.at * width + 4), (side, i) => Math.min(1, side * share[i % 2]));
  const left = [];
  for (const one of found.filter(({ box }) => box[2] > box[0] && box[3] > box[1]).sort((a, b) => b.score - a.score)) {
    // In pixels, as the network's shapes are.
    const box = one.box.map((side, i) => side * shown[i % 2]);
    if (left.some((other) => other.index === one.index && overlap(other.pixels, box) > kept.overlap)) continue;
    left.push({ ...one, pixels: box });
    if (left.length === kept.max_boxes) break;
  }
  return left.map(({ index, score, box }) => ({ index, score, box }));
}
