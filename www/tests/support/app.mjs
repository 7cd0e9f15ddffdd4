// The page as a person uses it: by what is written on it.

export const SCREENS = ["model", "data", "try", "train", "compare", "keep"];

/** Opens the app; `problems` gathers what must not happen: uncaught errors, blocked requests, requests elsewhere. */
export async function openApp(context, server, path = "") {
  const page = await context.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("request", (request) => /^(blob|data):/.test(request.url()) || request.url().startsWith(server.origin) || problems.push(request.url()));
  await page.goto(server.app + path);
  await page.locator("[data-sample]").or(page.locator("#start-nano")).first().waitFor();
  return Object.assign(page, { problems });
}

export const goTo = (page, screen) => page.locator(`[data-step="${screen}"]`).click();
export const phase = (page, name, timeout = 120_000) => page.locator(`[data-phase="${name}"]`).waitFor({ timeout });

/** The bundled model with a bundled set, up to the point where training could begin. */
export async function ready(page, sample = "larder") {
  await page.locator("#start-nano").click();
  await page.locator(`[data-sample="${sample}"]`).click();
  await page.locator("#train-now:enabled").waitFor();
}

/** Trains; the milliseconds from the click to the first step on the screen, asked at each frame: locators ask twice a second. */
export async function firstStep(page) {
  await page.locator("#train-now").click();
  const clicked = performance.now();
  const shown = () => /Step [1-9]/.test(document.querySelector('[data-phase="running"]')?.textContent ?? "");
  await page.waitForFunction(shown, null, { timeout: 60_000 });
  return performance.now() - clicked;
}

/** Settings through the link that the page itself makes: shorter runs than people want. */
export const settings = (options) => `#${new URLSearchParams(options)}`;

/** Drops a file where the group with this label is. */
export async function drop(page, label, name, content) {
  const bytes = [...Buffer.from(content)];
  await page.getByRole("group", { name: label }).evaluate((target, [name, bytes]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
    for (const type of ["dragover", "drop"]) target.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
  }, [name, bytes]);
}

/** Judges the two bundled sets that were held out, on the Compare step: shares right of each before and after, in percent. */
export async function scored(page) {
  await goTo(page, "compare");
  await page.locator("#score:enabled").click();
  const sets = page.locator("[data-scores] .scores > li");
  await sets.nth(1).waitFor({ timeout: 240_000 });
  const texts = await sets.allTextContents();
  return texts.map((text) => text.match(/: (\d+)\s*% right before, (\d+)\s*% after/)).map(([, before, after]) => ({ before: Number(before), after: Number(after) }));
}
