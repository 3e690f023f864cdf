// Clips of sound: a request each, drawn as their samples come, then played.
import {element} from "./dom.js";
import {checked, dataUrl} from "./fetching.js";
import * as gallery from "./gallery.js";

export const PATH = "v1/audio/speech", PLURAL = "clips", SAVED = "wav";
const WIDTH = 360, CURVE = 48, TONES = 96;  // pixels: the wave lies above its spectrum
const COLUMN = 2;  // pixels that a spectrum is wide
const WINDOW = 256;  // samples of a spectrum
const LOWEST = -60;  // decibels below the loudest tone that are still drawn
const DRAW_EVERY = 100;  // milliseconds

export function body(asked, number) {
  const {n, prompt, size, ...fields} = asked;
  return {input: prompt, ...fields, seed: asked.seed + number, response_format: "wav"};
}

function text(view, place) {
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + place, 4));
}

// the rate of a WAV file of 16 bits, and where its samples begin; null while its head has not come
function head(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let rate = 0;
  for (let place = 12; place + 8 <= bytes.length;) {
    const kind = text(view, place), size = view.getUint32(place + 4, true);
    if (kind === "data") return {rate, start: place + 8};
    if (kind === "fmt " && place + 16 <= bytes.length) rate = view.getUint32(place + 12, true);
    place += 8 + size;
  }
  return null;
}

// a stream's head says no length: the file gets one that does
function file(samples, rate) {
  const view = new DataView(new ArrayBuffer(44)), size = samples.byteLength;
  const put = (place, letters) => [...letters].forEach((letter, at) => view.setUint8(place + at, letter.charCodeAt(0)));
  put(0, "RIFF"), view.setUint32(4, 36 + size, true), put(8, "WAVEfmt "), view.setUint32(16, 16, true);
  view.setUint16(20, 1, true), view.setUint16(22, 1, true), view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true), view.setUint16(32, 2, true), view.setUint16(34, 16, true);
  put(36, "data"), view.setUint32(40, size, true);
  return new Blob([view, samples], {type: "audio/wav"});
}

const HANN = Float32Array.from({length: WINDOW}, (_, place) => 0.5 - 0.5 * Math.cos(2 * Math.PI * (place + 0.5) / WINDOW));
const COSINES = Float32Array.from({length: WINDOW}, (_, turn) => Math.cos(2 * Math.PI * turn / WINDOW));
const SINES = Float32Array.from({length: WINDOW}, (_, turn) => Math.sin(2 * Math.PI * turn / WINDOW));

// the power of each tone around a sample, low ones first
function tones(samples, middle) {
  const seen = Float32Array.from(HANN, (weight, place) => weight * (samples[middle - WINDOW / 2 + place] || 0));
  return Float32Array.from({length: TONES}, (_, number) => {
    const turns = Math.round((number + 0.5) * WINDOW / 2 / TONES);
    let real = 0, imaginary = 0;
    for (let place = 0; place < WINDOW; place++) {
      const turn = turns * place % WINDOW;
      real += seen[place] * COSINES[turn];
      imaginary += seen[place] * SINES[turn];
    }
    return real * real + imaginary * imaginary;
  });
}

// a wave and its spectrum, low tones below, of the samples that there are of `length`
function picture(samples, length) {
  const canvas = element("canvas", null, {width: WIDTH, height: CURVE + TONES}), context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1), half = CURVE / 2;
  for (let x = 0; x < WIDTH * Math.min(1, samples.length / length); x++) {
    const column = samples.subarray(Math.floor(x * length / WIDTH), Math.ceil((x + 1) * length / WIDTH));
    const low = column.reduce((least, value) => Math.min(least, value), 0), high = column.reduce((most, value) => Math.max(most, value), 0);
    context.fillRect(x, half - half * high / peak, 1, Math.max(1, half * (high - low) / peak));
  }
  const columns = [];
  for (let x = 0; (x + COLUMN / 2) * length / WIDTH < samples.length && x < WIDTH; x += COLUMN) {
    columns.push(tones(samples, Math.round((x + COLUMN / 2) * length / WIDTH)));
  }
  const loudest = Math.max(1, ...columns.map((column) => Math.max(...column)));
  columns.forEach((column, x) => column.forEach((power, tone) => {
    context.globalAlpha = Math.max(0, 1 - 10 * Math.log10(Math.max(power, 1e-12) / loudest) / LOWEST);
    context.fillRect(COLUMN * x, CURVE + TONES - 1 - tone, COLUMN, 1);
  }));
  return canvas.toDataURL("image/png");
}

async function one(asked, figure, headers, signal, {facts, seconds}) {
  const sent = {method: "POST", headers: {...headers, "Content-Type": "application/json"}, signal, body: JSON.stringify(asked)};
  const reader = (await checked(PATH, sent)).body.getReader();
  let bytes = new Uint8Array(0), drawn = 0, known = null, samples = new Int16Array(0);
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    const longer = new Uint8Array(bytes.length + value.length);
    longer.set(bytes), longer.set(value, bytes.length);
    bytes = longer;
    known ??= head(bytes);
    if (!known) continue;
    samples = new Int16Array(bytes.slice(known.start, bytes.length - (bytes.length - known.start) % 2).buffer);
    if (Date.now() - drawn < DRAW_EVERY) continue;
    drawn = Date.now();
    gallery.preview(figure, picture(samples, seconds * known.rate), samples.length / (seconds * known.rate));
  }
  if (!known) throw new Error("The answer holds no sound.");
  const label = [asked.input, asked.voice, asked.seed].filter((part) => part !== undefined).join(" · ");
  const sound = await dataUrl(file(samples, known.rate)), source = picture(samples, Math.max(1, samples.length));
  gallery.show(figure, {source, sound, text: label, file: `${asked.seed}.${SAVED}`, settings: facts});
}

export async function make(asked, made, headers, signal, told) {
  await Promise.all(made.map((figure, number) => one(body(asked, number), figure, headers, signal, told)));
}
