// How values are shown, and how elements are made and kept.

export const $ = (id) => document.getElementById(id);

export function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Writes only what has changed, so that a selection stays and nothing flickers.
export function write(element, text, name) {
  if (element.textContent !== text) element.textContent = text;
  if (name !== undefined && element.className !== name) element.className = name;
}

// Gives `list` one child for each item, in order. A child is kept as long as its key is there.
export function keep(list, items, key, create, update) {
  const old = new Map([...list.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, at) => {
    const name = String(key(item));
    let child = old.get(name);
    if (child) old.delete(name);
    else {
      child = create(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (list.children[at] !== child) list.insertBefore(child, list.children[at] ?? null);
  });
  old.forEach((child) => child.remove());
}

// A list of lines of texts, or one line that says why the list is empty.
export function lines(list, items, key, parts, empty) {
  const rows = items.length ? items : [{ empty }];
  keep(list, rows, (row) => row.empty ?? key(row), () => make("li"), (child, row) => {
    const texts = row.empty ? [["quiet", row.empty]] : parts(row);
    keep(child, texts.map((text, at) => [at, ...text]), (part) => part[0], () => make("span"),
      (span, [, name, text]) => write(span, text, name));
  });
}

function scaled(value, base, units) {
  let at = 0;
  while (value >= base && at < units.length - 1) {
    value /= base;
    at += 1;
  }
  const digits = value >= 100 || (at === 0 && Number.isInteger(value)) ? 0 : 1;
  return `${value.toFixed(digits)}${units[at]}`;
}

// "1 session", "2 sessions".
export const many = (value, noun) => `${value} ${value === 1 ? noun : `${noun}s`}`;

export const count = (value) => scaled(value, 1000, ["", "k", "M", "G"]);
export const bytes = (value) => scaled(value, 1000, [" B", " kB", " MB", " GB", " TB"]);
export const bytesPerSecond = (value) => `${bytes(Math.round(value))}/s`;
export const perSecond = (value) => `${count(Math.round(value * 10) / 10)}/s`;
export const micros = (value) => scaled(value, 1000, [" µs", " ms", " s"]);

export function span(millis) {
  const seconds = Math.floor(millis / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

export async function ask(path) {
  const answer = await fetch(`/api/v1/${path}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error ?? `status ${answer.status}`);
  return said;
}
