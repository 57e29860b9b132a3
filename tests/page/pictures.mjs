// Takes the pictures of the live page for README.md. `node pictures.mjs URL FOLDER SECONDS`: the
// page is open for so long, so that its graphs have something to show; FOLDER gets the pictures.

import { chromium } from "playwright-core";

const [url, folder, seconds] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
await page.goto(url);
await page.locator("#link").filter({ hasText: "live" }).waitFor({ timeout: 30_000 });
await page.waitForTimeout(1000 * Number(seconds));
// From the head of the page to the end of the graphs.
const graphs = await page.locator("section:has(#graphs)").boundingBox();
const clip = { x: 0, y: 0, width: 1280, height: Math.ceil(graphs.y + graphs.height + 12) };
await page.screenshot({ path: `${folder}/light.png`, fullPage: true, clip });
await page.locator("#theme").click();
await page.screenshot({ path: `${folder}/dark.png`, fullPage: true, clip });
await browser.close();
