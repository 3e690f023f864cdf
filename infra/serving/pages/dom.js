export const $ = (id) => document.getElementById(id);

export function element(tag, text, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  if (text !== null) made.textContent = text;
  return made;
}
