// The page of models: the only one that may connect to a hub. The hub here is a stand-in inside the browser.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import { browser, server, setUp } from "./support/setup.mjs";

const HUB = "https://huggingface.co";
const REPO = "HuggingFaceTB/SmolLM2-135M";
const weights = randomBytes(3_000_000);
const texts = { "config.json": "{}", "generation_config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}" };
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

setUp();

/** A hub that redirects large files, as the real one does, and gives at most `most` bytes of them at a time. */
async function hub(context, { most = Infinity, sent = weights } = {}) {
  const asked = [];
  const headers = { "access-control-allow-origin": "*", "access-control-expose-headers": "*", "access-control-allow-headers": "range" };
  const small = Object.entries(texts).map(([rfilename, text]) => ({ rfilename, size: text.length }));
  const large = { rfilename: "model.safetensors", size: weights.length, lfs: { sha256: sha256(weights) } };
  await context.route(`${HUB}/**`, (route) => {
    const path = new URL(route.request().url()).pathname;
    asked.push(path);
    if (path.startsWith("/api/")) return route.fulfill({ headers, json: { sha: "abc123", siblings: [...small, large] } });
    const name = path.split("/").at(-1);
    if (name in texts) return route.fulfill({ headers, body: texts[name] });
    const [, from = "0"] = route.request().headers().range?.match(/bytes=(\d+)-/) ?? [];
    asked.push(`from ${from}`);
    const body = sent.subarray(Number(from), Number(from) + most);
    return route.fulfill({ status: from === "0" ? 200 : 206, headers, body });
  });
  return asked;
}

async function open() {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error("page:", error.message));
  return { context, page, row: page.getByTestId("hub-smollm2-135m") };
}

const button = (row, name) => row.getByRole("button", { name });

test("a model is downloaded, goes on where it broke off, is checked, listed and deleted", async () => {
  const { context, page, row } = await open();
  const asked = await hub(context, { most: 2_000_000 });
  await page.goto(`${server.app}models.html?model=smollm2-135m`);
  assert.deepEqual(asked, [], "nothing is asked for before somebody asks");
  await button(row, "Download").click();
  await row.getByRole("alert").filter({ hasText: "2000000 of 3000000 bytes" }).waitFor();
  await page.reload();
  await button(row, "Continue").click();
  await row.getByText("complete").waitFor();
  assert.deepEqual(asked.filter((line) => line.startsWith("from")), ["from 0", "from 2000000"]);
  assert.ok(asked.includes(`/${REPO}/resolve/abc123/model.safetensors`), "one revision for all files");

  const files = await page.evaluate(async (repo) => {
    let at = await navigator.storage.getDirectory();
    for (const name of ["models", encodeURIComponent(repo)]) at = await at.getDirectoryHandle(name);
    const file = await (await at.getFileHandle("model%2Esafetensors")).getFile();
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }, REPO);
  assert.equal(files, sha256(weights));
  await button(row, "Delete").click();
  await button(row, "Download").waitFor();
  await context.close();
});

test("a file that is not what the hub says is refused", async () => {
  const { context, page, row } = await open();
  await hub(context, { sent: randomBytes(weights.length) });
  await page.goto(`${server.app}models.html`);
  await button(row, "Download").click();
  await row.getByRole("alert").filter({ hasText: "SHA-256" }).waitFor();
  await row.getByText("the rest is missing").waitFor();
  await context.close();
});

test("the app's own page may not connect to the hub", async () => {
  const { context, page } = await open();
  const asked = await hub(context);
  await page.goto(server.app);
  const refused = await page.evaluate((url) => fetch(url).then(() => null, (error) => error.message), `${HUB}/api/models/${REPO}`);
  assert.ok(refused);
  assert.deepEqual(asked, []);
  await context.close();
});
