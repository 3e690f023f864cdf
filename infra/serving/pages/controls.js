// Inputs for a sampler's settings, by their JSON schemas.
import {element} from "./dom.js";

const LABELS = {num_inference_steps: "Steps", guidance_scale: "Guidance", solver: "Solver", spacing: "Spacing"};  // others fold away
const SHOWN = 8;  // a slider's end where a setting has none; the API takes more
const NONE = "none";

// a setting's own name, without the parts that its block lies in
const plain = (path) => path.split(".").at(-1);

export const folds = (path) => !(plain(path) in LABELS);

function titled(path) {
  const [words, ...blocks] = path.split(".").reverse().map((part) => LABELS[part] || part.replaceAll("_", " "));
  const text = blocks.length ? `${blocks.reverse().join(" ")}: ${words}` : words;
  return text[0].toUpperCase() + text.slice(1);
}

function choice({enum: choices}, value) {
  const input = element("select", null);
  for (const one of choices) input.append(element("option", one, {value: one}));
  input.value = value;
  return {inputs: [input], read: () => input.value};
}

function slider(path, schema, value, mostSteps) {
  const output = element("output", value), least = schema.minimum ?? 0, most = schema.maximum ?? SHOWN;
  const end = plain(path) === "num_inference_steps" ? Math.min(mostSteps, 100) : Math.min(most, SHOWN);
  const step = schema.type === "integer" ? 1 : most > 1 ? 0.1 : 0.05;
  const input = element("input", null, {type: "range", min: least, step, max: end});
  input.addEventListener("input", () => { output.textContent = input.value; });
  input.value = value;
  return {output, inputs: [input], read: () => Number(input.value)};
}

function written(schema, value, isNeeded) {
  const kind = schema.type === "string" ? {type: "text"} : {type: "number", step: schema.type === "integer" ? 1 : "any"};
  const input = element("input", null, {...kind, autocomplete: "off", placeholder: isNeeded ? "" : NONE});
  if (schema.maximum !== undefined) input.max = schema.maximum;
  if (schema.minimum !== undefined) input.min = schema.minimum;
  input.value = value ?? "";
  return {inputs: [input], read: () => input.value === "" ? null : kind.type === "text" ? input.value : Number(input.value)};
}

function list(schema, value, isNeeded) {
  const parts = schema.prefixItems.map((one, place) => written(one, value?.[place], isNeeded));
  const inputs = parts.flatMap((part) => part.inputs);
  return {inputs, read: () => inputs.every((input) => input.value === "") ? null : parts.map((part) => part.read())};
}

function made(path, schema, value, mostSteps) {
  const kinds = (schema.anyOf || [schema]).filter(({type}) => type !== "null"), [kind] = kinds;
  const isNeeded = !schema.anyOf;
  if (kinds.length !== 1) return null;
  if (kind.enum) return choice(kind, value);
  if (kind.prefixItems) return list(kind, value, isNeeded);
  if (["integer", "number"].includes(kind.type)) return isNeeded ? slider(path, kind, value, mostSteps) : written(kind, value, false);
  return kind.type === "string" && kind.const === undefined ? written(kind, value, isNeeded) : null;
}

// a labelled input of a setting whose default is `value`, and what reads it; null of a setting that the API alone has
export function control(path, schema, value, mostSteps) {
  const found = made(path, schema, value, mostSteps);
  if (!found) return null;
  const {inputs, output} = found, title = titled(path);
  const label = inputs.length > 1 ? element("fieldset", null) : element("label", title);
  if (inputs.length > 1) {
    label.append(element("legend", title));
    inputs.forEach((input, place) => input.setAttribute("aria-label", `${title}, ${place + 1} of ${inputs.length}`));
  } else {
    label.append(output || " ");
  }
  label.append(...inputs);
  for (const input of inputs) input.dataset.setting = path;
  return {label, path, read: found.read, usual: value};
}

// puts what controls say into a request's body, blocks within blocks; what is none and was so before says nothing
export function fill(body, controls) {
  for (const {path, read, usual} of controls) {
    const value = read(), [name, ...blocks] = path.split(".").reverse();
    if (value === null && usual === null) continue;
    const block = blocks.reverse().reduce((outer, part) => (outer[part] ??= {}), body);
    block[name] = value;
  }
}
