function element(tag, text, ...children) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const name = schema.format === "binary" ? "file" : schema.type || "anything";
  const bounds = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"]]
    .filter(([key]) => schema[key] !== undefined).map(([key, sign]) => `${sign} ${schema[key]}`);
  return [name, ...bounds].join(" ");
}

function fields(schema, required) {
  const table = element("table", null, element("tr", null, ...["field", "type", "default"].map((name) => element("th", name))));
  for (const [name, field] of Object.entries(schema)) {
    const fallback = required.includes(name) ? "required" : field.default == null ? "" : JSON.stringify(field.default);
    table.append(element("tr", null, element("td", null, element("code", name)), element("td", typeOf(field)), element("td", fallback)));
  }
  const wide = element("div", null, table);
  wide.tabIndex = 0;  // it scrolls
  wide.className = "fields";
  return wide;
}

function route(api, path, method, operation) {
  const made = element("details", null, element("summary", null, element("b", method.toUpperCase()), element("code", path)));
  for (const [kind, {schema}] of Object.entries(operation.requestBody ? operation.requestBody.content : {})) {
    const body = schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
    made.append(element("p", kind));
    if (body.description) made.append(element("p", body.description));
    made.append(fields(body.properties, body.required || []));
    made.open = true;
  }
  if (operation.parameters) {
    const known = Object.fromEntries(operation.parameters.map((parameter) => [parameter.name, parameter.schema]));
    made.append(fields(known, Object.keys(known)));
  }
  if (operation.description) made.append(element("p", operation.description));
  return made;
}

async function load() {
  const api = await (await fetch("openapi.json")).json();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      document.getElementById("routes").append(route(api, path, method, operation));
    }
  }
}
// what the sampler that is served takes beside the API's own fields
async function settings() {
  const champion = await (await fetch("champion")).json();
  document.getElementById("champion").textContent =
    `${champion.name}@${champion.version} takes these fields beside those above; each has the promoted default.`;
  const schema = Object.fromEntries(Object.entries(champion.settings_schema)
    .map(([name, field]) => [name, {...field, default: champion.settings[name]}]));
  document.getElementById("settings").append(fields(schema, []));
}

settings().catch(() => {});
load().catch((error) => document.getElementById("routes").append(element("p", `The server does not answer (${error.message}).`)));
