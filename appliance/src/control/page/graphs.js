// Graphs of the last five minutes, and the closes of the last hour.

import { $, ask, bytesPerSecond, count, keep, lines, make, micros, perSecond, write } from "./show.js";

const KEPT = 300;
const HEIGHT = 130;
const LEFT = 62;
const TOP = 8;
const BOTTOM = 18;
const REASONS = 4;

const svg = (tag, values) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
};

const KINDS = [
  { title: "Throughput", unit: bytesPerSecond, names: ["up", "down"] },
  { title: "New sessions and flows", unit: perSecond, names: ["opened", "refused"] },
  { title: "Live", unit: count, names: ["sessions", "flows"] },
  { title: "Connect latency", unit: micros, names: ["median", "99 %"], empty: "no connects" },
];

const points = [];
const figures = [];

function plot(parent, kind) {
  const figure = make("figure");
  const caption = make("figcaption");
  caption.append(make("b", "", kind.title));
  const values = kind.names.map((name, at) => {
    const value = make("span", `key ${at ? "second" : "first"}`, name);
    caption.append(value);
    return value;
  });
  const graph = svg("svg", { class: "plot", role: "img" });
  graph.setAttribute("aria-label", `${kind.title}, last five minutes`);
  figure.append(caption, graph);
  parent.append(figure);
  return { kind, values, graph };
}

export function start() {
  KINDS.forEach((kind) => figures.push(plot($("graphs"), kind)));
}

// Draws the axes as wide as the card is, and returns the width. A unit of the graph is a pixel.
function frame(graph, most, from, to) {
  const width = Math.max(graph.clientWidth, 2 * LEFT);
  graph.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const texts = [[most, TOP + 4], ["0", HEIGHT - BOTTOM]];
  const parts = texts.flatMap(([text, y]) => {
    const label = svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" });
    label.textContent = text;
    return [svg("line", { class: "grid", x1: LEFT, x2: width, y1: y, y2: y }), label];
  });
  [[from, LEFT, "start"], [to, width, "end"]].forEach(([text, x, anchor]) => {
    const label = svg("text", { x, y: HEIGHT - 2, "text-anchor": anchor });
    label.textContent = text;
    parts.push(label);
  });
  graph.replaceChildren(...parts);
  return width;
}

// The next number of 1, 2, 5, 10, ... so that the scale rests.
function above(value) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((by) => by * ten).find((most) => most >= value) ?? ten * 10;
}

function draw({ kind, values, graph }, at, marks) {
  const series = [0, 1].map((which) => points.map((point) => point.values[at][which]));
  const most = above(Math.max(0, ...series.flat().filter((value) => value !== null)));
  const width = frame(graph, kind.unit(most), "5 min ago", "now");
  const now = points.at(-1).at;
  const x = (time) => width - ((now - time) / (KEPT * 1000)) * (width - LEFT);
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP - 4);
  marks.map(x).filter((place) => place >= LEFT && place <= width).forEach((place) => {
    graph.append(svg("line", { class: "mark", x1: place, x2: place, y1: TOP, y2: HEIGHT - BOTTOM }));
  });
  series.forEach((line, which) => {
    const path = points.map((point, index) => [x(point.at), line[index]])
      .filter(([place, value]) => value !== null && place >= LEFT)
      .map(([place, value]) => `${place.toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    graph.append(svg("polyline", { class: which ? "second" : "first", points: path }));
    const last = line.at(-1);
    write(values[which], `${kind.names[which]} ${last === null ? kind.empty : kind.unit(last)}`);
  });
}

const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);

// The upper bound of the bucket that has this part of the new connects.
function quantile(bounds, counts, part) {
  const all = counts.reduce((total, value) => total + value, 0);
  if (all === 0) return null;
  let seen = 0;
  const at = counts.findIndex((value) => (seen += value) >= all * part);
  return bounds[Math.min(at, bounds.length - 1)];
}

export function update(now, before) {
  const seconds = before ? (now.status.uptime_ms - before.status.uptime_ms) / 1000 : 0;
  if (seconds > 0) {
    const rate = (key) =>
      Math.max(0, sum(now.listeners, key) - sum(before.listeners, key)) / seconds;
    const counts = now.connect.counts.map((value, at) =>
      Math.max(0, value - before.connect.counts[at]));
    points.push({
      at: Date.now(),
      values: [
        [rate("bytes_up"), rate("bytes_down")],
        [rate("opened"), rate("refused")],
        [now.status.sessions, now.status.flows],
        [0.5, 0.99].map((part) => quantile(now.connect.bounds, counts, part)),
      ],
    });
    if (points.length > KEPT) points.shift();
    const marks = now.events.filter((event) => event.level !== "info")
      .map((event) => Date.parse(event.ts));
    figures.forEach((figure, at) => draw(figure, at, marks));
  }
  closes(now.closes);
}

let chosen = null;

function closes(all) {
  reasonRows(all);
  if (!all.length) return $("closes").replaceChildren();
  let graph = $("closes").firstChild;
  if (!graph) {
    graph = svg("svg", { class: "plot", role: "img" });
    graph.setAttribute("aria-label", "Closes by minute, last hour");
    $("closes").append(graph);
  }
  const minutes = all[0].minutes.length;
  const totals = Array.from({ length: minutes }, (_, at) => sum(all.map((of) => of.minutes), at));
  const most = above(Math.max(...totals));
  const width = frame(graph, `${count(most)}/min`, "60 min ago", "now");
  const wide = (width - LEFT) / 60;
  const shown = all.slice(0, REASONS);
  for (let at = 0; at < minutes; at += 1) {
    let y = HEIGHT - BOTTOM;
    const rest = totals[at] - sum(shown.map((of) => of.minutes), at);
    [...shown.map((of) => of.minutes[at]), rest].forEach((value, which) => {
      const height = (value / most) * (HEIGHT - BOTTOM - TOP - 4);
      y -= height;
      const x = width - (minutes - at) * wide;
      const bar = svg("rect", { class: COLOURS[which], x, y, width: wide - 1, height });
      graph.append(bar);
    });
  }
  all.forEach((of, at) => {
    const row = [...$("reasons").children].find((child) => child.dataset.key === of.reason);
    let button = row.querySelector("button");
    if (!button) {
      button = make("button");
      button.type = "button";
      button.append(make("span", "grow"), make("span"));
      button.addEventListener("click", () => samples(of.reason));
      row.replaceChildren(button);
    }
    button.setAttribute("aria-expanded", String(chosen === of.reason));
    write(button.children[0], of.reason, `grow key ${COLOURS[Math.min(at, REASONS)]}`);
    write(button.children[1], `${count(of.count)}, ${count(of.latest)} of them just now`);
  });
}

const COLOURS = ["first", "second", "ok", "warn", "quiet"];

async function samples(reason) {
  chosen = chosen === reason ? null : reason;
  if (!chosen) return $("samples").replaceChildren();
  try {
    const { closes: all } = await ask("closes");
    const found = all.find((of) => of.reason === reason)?.samples ?? [];
    const text = found.length ? `Some of the newest lines with ${reason}:`
      : `No line of the access log is kept for ${reason}.`;
    const shown = found.map((line) => make("pre", "", JSON.stringify(line)));
    $("samples").replaceChildren(make("p", "quiet", text), ...shown);
  } catch (error) {
    $("samples").replaceChildren(make("p", "bad", error.message));
  }
}

// The rows of reasons keep the buttons that they have.
function reasonRows(all) {
  if (!all.length) return lines($("reasons"), [], null, null, "No session has ended within the hour.");
  keep($("reasons"), all, (of) => of.reason, () => make("li"), () => {});
}
