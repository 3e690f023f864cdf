// The images and clips that were made: shown, enlarged or played, and kept in the browser's own database over a reload.
import {$, element} from "./dom.js";

const KEPT = 200;  // images
let kept = null, viewed = null, onEdit = null;

function database() {
  kept ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open("latent-foundry", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("images", {keyPath: "number", autoIncrement: true});
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  return kept;
}

async function transaction(mode, work) {
  try {
    const store = (await database()).transaction("images", mode).objectStore("images");
    return await new Promise((resolve, reject) => {
      const asked = work(store);
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
  } catch {
    return undefined;  // a browser that keeps nothing still shows
  }
}

async function keep(item) {
  const number = await transaction("readwrite", (store) => store.add(item));
  if (number > KEPT) await transaction("readwrite", (store) => store.delete(IDBKeyRange.upperBound(number - KEPT)));
}

export async function restore() {
  for (const item of await transaction("readonly", (store) => store.getAll()) || []) {
    const figure = waiting(item.text);
    $("gallery").prepend(figure);
    finish(figure, item);
  }
  told();
}

export function told() {
  const count = $("gallery").children.length;
  $("empty").hidden = count > 0;
  $("clear").hidden = !$("gallery").querySelector("figure:not(.busy)");
}

export function waiting(text) {
  const figure = element("figure", null, {className: "busy"});
  const frame = element("div", null, {className: "frame"});
  frame.append(element("img", null, {alt: text, hidden: true}));
  const caption = element("figcaption", null);
  caption.append(element("span", text));
  figure.append(frame, caption);
  return figure;
}

export function preview(figure, source, progress) {
  const image = figure.querySelector("img");
  image.src = source;
  image.hidden = false;
  figure.style.setProperty("--progress", progress);
}

export function note(figure, text) {
  figure.querySelector("figcaption span").textContent = text;
}

function finish(figure, item) {
  preview(figure, item.source, 1);
  figure.classList.remove("busy");
  note(figure, item.text);
  figure.item = item;
  const button = element("button", null, {type: "button"});
  button.setAttribute("aria-label", `${item.sound ? "Play" : "Enlarge"} ${item.text}`);
  button.addEventListener("click", item.sound ? player(figure, item) : () => view(figure));
  figure.querySelector(".frame").append(button);
  const save = element("a", "Save", {href: item.sound || item.source, download: item.file});
  save.setAttribute("aria-label", `Save ${item.text}`);
  figure.querySelector("figcaption").append(save);
}

// adds what plays a clip; returns what its picture does when it is clicked
function player(figure, item) {
  const audio = element("audio", null, {controls: true, src: item.sound}), frame = figure.querySelector(".frame");
  audio.setAttribute("aria-label", item.text);
  frame.classList.add("sound");
  frame.after(audio);
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  });
  return () => {
    if (!audio.paused) return audio.pause();
    audio.currentTime = 0;
    audio.play();
  };
}

export function show(figure, item) {
  finish(figure, item);
  told();
  keep(item);
}

function view(figure) {
  viewed = figure;
  const {source, text, file, settings} = figure.item;
  Object.assign($("viewed"), {src: source, alt: text});
  $("viewed-text").textContent = settings ? `${text} · ${settings}` : text;
  Object.assign($("viewed-save"), {href: source, download: file});
  if (!$("viewer").open) $("viewer").showModal();
}

function step(sibling) {
  let figure = viewed[sibling];
  while (figure && (!figure.item || figure.item.sound)) figure = figure[sibling];
  if (figure) view(figure);
}

export function enableEditing(edit) {
  onEdit = edit;
  $("vary").hidden = false;
}

$("previous").addEventListener("click", () => step("previousElementSibling"));
$("next").addEventListener("click", () => step("nextElementSibling"));
$("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step("previousElementSibling");
  if (event.key === "ArrowRight") step("nextElementSibling");
});
$("close").addEventListener("click", () => $("viewer").close());
$("vary").addEventListener("click", () => { $("viewer").close(); onEdit(viewed.item.source); });
$("clear").addEventListener("click", async () => {
  await transaction("readwrite", (store) => store.clear());
  for (const figure of [...$("gallery").children]) if (figure.item) figure.remove();
  told();
});
