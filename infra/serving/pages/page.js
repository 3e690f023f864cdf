import {control, fill, folds} from "./controls.js";
import {$, element} from "./dom.js";
import * as edit from "./edit.js";
import {checked} from "./fetching.js";
import * as films from "./films.js";
import * as gallery from "./gallery.js";
import * as sounds from "./sounds.js";

const TO_FOLD = matchMedia("(max-width: 60rem)");
const MEDIA = {video: films, audio: sounds};  // images are what the rest of this file makes
let champion, controls = [], running = null;

function shown(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(2)));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function describe(list, facts, definitions = {}) {
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === "") continue;
    const {label, explanation, better, unit} = definitions[name] || {};
    const told = element("dd", unit ? `${shown(value)} ${unit}` : shown(value));
    if (explanation) told.append(element("small", better ? `${explanation}; ${better} is better` : explanation));
    list.append(element("dt", label || name.replaceAll("_", " ")), told);
  }
}

function markClass() {
  for (const button of $("classes").children) {
    button.setAttribute("aria-pressed", String(button.textContent.toLowerCase() === $("prompt").value.trim().toLowerCase()));
  }
}

async function load() {
  champion = await (await fetch("champion")).json();
  champion.made = MEDIA[champion.medium];
  champion.edits &&= !champion.made;  // films and sounds are only drawn here
  const sounding = champion.made === sounds, plural = champion.made?.PLURAL || "images";
  document.documentElement.dataset.medium = champion.medium;
  document.documentElement.style.setProperty("--aspect", sounding ? "5 / 2" : champion.size.replace("x", " / "));
  $("title").textContent = `${champion.name} version ${champion.version}, ${sounding ? `up to ${champion.size}` : `${champion.size} pixels`}`;
  $("n-name").textContent = plural[0].toUpperCase() + plural.slice(1);
  for (const name of champion.classes) {
    const button = element("button", name, {type: "button"});
    button.addEventListener("click", () => { $("prompt").value = name; markClass(); });
    $("classes").append(button);
  }
  $("classes").hidden = !champion.classes.length;
  $("prompt").value = champion.classes[0] || "an image";
  for (const name of champion.voices) $("voice").append(element("option", name, {value: name}));
  $("voice-field").hidden = !champion.voices.length;
  $("negative-field").hidden = !champion.guided;
  $("upload-field").hidden = !champion.edits;
  for (const size of champion.own_sizes) $("size").append(element("option", size, {value: size}));
  $("size-field").hidden = champion.own_sizes.length < 2;
  if (champion.edits) gallery.enableEditing(edit.open);
  $("prompt").addEventListener("input", markClass);
  markClass();
  controls = Object.entries(champion.settings_schema)
    .map(([path, schema]) => control(path, schema, champion.settings[path], champion.limits.num_inference_steps)).filter(Boolean);
  for (const {path, label} of controls) $(folds(path) ? "more-settings" : "settings").append(label);
  $("more").hidden = !$("more-settings").children.length;
  $("n").max = champion.limits.n;
  $("n").value = Math.min(4, champion.limits.n);
  describe($("figures"), champion.figures, champion.definitions);
  describe($("lineage"), champion.lineage);
}

function wanted() {
  const body = {prompt: $("prompt").value, n: Number($("n").value)};
  // drawn here rather than by the server, so that the curl line makes the same images
  const seed = $("seed").value === "" ? -1 : Number($("seed").value);
  body.seed = seed === -1 ? Math.floor(Math.random() * 2 ** 31) : seed;
  if (!$("size-field").hidden) body.size = $("size").value;
  if ($("voice").value) body.voice = $("voice").value;
  if ($("negative").value.trim()) body.negative_prompt = $("negative").value;
  fill(body, controls);
  return body;
}

function curl(body) {
  const made = champion.made, asked = made ? made.body(body, 0) : body;
  const quoted = JSON.stringify(asked).replaceAll("'", "'\\''"), saved = made === sounds ? ` -o ${asked.seed}.${made.SAVED}` : "";
  const key = $("key").value ? " -H \"Authorization: Bearer $API_KEY\"" : "";
  const path = made ? made.PATH : "v1/images/generations";
  return `curl -s ${location.origin}/${path} -H 'Content-Type: application/json'${key}${saved} -d '${quoted}'`;
}

function frames(body) {
  const made = [];
  for (let number = 0; number < body.n; number++) made.push(gallery.waiting(`${body.prompt} · ${body.seed + number}`));
  $("gallery").prepend(...made);
  gallery.told();
  if (TO_FOLD.matches) $("gallery-section").scrollIntoView({behavior: "smooth", block: "start"});
  return made;
}

function show(body, made, event) {
  if (event.type.endsWith(".queued")) {
    for (const figure of made) gallery.note(figure, `${event.position} before it`);
    return;
  }
  const source = `data:image/${event.output_format};base64,${event.b64_json}`, figure = made[event.index];
  const text = `${body.prompt} · ${event.seed}`;
  gallery.note(figure, text);
  if (!event.type.endsWith(".completed")) return gallery.preview(figure, source, event.progress);
  gallery.show(figure, {source, text, file: `${event.seed}.${event.output_format}`, settings: facts(body)});
}

function facts(body) {
  const {prompt, n, seed, ...settings} = body;
  return Object.entries(settings).map(([name, value]) => `${name.replaceAll("_", " ")} ${shown(value)}`).join(", ");
}

function keyed(headers) {
  return $("key").value ? {...headers, Authorization: `Bearer ${$("key").value}`} : headers;
}

function askForKey() {
  $("key-field").hidden = false;
  $("tuning").open = true;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      yield JSON.parse(part.split("\n").find((line) => line.startsWith("data: ")).slice(6));
    }
  }
}

// the body and the path of a request: from noise, or from an image
async function request(body) {
  const asked = {...body, stream: true, partial_images: 3, queue_updates: true}, start = edit.chosen();
  if (!start) return ["v1/images/generations", JSON.stringify(asked), {"Content-Type": "application/json"}];
  const form = new FormData();
  for (const [name, value] of Object.entries({...asked, strength: Number($("strength").value)})) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : value);  // a list or a block
  }
  form.append("image", await (await fetch(start.source)).blob(), "image");
  if (start.mask) form.append("mask", start.mask, "mask.png");
  return ["v1/images/edits", form, {}];
}

async function images(body, made) {
  const [path, sent, headers] = await request(body);
  const response = await checked(path, {method: "POST", headers: keyed(headers), signal: running.signal, body: sent});
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    show(body, made, event);
  }
}

async function generate(body, made) {
  const told = {facts: facts(body), seconds: parseFloat(champion.size)};  // a clip's size is its longest length
  try {
    await (champion.made ? champion.made.make(body, made, keyed({}), running.signal, told) : images(body, made));
  } catch (error) {
    if (error.status === 401) askForKey();
    throw error;
  }
}

$("controls").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  if (running) return;
  running = new AbortController();
  $("generate").disabled = true;
  $("cancel").disabled = false;
  $("error").textContent = "";
  const plural = champion.made?.PLURAL || "images";
  $("status").textContent = `Making ${plural}`;
  const body = wanted(), made = frames(body), edits = edit.chosen();
  try {
    await generate(body, made);
    $("curl").textContent = curl(body);
    $("curl-section").hidden = Boolean(edits);  // it has no file to send
    $("status").textContent = `${made.length} ${plural} made`;
  } catch (error) {
    $("status").textContent = "";
    if (error.name !== "AbortError") {
      $("error").textContent = error.message;
      if (TO_FOLD.matches) $("error").scrollIntoView({block: "center"});
    }
  }
  for (const figure of made) if (figure.classList.contains("busy")) figure.remove();
  gallery.told();
  running = null;
  $("generate").disabled = false;
  $("cancel").disabled = true;
});
$("cancel").addEventListener("click", () => running && running.abort());
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
  } catch {  // only secure pages may
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
});
$("tuning").open = !TO_FOLD.matches;
TO_FOLD.addEventListener("change", () => { $("tuning").open = !TO_FOLD.matches; });
gallery.restore();
load().catch((error) => { $("error").textContent = `The server does not answer (${error.message}).`; });
