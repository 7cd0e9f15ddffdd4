// Takes the pictures in this folder from the built page, with a real run on the CPU back end: `node www/docs/take.mjs`.

import { writeFileSync } from "node:fs";
import { goTo, openApp, phase, ready } from "../tests/support/app.mjs";
import { launch } from "../tests/support/browser.mjs";
import { serve } from "../tests/support/server.mjs";
import { shrink } from "./png.mjs";

const LAPTOP = { width: 1366, height: 768 };
const PHONE = { width: 390, height: 844 };

const server = await serve();
const browser = await launch();
const context = await browser.newContext({ serviceWorkers: "block", viewport: LAPTOP });
const page = await openApp(context, server);

async function picture(name) {
  await page.mouse.move(0, 0);
  await page.waitForTimeout(400);
  writeFileSync(new URL(`${name}.png`, import.meta.url), shrink(await page.screenshot()));
}

async function take(name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await picture(`${name}-${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
}

async function onPhone(name) {
  await page.setViewportSize(PHONE);
  await picture(`${name}-phone`);
  await page.setViewportSize(LAPTOP);
}

const scrollTo = (selector) => page.locator(selector).evaluate((element) => element.scrollIntoView());
const idle = (selector) => page.locator(`${selector}:enabled`).waitFor({ timeout: 240_000 });

await take("model");
await onPhone("model");
await ready(page);
await scrollTo("[data-found]");
await take("data");
await goTo(page, "try");
await page.locator("#ask-base").click();
await idle("#ask-base");
await take("try");
await page.locator("#probe").click();
await page.locator("[data-found-potential]").waitFor({ timeout: 600_000 });
await scrollTo("#probe-title");
await take("probe");
await goTo(page, "train");
await page.getByText(/by the two-second measurement/).waitFor({ timeout: 60_000 });
await take("settings");
await page.locator("#train-start").click();
await page.getByText(/^Step (9\d|1\d\d) of/).waitFor({ timeout: 240_000 });
await take("train");
await onPhone("train");
await phase(page, "ended", 300_000);
await scrollTo("#probes-title");
await take("probes");
await goTo(page, "compare");
await idle("#score");
await page.locator("#score").click();
await idle("#score");
await take("compare");
await onPhone("compare");
await goTo(page, "keep");
await take("keep");
await page.locator(".private").click();
await take("privacy");
await page.keyboard.press("Escape");
await goTo(page, "data");
await page.locator('[data-sample="sentiment"]').click();
await page.getByText("Found in Sentiment").waitFor();
await goTo(page, "train");
await page.locator("#train-again").click();
await page.locator("#several").check();
for (const name of ["Prompt", "All weights"]) await page.getByRole("checkbox", { name, exact: true }).check();
await page.locator("#option-steps").fill("80");
await page.locator("#option-steps").blur();
await page.locator('[data-plan="full"]').waitFor();
await scrollTo("#main");
await take("several");
await page.locator("#contest-start").click();
await page.locator('[data-contest="ended"]').waitFor({ timeout: 900_000 });
await page.locator("#contest-figure").selectOption("task");
await take("methods");
await onPhone("methods");

await page.goto(`${server.app}models.html`);
await page.getByText("of room is left").waitFor();
await take("models");

await browser.close();
await server.close();
