// Takes a snapshot each second and gives it to the parts of the page.

import * as graphs from "./graphs.js";
import * as picture from "./picture.js";
import * as sessions from "./sessions.js";
import { $, bytes, bytesPerSecond, count, keep, lines, make, many, perSecond, span, write } from "./show.js";

// Without a snapshot for this long, the gateway counts as gone.
const SILENCE = 4000;
const AGAIN = 2000;

let before = null;
let heard = Date.now();
let source = null;

function tiles({ status, endpoints, backends }) {
  const unwell = endpoints.unwell;
  const all = [
    ["Sessions", count(status.sessions)],
    ["Flows", count(status.flows)],
    ["New", perSecond(status.opened_per_second)],
    ["Up", bytesPerSecond(status.bytes_up_per_second)],
    ["Down", bytesPerSecond(status.bytes_down_per_second)],
    ["Endpoints not well", `${unwell} of ${endpoints.all}`, unwell ? "warn" : "ok"],
    ["Backends down", `${backends.filter((of) => of.state === "no_endpoint").length}`,
      backends.some((of) => of.state === "no_endpoint") ? "bad" : "ok"],
    ["Certificates ending", `${status.certificates_ending}`,
      status.certificates_ending ? "warn" : "ok"],
  ];
  keep($("tiles"), all, (tile) => tile[0], (tile) => {
    const child = make("div");
    child.append(make("dt", "", tile[0]), make("dd"));
    return child;
  }, (child, [, text, name]) => write(child.children[1], text, name ?? ""));
}

function head({ status }) {
  const [state, name] = status.draining ? ["draining", "warn"]
    : status.ready ? ["ready", "ok"] : ["not ready", "bad"];
  write($("state"), state, `pill ${name}`);
  write($("about"), `${status.version}, up ${span(status.uptime_ms)}, ` +
    `${many(status.workers, "worker")}, table ${status.table}`);
  alert(status.refused ? `The latest configuration was refused: ${status.refused}` : "");
}

function alert(text) {
  write($("alert"), text);
  $("alert").hidden = text === "";
}

function rest({ events, clients, certificates, limits }) {
  const levels = { error: "bad", warn: "warn", info: "quiet" };
  lines($("events"), [...events].reverse(), (of) => of.number, (of) => [
    ["quiet", of.ts.slice(11, 19)], [levels[of.level], of.level], ["text", of.text],
  ], "The log has no lines yet. Reloads, health and overrides come here.");
  write($("window"), `Ended or refused within ${span(clients.window_ms)}.`);
  const kinds = [["ended", count], ["bytes", bytes], ["refused", count]];
  const rows = kinds.flatMap(([kind, show]) => clients[kind].slice(0, 5).map((of) =>
    ({ kind, client: of.client, text: show(of.count) })));
  lines($("clients"), rows, (of) => `${of.kind} ${of.client}`,
    (of) => [["grow", of.client], ["quiet", of.kind], ["", of.text]],
    "No session has ended just now. Live ones are in the table below.");
  const owner = (of) => of.listener ?? of.backend ?? of.of;
  lines($("certificates"), certificates, (of) => JSON.stringify([owner(of), of.source, of.names]), (of) => [
    ["grow", `${owner(of)}: ${of.names.join(", ") || of.source}${of.kind === "crl" ? " (revoked ones)" : ""}`],
    [of.warning ? (of.days_left < 0 ? "bad" : "warn") : "ok",
      of.days_left < 0 ? "expired" : `${of.days_left} days left`],
  ], "No listener or backend has a certificate. TLS passes through undecrypted, or is not used.");
  keep($("limits"), limits, (of) => of.limit, () => {
    const child = make("li");
    const meter = make("meter");
    meter.min = 0;
    child.append(make("span", "grow"), make("span"), meter);
    return child;
  }, (child, of) => {
    write(child.children[0], of.of ? `${of.limit}: ${of.of}` : of.limit);
    const reached = of.reached ? `, reached ${count(of.reached)} times` : "";
    write(child.children[1], `${count(of.used)} of ${count(of.capacity)}${reached}`);
    child.title = `set by ${of.set_by}`;
    const meter = child.children[2];
    meter.max = of.capacity;
    [meter.low, meter.high, meter.optimum] = [of.capacity * 0.7, of.capacity * 0.9, 0];
    meter.value = of.used;
    meter.setAttribute("aria-label", of.limit);
  });
}

function show(now) {
  // A gateway that has started again counts from 0.
  if (before && now.status.uptime_ms < before.status.uptime_ms) before = null;
  head(now);
  tiles(now);
  picture.update(now, before);
  graphs.update(now, before);
  rest(now);
  sessions.update(now);
  before = now;
}

function link(text, name) {
  write($("link"), text, `pill ${name}`);
  document.body.classList.toggle("stale", name === "bad");
}

function connect() {
  source = new EventSource("/api/v1/stream");
  source.addEventListener("message", (event) => {
    heard = Date.now();
    link("live", "ok");
    show(JSON.parse(event.data));
  });
  source.addEventListener("error", lost);
}

// The browser gives up after some errors, so the page connects again by itself.
function lost() {
  source.close();
  link("no connection, trying again", "bad");
  setTimeout(() => {
    heard = Date.now();
    connect();
  }, AGAIN);
}

setInterval(() => {
  if (source.readyState !== EventSource.CLOSED && Date.now() - heard > SILENCE) lost();
}, 1000);

function theme(name) {
  document.documentElement.dataset.theme = name;
  write($("theme"), name === "dark" ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
}

const kept = localStorage.getItem("theme");
theme(kept ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", name);
  theme(name);
});

graphs.start();
picture.start();
sessions.start();
connect();
