// Looks at the live page of a gateway with many endpoints. `node many.mjs URL FOLDER`: the
// longest pause is said on stdout; FOLDER gets screenshots.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, folder] = process.argv.slice(2);
const ENDPOINTS = 1000;
// A page that stands still for this long no longer feels alive. Two cores have other work, too.
const MOST_MS = 1000;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const becomes = async (id, expected) => {
  await page.locator(`#${id}`).filter({ hasText: expected }).waitFor({ timeout: 30_000 });
};
const fits = () => page.evaluate(() =>
  document.documentElement.scrollWidth <= document.documentElement.clientWidth);
// The milliseconds of the longest task within the next three snapshots.
const pause = () => page.evaluate(() => new Promise((resolve) => {
  let longest = 0;
  const watch = new PerformanceObserver((list) =>
    list.getEntries().forEach((entry) => { longest = Math.max(longest, entry.duration); }));
  watch.observe({ type: "longtask" });
  setTimeout(() => { watch.disconnect(); resolve(longest); }, 3500);
}));
const rows = () => page.locator("#endpoints .ends li").count();

await page.goto(url);
await becomes("link", "live");
await becomes("count", new RegExp(`^${ENDPOINTS} endpoints, [1-9]\\d* of them not well$`));
const few = await rows();
assert.ok(few > 0 && few <= 200, `${few} endpoints are shown at first`);
assert.match(await page.locator("#endpoints .ends li").first().innerText(), /down/);
const first = await pause();
assert.ok(await fits(), "the page scrolls sideways");
await page.screenshot({ path: `${folder}/many.png` });

await page.locator("#all").click();
await page.waitForFunction((all) =>
  document.querySelectorAll("#endpoints .ends li").length === all, ENDPOINTS, { timeout: 30_000 });
const whole = await pause();
assert.ok(await fits(), "the page with all endpoints scrolls sideways");
await page.setViewportSize({ width: 360, height: 740 });
assert.ok(await fits(), "the page scrolls sideways on a phone");
await page.locator("#all").click();
await page.waitForFunction((few) =>
  document.querySelectorAll("#endpoints .ends li").length <= few, few, { timeout: 30_000 });
await page.screenshot({ path: `${folder}/many-phone.png`, fullPage: true });

// A plot is as wide as its card, but for the padding.
for (const width of [1280, 1900]) {
  await page.setViewportSize({ width, height: 900 });
  await page.waitForFunction(() => [...document.querySelectorAll(".plot")].every((plot) =>
    plot.getAttribute("viewBox")?.split(" ")[2] === String(plot.clientWidth)), null,
  { timeout: 30_000 });
}
console.log(`longest pause: ${first} ms, ${whole} ms with all endpoints`);
assert.ok(Math.max(first, whole) < MOST_MS, "the page stands still for long");
await browser.close();
