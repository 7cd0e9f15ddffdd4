// A headless Chromium with a software WebGPU, and a page in it with luthier-web loaded.

import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { chromium } from "playwright-core";

/** WebGPU is opt-in without a display; the rest keeps it off the network. */
const FLAGS = [
  "--headless=new", "--no-sandbox", "--enable-unsafe-webgpu", "--disable-background-networking", "--disable-component-update",
  "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
];
const SOFTWARE = ["--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader"];
const HARDWARE = ["--ignore-gpu-blocklist", "--enable-features=Vulkan"];
const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/** `cargo xtask` says where Chromium is; who starts the tests by hand has it on the path. */
function executable() {
  const folders = (process.env.PATH ?? "").split(delimiter);
  const candidates = folders.flatMap((folder) => NAMES.map((name) => join(folder, name)));
  const found = process.env.CHROMIUM ?? candidates.find(existsSync);
  if (!found) throw new Error("no Chromium or Chrome found: install one, or set CHROMIUM to its program");
  return found;
}

/** `args` are flags beside the usual ones; `hardware` takes the machine's GPU in place of SwiftShader. */
export const launch = (args = [], hardware = false) =>
  chromium.launch({ executablePath: executable(), args: [...FLAGS, ...(hardware ? HARDWARE : SOFTWARE), ...args] });

/** Run in a page it makes the browser one that cannot decode relaxed SIMD. */
export const WITHOUT_RELAXED_SIMD = "WebAssembly.validate = () => false";

/** A page in which `Luthier` is a global and `nano()` opens the bundled model. What goes wrong in it is printed. */
export async function facadePage(context, server, path = "blank.html") {
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error("page:", error.message));
  await page.goto(server.app + path);
  await page.evaluate(async () => {
    const { Luthier } = await import("../luthier-web/dist/index.js");
    const names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    const blob = async (name) => ({ name, blob: await (await fetch(`models/nano/${name}`)).blob() });
    globalThis.Luthier = Luthier;
    globalThis.nano = async (device, options = {}) =>
      Luthier.open({ model: { name: "nano", files: await Promise.all(names.map(blob)) }, device, ...options });
    globalThis.text = async (path) => (await fetch(path)).text();
    globalThis.bytes = async (blob) => [...new Uint8Array(await blob.arrayBuffer())];
  });
  return page;
}
