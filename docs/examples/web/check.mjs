// Opens the built page in a headless Chromium, uses it as a person would, and prints what it showed, as JSON.
//     node check.mjs URL [SCREENSHOT.png]

import { chromium } from "playwright-core";

const [url, screenshot] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const complaints = [];
let page;
try {
  page = await browser.newPage({ viewport: { width: 1180, height: 860 } });
  page.on("console", (message) => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(url);
  const shown = async (change) => {
    await page.evaluate(() => { window.explained = undefined; });
    await change();
    await page.waitForFunction(() => window.explained, undefined, { timeout: 60_000 });
    return { ...(await page.evaluate(() => window.explained)), status: await page.textContent("#status") };
  };
  await page.waitForFunction(() => window.explained, undefined, { timeout: 60_000 });
  const sample = await shown(() => page.click("#samples button:nth-child(2)"));
  if (screenshot) await page.screenshot({ path: screenshot });
  const cleared = await shown(() => page.click("#clear"));
  const box = await page.locator("#paper").boundingBox();
  const drawn = await shown(async () => {
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 4);
    await page.mouse.down();
  });
  await page.mouse.up();
  const chosen = await shown(() => page.click(".class:nth-child(4)"));
  const pressed = await page.getAttribute(".class:nth-child(4)", "aria-pressed");
  console.log(JSON.stringify({ sample, cleared, drawn, chosen, pressed, complaints }));
} catch (error) {
  console.error(`${error.message}\nthe page says: ${await page?.textContent("#status")}\n${complaints.join("\n")}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
