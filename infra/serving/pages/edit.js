// What an edit starts from: an image, and a mask that is painted over it with a brush.
import {$} from "./dom.js";

let source = null, mask = null, drawing = null, last = null;
const PAINT = "rgb(224 60 30)";

export const chosen = () => source && {source, mask};

export function clear() {
  source = mask = null;
  $("source").hidden = true;
  $("upload").value = "";
}

function use() {
  $("source-image").src = source;
  $("source").hidden = false;
  $("strength").value = mask ? 1 : 0.6;
  $("strength-told").textContent = $("strength").value;
}

export async function open(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = $("brush");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.style.setProperty("--aspect", `${canvas.width} / ${canvas.height}`);
  drawing = {url, image, paint: new OffscreenCanvas(canvas.width, canvas.height), painted: false};
  draw();
  $("editor").showModal();
}

function draw() {
  const context = $("brush").getContext("2d");
  context.globalAlpha = 1;
  context.clearRect(0, 0, $("brush").width, $("brush").height);
  context.drawImage(drawing.image, 0, 0);
  context.globalAlpha = 0.6;
  context.drawImage(drawing.paint, 0, 0);
}

function at(event) {
  const box = $("brush").getBoundingClientRect();
  const scale = Math.min(box.width / $("brush").width, box.height / $("brush").height);  // object-fit: contain
  return [(event.clientX - box.left - (box.width - scale * $("brush").width) / 2) / scale,
    (event.clientY - box.top - (box.height - scale * $("brush").height) / 2) / scale];
}

function paint(event) {
  const context = drawing.paint.getContext("2d"), point = at(event);
  Object.assign(context, {strokeStyle: PAINT, lineCap: "round", lineWidth: Math.max(1, $("brush").width * $("brush-size").value / 100)});
  context.beginPath();
  context.moveTo(...(last || point));
  context.lineTo(point[0] + 0.01, point[1]);
  context.stroke();
  last = point;
  drawing.painted = true;
  draw();
}

// the API redraws what is transparent
async function asMask() {
  const canvas = new OffscreenCanvas(drawing.paint.width, drawing.paint.height), context = canvas.getContext("2d");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "destination-out";
  const paint = drawing.paint.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let place = 3; place < paint.data.length; place += 4) paint.data[place] = paint.data[place] > 127 ? 255 : 0;
  const hard = new OffscreenCanvas(canvas.width, canvas.height);
  hard.getContext("2d").putImageData(paint, 0, 0);
  context.drawImage(hard, 0, 0);
  return canvas.convertToBlob({type: "image/png"});
}

const canvas = $("brush");
canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = null; paint(event); });
canvas.addEventListener("pointermove", (event) => { if (event.buttons) paint(event); });
$("brush-undo").addEventListener("click", () => {
  drawing.paint.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  drawing.painted = false;
  draw();
});
$("editor-use").addEventListener("click", async () => {
  source = drawing.url;
  mask = drawing.painted ? await asMask() : null;
  $("editor").close();
  use();
});
$("editor-close").addEventListener("click", () => $("editor").close());
$("source-clear").addEventListener("click", clear);
$("strength").addEventListener("input", () => { $("strength-told").textContent = $("strength").value; });
$("upload").addEventListener("change", () => {
  const reader = new FileReader();
  reader.addEventListener("load", () => open(reader.result));
  if ($("upload").files.length) reader.readAsDataURL($("upload").files[0]);
});
