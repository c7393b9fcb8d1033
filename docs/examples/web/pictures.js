// Pictures as the model takes them: resized as Pillow does it, cropped in the middle, normalized.

const KERNELS = {
  nearest: null,
  bilinear: { reach: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, at: cubic },
  lanczos: { reach: 3, at: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
  box: { reach: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
};

function cubic(x) { // Keys, 1981, with a = -0.5
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}

function sinc(x) { return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x); }

// A file's pixels: upright by its EXIF orientation, transparent parts on white; {data: RGBA, width, height}.
export async function decoded(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}

// The model's view of a picture: {x: normalized (channels, height, width), view: ImageData}.
export function prepared(picture, how) {
  const [channels, height, width] = how.size;
  const planes = split(picture, channels);
  const [wide, high] = resizedTo(picture, how);
  const left = halfEven((wide - width) / 2), top = halfEven((high - height) / 2);
  const x = new Float32Array(channels * height * width), view = new ImageData(width, height);
  planes.forEach((plane, c) => {
    const resized = resize(plane, picture.width, picture.height, wide, high, how.interpolation);
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
      const from = (row + top) * wide + column + left, at = row * width + column;
      x[c * height * width + at] = (resized[from] / 255 - how.mean[c]) / how.std[c];
      for (const i of channels === 1 ? [0, 1, 2] : [c]) view.data[4 * at + i] = resized[from];
      view.data[4 * at + 3] = 255;
    }
  });
  return { x, view };
}

function split(picture, channels) {
  const pixels = picture.width * picture.height;
  const planes = Array.from({ length: channels }, () => new Uint8ClampedArray(pixels));
  for (let i = 0; i < pixels; i++) {
    const [r, g, b] = picture.data.subarray(4 * i, 4 * i + 3);
    if (channels === 1) planes[0][i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // as Pillow's mode L
    else [r, g, b, 255].slice(0, channels).forEach((value, c) => { planes[c][i] = value; });
  }
  return planes;
}

function resizedTo(picture, how) {
  const [, height, width] = how.size;
  if (how.crop === null) return [width, height];
  const [wide, high] = [width, height].map((side) => Math.floor(side / how.crop));
  return wide * picture.height >= high * picture.width
    ? [wide, Math.floor((wide * picture.height) / picture.width)]
    : [Math.floor((high * picture.width) / picture.height), high];
}

function halfEven(value) { // Python's round
  const down = Math.floor(value);
  return value - down === 0.5 ? down + (down % 2) : Math.round(value);
}

function resize(plane, width, height, wide, high, interpolation) {
  const across = along(plane, width, height, wide, interpolation);
  return turned(along(turned(across, wide, height), height, wide, high, interpolation), high, wide);
}

// Each row, from `width` pixels to `wide`; where it shrinks, the kernel is as much wider.
function along(plane, width, height, wide, interpolation) {
  if (width === wide) return plane;
  const kernel = KERNELS[interpolation], scale = width / wide, found = new Uint8ClampedArray(wide * height);
  for (let column = 0; column < wide; column++) {
    const center = (column + 0.5) * scale, grown = Math.max(scale, 1);
    const reach = kernel ? kernel.reach * grown : 0;
    const first = kernel ? Math.max(0, Math.trunc(center - reach + 0.5)) : Math.min(width - 1, Math.floor(center));
    const last = kernel ? Math.min(width, Math.trunc(center + reach + 0.5)) : first + 1;
    const weights = Array.from({ length: last - first }, (_, i) =>
      kernel ? kernel.at((first + i - center + 0.5) / grown) : 1);
    const total = weights.reduce((a, b) => a + b, 0);
    for (let row = 0; row < height; row++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * plane[row * width + first + i];
      found[row * wide + column] = Math.floor(sum / total + 0.5); // clamped to 0 ... 255
    }
  }
  return found;
}

function turned(plane, width, height) {
  const found = new Uint8ClampedArray(plane.length);
  for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
    found[column * height + row] = plane[row * width + column];
  }
  return found;
}
