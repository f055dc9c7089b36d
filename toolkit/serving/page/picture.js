// Turns an image file into 32 x 32 RGB pixels by the rule of toolkit/inference/image.py: upright, transparency over
// white, the center square, Pillow's antialiased bicubic filter.
"use strict";

const SIDE = 32;
const STRIP_PIXELS = 2 ** 20;
const THUMBNAIL_SIDE = 360;

// Pillow's Resample.c: 8 bits a level, and 2 more for sums that overshoot black and white.
const PRECISION_BITS = 32 - 8 - 2;
const BICUBIC_SUPPORT = 2;

/** A file that gives no pixels; the message is shown behind the file's name. */
class PictureError extends Error {}

/**
 * Decode `file` and apply the picture rule.
 *
 * Returns the picture's width and height, its pixels as Uint8Array (32, 32, 3), and a canvas with a thumbnail.
 * Throws PictureError where the browser cannot decode the file or it exceeds `limits`.
 */
async function readPicture(file, limits) {
  const bitmap = await decode(file, limits);
  try {
    return {
      width: bitmap.width,
      height: bitmap.height,
      pixels: preparePixels(bitmap),
      thumbnail: drawThumbnail(bitmap),
    };
  } finally {
    bitmap.close();
  }
}

async function decode(file, limits) {
  if (file.type === "image/svg+xml") {
    throw new PictureError("is an SVG drawing, which has no pixels: save it as PNG");
  }
  if (file.size === 0) {
    throw new PictureError("is empty");
  }
  if (file.size > limits.bytes) {
    throw new PictureError(`is too large: at most ${limits.bytes.toLocaleString("en")} bytes are read`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none", // color profiles are not applied
      premultiplyAlpha: "none", // else Chromium's WebP decoder rounds colors by one level
    });
  } catch {
    throw new PictureError("is not a picture that this browser can read (PNG, JPEG, WebP, GIF, AVIF, BMP)");
  }
  if (bitmap.width * bitmap.height > limits.pixels) {
    bitmap.close();
    throw new PictureError(`is too large: at most ${limits.pixels.toLocaleString("en")} pixels are decoded`);
  }
  return bitmap;
}

/** The top left corner and the side of the center square, in pixels. */
function centerSquare(width, height) {
  const side = Math.min(width, height);
  return { left: Math.floor((width - side) / 2), top: Math.floor((height - side) / 2), side };
}

function preparePixels(bitmap) {
  const { left, top, side } = centerSquare(bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(side, Math.min(side, stripRows(side)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "white";
  return resizeSquare(side, (firstRow, rows) => {
    context.fillRect(0, 0, side, rows);
    context.drawImage(bitmap, left, top + firstRow, side, rows, 0, 0, side, rows);
    return context.getImageData(0, 0, side, rows).data;
  });
}

/** Rows read at a time: bounds the memory for large photographs, and stays below the canvas limits of phones. */
function stripRows(side) {
  return Math.max(1, Math.floor(STRIP_PIXELS / side));
}

/**
 * Resize a square to 32 x 32 as Pillow's Image.resize does with BICUBIC: first along rows, then along columns, each
 * pass rounded to 8 bits.
 *
 * `readRows(firstRow, rows)` returns RGBA bytes (rows, side, 4); alpha is ignored. Returns Uint8Array (32, 32, 3).
 */
function resizeSquare(side, readRows) {
  const filter = side === SIDE ? null : resampleFilter(side, SIDE);
  const narrow = new Uint8Array(side * SIDE * 3); // (side, 32, 3)
  for (let firstRow = 0; firstRow < side; firstRow += stripRows(side)) {
    const rows = Math.min(stripRows(side), side - firstRow);
    const strip = readRows(firstRow, rows);
    const target = narrow.subarray(firstRow * SIDE * 3);
    if (filter === null) {
      dropAlpha(strip, target);
    } else {
      resizeRows(strip, side, rows, filter, target);
    }
  }
  return filter === null ? narrow : resizeColumns(narrow, filter);
}

/** For each output position the first input position and its fixed-point weights; Pillow's precompute_coeffs. */
function resampleFilter(inputSize, outputSize) {
  const scale = inputSize / outputSize;
  const filterScale = Math.max(scale, 1);
  const support = BICUBIC_SUPPORT * filterScale;
  return Array.from({ length: outputSize }, (_, position) => {
    const center = (position + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), inputSize);
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let tap = 0; tap < weights.length; tap++) {
      weights[tap] = bicubic((tap + first - center + 0.5) * (1 / filterScale));
      sum += weights[tap];
    }
    return { first, weights: Int32Array.from(weights, (weight) => fixedPoint(weight / sum)) };
  });
}

/** Keys' cubic kernel with a = -0.5. */
function bicubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

function fixedPoint(weight) {
  return Math.trunc(weight * 2 ** PRECISION_BITS + (weight < 0 ? -0.5 : 0.5));
}

function level(sum) {
  return Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);
}

/** RGBA (rows, side, 4) -> RGB (rows, 32, 3). */
function resizeRows(source, side, rows, filter, target) {
  const half = 1 << (PRECISION_BITS - 1);
  let out = 0;
  for (let row = 0; row < rows; row++) {
    for (const { first, weights } of filter) {
      let red = half;
      let green = half;
      let blue = half;
      let at = (row * side + first) * 4;
      for (let tap = 0; tap < weights.length; tap++, at += 4) {
        const weight = weights[tap];
        red += source[at] * weight;
        green += source[at + 1] * weight;
        blue += source[at + 2] * weight;
      }
      target[out++] = level(red);
      target[out++] = level(green);
      target[out++] = level(blue);
    }
  }
}

/** RGB (side, 32, 3) -> RGB (32, 32, 3). */
function resizeColumns(source, filter) {
  const stride = SIDE * 3;
  const target = new Uint8Array(SIDE * stride);
  filter.forEach(({ first, weights }, row) => {
    for (let column = 0; column < stride; column++) {
      let sum = 1 << (PRECISION_BITS - 1);
      for (let tap = 0; tap < weights.length; tap++) {
        sum += source[(first + tap) * stride + column] * weights[tap];
      }
      target[row * stride + column] = level(sum);
    }
  });
  return target;
}

function dropAlpha(source, target) {
  for (let from = 0, to = 0; from < source.length; from += 4, to += 3) {
    target.set(source.subarray(from, from + 3), to);
  }
}

/** The whole picture, small, with everything outside the center square dimmed. */
function drawThumbnail(bitmap) {
  const scale = Math.min(1, THUMBNAIL_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const { left, top, side } = centerSquare(canvas.width, canvas.height);
  const outside = new Path2D();
  outside.rect(0, 0, canvas.width, canvas.height);
  outside.rect(left, top, side, side);
  context.fillStyle = "rgb(128 128 128 / 60%)";
  context.fill(outside, "evenodd");
  return canvas;
}

/** The 32 x 32 pixels as a canvas; the style sheet enlarges it without smoothing. */
function drawPixels(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const image = new ImageData(SIDE, SIDE);
  image.data.fill(255);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    image.data.set(pixels.subarray(from, from + 3), to);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
