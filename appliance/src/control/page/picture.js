// What flows where: listeners, routes, backends and endpoints, with rates and health.

import { $, ask, bytesPerSecond, count, keep, make, many, perSecond, write } from "./show.js";

// The endpoints of each backend, unless all are asked for.
const FEW = 5;
// The boxes of each column, unless all are asked for.
const BOXES = 30;
const AGAIN = 5000;

let all = null;
let showsAll = false;
let asked = 0;

export function start() {
  $("all").addEventListener("click", () => {
    showsAll = !showsAll;
    asked = 0;
    $("all").setAttribute("aria-pressed", String(showsAll));
    write($("all"), showsAll ? "Show the worst only" : "Show all endpoints");
  });
  new ResizeObserver(edges).observe($("map"));
}

const STATES = {
  up: "ok", backup: "ok", listening: "ok", draining: "warn", drained: "warn", disabled: "warn",
  ejected: "bad", down: "bad", no_endpoint: "bad", degraded: "warn", removed: "warn",
};

function box(list, rows, name, parts) {
  const shown = showsAll ? rows : rows.slice(0, BOXES);
  keep(list, shown, name, () => {
    const child = make("li", "box");
    child.append(make("div", "name"), make("div", "line"), make("div", "line"),
      make("div", "line leads"));
    return child;
  }, (child, row) => {
    const { state, title, first, second, leads } = parts(row);
    write(child.children[0], title);
    write(child.children[1], first);
    write(child.children[2], second, `line ${state === "ok" ? "" : state}`);
    write(child.children[3], leads ?? "");
    child.className = `box ${state}`;
  });
}

let rates = () => 0;
let links = [];

export function update(now, before) {
  const seconds = before ? (now.status.uptime_ms - before.status.uptime_ms) / 1000 : 0;
  rates = (rows, old, key) => {
    const known = new Map((old ?? []).map((row) => [key(row), row]));
    return (row, value) => {
      const then = known.get(key(row));
      return then && seconds > 0 ? Math.max(0, row[value] - then[value]) / seconds : 0;
    };
  };
  const flow = (rate, row) =>
    `${perSecond(rate(row, "opened"))} new, ${bytesPerSecond(rate(row, "bytes_up"))} up, ` +
    `${bytesPerSecond(rate(row, "bytes_down"))} down`;
  const ofListener = rates(now.listeners, before?.listeners, (row) => row.listener);
  box($("listeners"), now.listeners, (row) => row.listener, (row) => ({
    state: STATES[row.state] ?? "warn",
    title: row.listener,
    first: [row.protocol, row.addresses.join(" ")].filter(Boolean).join(" "),
    second: `${count(row.sessions)} live, ${flow(ofListener, row)}`,
    leads: row.routes.length ? `to ${row.routes.join(", ")}` : "to no route",
  }));
  const ofRoute = rates(now.routes, before?.routes, (row) => row.route);
  const noEndpoint = (row) =>
    row.refused > 0 ? `, ${Math.round(row.refused * 100)} % refused: no endpoint` : "";
  box($("routes"), now.routes, (row) => row.route, (row) => ({
    state: row.refused > 0.999 ? "bad" : row.refused > 0 ? "warn" : "ok",
    title: row.route,
    first: row.hostnames.join(", ") || "every client",
    second: `${count(row.sessions)} live, ${perSecond(ofRoute(row, "opened"))} new, ` +
      `${perSecond(ofRoute(row, "refused_sessions"))} refused${noEndpoint(row)}`,
    leads: `to ${row.backends.map((of) => `${of.backend} ${Math.round(of.share * 100)} %`).join(", ")}`,
  }));
  const ofBackend = rates(now.backends, before?.backends, (row) => row.backend);
  box($("backends"), now.backends, (row) => row.backend, (row) => ({
    state: STATES[row.state] ?? "warn",
    title: row.backend,
    first: `${row.healthy} of ${row.endpoints} healthy, ${row.balance ?? "removed"}`,
    second: row.news ?? `${count(row.sessions)} live, ${flow(ofBackend, row)}`,
  }));
  const { first, unwell } = now.endpoints;
  write($("count"), `${many(now.endpoints.all, "endpoint")}, ${unwell} of them not well`);
  if (showsAll && Date.now() - asked > AGAIN) refresh();
  endpoints(showsAll && all ? all : first, now.backends);
  links = [
    ...now.listeners.flatMap((row) => row.routes.map((route) =>
      ["listeners", row.listener, "routes", route, 1 + Math.log10(1 + ofListener(row, "opened")), ""])),
    ...now.routes.flatMap((row) => row.backends.map((of) =>
      ["routes", row.route, "backends", of.backend, 1 + 3 * of.share,
        of.available ? "" : "bad"])),
    ...now.backends.map((row) => ["backends", row.backend, "endpoints", row.backend,
      1 + Math.log10(1 + ofBackend(row, "opened")), row.state === "no_endpoint" ? "bad" : ""]),
  ];
  edges();
}

async function refresh() {
  asked = Date.now();
  try {
    all = (await ask("endpoints/live")).first;
  } catch {
    all = null;
  }
}

function endpoints(rows, backends) {
  const groups = new Map();
  rows.forEach((row) => {
    if (!groups.has(row.backend)) groups.set(row.backend, []);
    groups.get(row.backend).push(row);
  });
  const shown = backends.filter((of) => groups.has(of.backend));
  const some = showsAll ? shown : shown.slice(0, BOXES);
  keep($("endpoints"), some, (of) => of.backend, () => {
    const child = make("li", "box");
    child.append(make("div", "name"), make("ul", "ends"), make("div", "line"));
    return child;
  }, (child, of) => {
    const list = groups.get(of.backend);
    const few = showsAll ? list : list.slice(0, FEW);
    write(child.children[0], of.backend);
    keep(child.children[1], few, (row) => row.endpoint, () => {
      const line = make("li");
      line.append(make("span", "grow"), make("span"), make("span"), make("span", "quiet"));
      return line;
    }, (line, row) => {
      write(line.children[0], row.name ? `${row.endpoint} (${row.name})` : row.endpoint);
      write(line.children[1], `${count(row.sessions)} live`);
      write(line.children[2], row.state, STATES[row.state] ?? "warn");
      // The address stands in the line already.
      write(line.children[3], (row.why ?? "").replace(`connecting to ${row.endpoint}: `, ""));
    });
    const more = of.endpoints - few.length;
    write(child.children[2], more > 0 ? `and ${more} more` : "");
    child.className = `box ${STATES[of.state] ?? "warn"}`;
  });
}

// The lines between the boxes. On a phone the boxes stand below each other and say where they lead.
function edges() {
  const map = $("map").getBoundingClientRect();
  const places = new Map();
  ["listeners", "routes", "backends", "endpoints"].forEach((id) => {
    [...$(id).children].forEach((child) => {
      places.set(`${id} ${child.dataset.key}`, child.getBoundingClientRect());
    });
  });
  const paths = links.map(([from, one, to, other, width, name]) => {
    const [left, right] = [places.get(`${from} ${one}`), places.get(`${to} ${other}`)];
    if (!left || !right) return null;
    const [x1, y1] = [left.right - map.left, left.top + 20 - map.top];
    const [x2, y2] = [right.left - map.left, right.top + 20 - map.top];
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const middle = (x1 + x2) / 2;
    path.setAttribute("d", `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`);
    path.setAttribute("stroke-width", width.toFixed(1));
    path.setAttribute("class", name);
    return path;
  });
  $("edges").replaceChildren(...paths.filter(Boolean));
}
