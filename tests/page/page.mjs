// Looks at the live page in Chromium. `node page.mjs URL FOLDER`: what was seen goes to stdout, a
// line each; a line on stdin lets the next step begin; FOLDER gets screenshots.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [url, folder] = process.argv.slice(2);
const steps = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (word) => console.log(word);
const next = () => steps.next();

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const complaints = [];
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("console", (message) => {
  // The status of an answer that the page shows to the reader.
  const isAnswer = message.text().startsWith("Failed to load resource");
  if (["error", "warning"].includes(message.type()) && !isAnswer) complaints.push(message.text());
});
const becomes = async (id, expected) => {
  await page.locator(`#${id}`).filter({ hasText: expected }).waitFor({ timeout: 30_000 });
};
const fits = () => page.evaluate(() =>
  document.documentElement.scrollWidth <= document.documentElement.clientWidth);

await page.goto(url);
await becomes("link", "live");
await becomes("state", "ready");
for (const [id, name] of [["listeners", "main"], ["routes", "main"], ["backends", "main"]]) {
  await becomes(id, name);
}
await becomes("tiles", /Sessions\s*3/);
await becomes("routes", /3 live, .* new, .* refused/);
await becomes("reasons", "killed");
assert.ok(await fits(), "the page scrolls sideways");
say("loaded");

await next();
await becomes("tiles", /Sessions\s*4/);
await becomes("routes", "4 live");
say("live");

await page.locator("#filter [name=client]").fill("127.0.0.2");
await page.locator("#filter button").click();
await becomes("found", /^1 session$/);
const clients = await page.locator("#sessions td:first-child").allInnerTexts();
assert.equal(clients.length, 1);
assert.match(clients[0], /^127\.0\.0\.2:/);
await page.locator("#filter [name=client]").fill("nonsense");
await page.locator("#filter button").click();
await becomes("found", "nonsense");
await page.locator("#filter [name=client]").fill("");
await page.locator("#filter [name=sort]").selectOption("bytes");
await page.locator("#filter [name=follow]").check();
await becomes("found", "4 sessions");
await page.locator("#reasons button").first().click();
await becomes("samples", "killed");
say("filtered");

const colour = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const light = await colour();
await page.evaluate(() => scrollTo(0, 0));
await page.screenshot({ path: `${folder}/light.png` });
await page.locator("#theme").click();
assert.notEqual(await colour(), light, "dark looks like light");
await page.screenshot({ path: `${folder}/dark.png` });
await page.setViewportSize({ width: 360, height: 740 });
assert.ok(await fits(), "the page scrolls sideways on a phone");
await page.screenshot({ path: `${folder}/phone.png` });
await page.setViewportSize({ width: 1280, height: 900 });
assert.deepEqual(complaints, [], "the browser complains");
say("dark");

await next();
await becomes("link", "no connection");
say("gone");
await next();
await becomes("link", "live");
say("back");
await browser.close();
process.exit(0);
