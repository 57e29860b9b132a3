// The table of sessions and flows.

import { $, ask, bytes, keep, make, many, span, write } from "./show.js";

const MOST = 200;
const EACH = 2000;

let asking = false;

export function start() {
  const form = $("filter");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    refresh();
  });
  form.addEventListener("change", refresh);
  setInterval(() => {
    if (form.elements.follow.checked && !document.hidden) refresh();
  }, EACH);
  refresh();
}

export function update(now) {
  const choice = $("filter").elements.listener;
  const names = ["", ...now.listeners.map((row) => row.listener)];
  keep(choice, names, (name) => name, (name) => {
    const option = make("option", "", name || "all");
    option.value = name;
    return option;
  }, () => {});
}

async function refresh() {
  if (asking) return;
  asking = true;
  const { kind, listener, client, endpoint, sort } = $("filter").elements;
  const words = new URLSearchParams({ limit: MOST });
  [listener, client, endpoint, sort].forEach((of) => {
    if (of.value.trim()) words.set(of.name, of.value.trim());
  });
  try {
    const page = await ask(`${kind.value}?${words}`);
    show(page[kind.value]);
    const found = page[kind.value].length;
    const more = page.next || page.matched > found ? `The first ${found} ${kind.value}; filter to see others.` : "";
    const none = `No ${kind.value} now. Connect a client, or widen the filter.`;
    write($("found"), found === 0 ? none : more || many(found, kind.value.slice(0, -1)), "quiet");
  } catch (error) {
    write($("found"), error.message, "bad");
  }
  asking = false;
}

function show(rows) {
  keep($("sessions"), rows, (row) => row.id, () => make("tr"), (line, row) => {
    const connect = row.connect_ms === undefined ? "" : `${row.connect_ms.toFixed(1)} ms`;
    const cells = [
      ["", row.client], ["", row.listener ?? ""], ["", row.endpoint ?? ""], ["", row.state],
      ["n", span(row.age_ms)], ["n", span(row.idle_ms)], ["n", bytes(row.bytes_up)],
      ["n", bytes(row.bytes_down)], ["n", connect],
    ];
    keep(line, cells.map((cell, at) => [at, ...cell]), (cell) => cell[0], () => make("td"),
      (cell, [, name, text]) => write(cell, text, name));
  });
}
