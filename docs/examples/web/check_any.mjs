// Uses the page for any explainer as a person with a phone would, and prints what it showed, as JSON.
//     node check_any.mjs URL FOLDER [SCREENSHOTS]
// FOLDER has explainer.onnx, photo.jpg and the wrong files to drop; SCREENSHOTS is a folder for pictures of the page.

import { readFileSync, readdirSync } from "node:fs";
import { chromium } from "playwright-core";

const [url, folder, screenshots] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const complaints = [];
let page;
try {
  page = await browser.newPage({ viewport: { width: 400, height: 800 }, isMobile: true, hasTouch: true });
  page.on("console", (message) => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  const shoot = async (name) => { if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png`, fullPage: true }); };
  // What the page says, or computed, after a change.
  const after = async (change, what) => {
    await page.evaluate(() => { window.explained = window.said = undefined; });
    await change();
    const done = what === "said" ? () => window.said && !/\.\.\.$/.test(window.said) : () => window.explained;
    await page.waitForFunction(done, undefined, { timeout: 60_000 });
    return page.evaluate((name) => window[name], what);
  };
  const drop = (names) => page.evaluate((files) => {
    const transfer = new DataTransfer();
    for (const { name, type, bytes } of files) {
      transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type }));
    }
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, names.map((name) => ({
    name, type: /\.(jpg|png)$/.test(name) ? "image/jpeg" : "", bytes: readFileSync(`${folder}/${name}`).toString("base64"),
  })));
  const look = () => page.evaluate(() => {
    const { width, height } = document.getElementById("view");
    const data = document.getElementById("view").getContext("2d").getImageData(0, 0, width, height).data;
    return { width, height, mean: data.reduce((a, b) => a + b, 0) / data.length };
  });
  await page.goto(url);
  await page.waitForFunction(() => window.ready);
  await shoot("empty");
  const only = await after(() => page.setInputFiles("#files", `${folder}/explainer.onnx`), "said");
  const first = await after(() => drop(["photo.jpg"]), "explained");
  await shoot("photo");
  const full = await look();
  await page.fill("#overlay", "0");
  const bare = await look();
  await page.fill("#overlay", "75");
  await page.fill("#search", "leopard");
  const matches = await page.locator("#list button span").allTextContents();
  await shoot("search");
  const searched = await after(() => page.tap("#list button"), "explained");
  const other = await after(() => page.selectOption("#policy", { index: 1 }), "explained");
  await page.locator("#view").hover({ position: { x: 5, y: 5 } });
  const value = await page.textContent("#value");
  const refused = {};
  for (const name of readdirSync(folder).filter((name) => name.startsWith("wrong")).sort()) {
    refused[name] = await after(() => drop([name]), "said");
  }
  await shoot("refused");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  const status = await page.evaluate(() => document.querySelector("#status.wrong")?.getAttribute("role"));
  await page.fill("#search", "");
  const demo = await after(() => page.tap("#demo"), "explained");
  await shoot("demo");
  await page.setViewportSize({ width: 1400, height: 900 });
  await shoot("wide");
  console.log(JSON.stringify({ only, first, full, bare, matches, searched, other, value, refused, wide, status, demo, complaints }));
} catch (error) {
  console.error(`${error.message}\nthe page says: ${await page?.textContent("#status")}\n${complaints.join("\n")}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
