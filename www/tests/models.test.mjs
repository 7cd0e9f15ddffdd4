// The page of models: the only one that may connect to a hub. The hub here is a stand-in inside the browser.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import { facadePage } from "./support/browser.mjs";
import { browser, server, setUp } from "./support/setup.mjs";

const HUB = "https://huggingface.co";
const REPO = "HuggingFaceTB/SmolLM2-135M";
const weights = randomBytes(3_000_000);
const texts = { "config.json": "{}", "generation_config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}" };
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

setUp();

/** A hub that gives at most `most` bytes of a large file at a time, lacks the file `without`, and may be mute. */
async function hub(context, { most = Infinity, sent = weights, without = "", mute = () => false } = {}) {
  const asked = [];
  const headers = { "access-control-allow-origin": "*", "access-control-expose-headers": "*", "access-control-allow-headers": "range" };
  const small = Object.entries(texts).filter(([name]) => name !== without).map(([rfilename, text]) => ({ rfilename, size: text.length }));
  const large = { rfilename: "model.safetensors", size: weights.length, lfs: { sha256: sha256(weights) } };
  await context.route(`${HUB}/**`, (route) => {
    const path = new URL(route.request().url()).pathname;
    asked.push(path);
    if (path.startsWith("/api/")) return route.fulfill({ headers, json: { sha: "abc123", siblings: [...small, large] } });
    const name = path.split("/").at(-1);
    if (name === "model.safetensors" && mute()) return;
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

/** Answers the question that every deletion asks; the dialog shuts by itself. */
async function confirm(page, name) {
  await page.getByRole("alertdialog", { name }).locator("[data-confirm]").click();
}

/** Runs `work`, a text, on the weights (`file`), the manifest, and the names of the folders beside it (`folders`). */
const inStore = (page, work) => page.evaluate(`(async () => {
  let at = await navigator.storage.getDirectory();
  for (const part of ["models", encodeURIComponent("${REPO}")]) at = await at.getDirectoryHandle(part);
  const manifest = JSON.parse(await (await (await at.getFileHandle("model.json")).getFile()).text());
  const folders = [];
  for await (const handle of at.values()) if (handle.kind === "directory") folders.push(handle.name);
  const file = await (await at.getDirectoryHandle(manifest.folder)).getFileHandle("model%2Esafetensors");
  ${work}
})()`);

test("a model is downloaded, goes on where it broke off, is checked, listed and deleted", async () => {
  const { context, page, row } = await open();
  const asked = await hub(context, { most: 2_000_000 });
  await page.goto(`${server.app}models.html?model=smollm2-135m`);
  await row.getByText("hash not known in advance, computed and kept at first download").waitFor();
  assert.deepEqual(asked, [], "nothing is asked for before somebody asks");
  await button(row, "Download").click();
  await row.getByRole("alert").filter({ hasText: "2000000 of 3000000 bytes" }).waitFor();
  await page.reload();
  await row.getByText("the rest is missing, revision abc123").waitFor();
  await button(row, "Continue").click();
  await row.getByText("complete, revision abc123").waitFor();
  assert.deepEqual(asked.filter((line) => line.startsWith("from")), ["from 0", "from 2000000"]);
  assert.ok(asked.includes(`/${REPO}/resolve/abc123/model.safetensors`), "one revision for all files");
  assert.ok(asked.includes(`/api/models/${REPO}/revision/abc123`), "the revision of the first try, not the newest");

  const { hash, manifest, folders } = await inStore(page, `
    const bytes = await (await file.getFile()).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return { hash: [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join(""), manifest, folders };
  `);
  assert.equal(hash, sha256(weights));
  assert.deepEqual(manifest.source, { url: `${HUB}/${REPO}`, revision: "abc123" });
  assert.deepEqual(folders, [manifest.folder]);
  const by = Object.fromEntries(manifest.files.map((file) => [file.name, file.sha256_by]));
  assert.deepEqual(by, { "config.json": null, "generation_config.json": null, "tokenizer.json": null, "tokenizer_config.json": null, "model.safetensors": "the hub" });
  assert.equal(manifest.files.find(({ name }) => name === "config.json").sha256, sha256("{}"));

  await button(row, "Delete").click();
  await page.getByRole("alertdialog").getByRole("button", { name: "Keep it" }).click();
  await row.getByText("complete").waitFor();
  await button(row, "Delete").click();
  await confirm(page, "Delete this model?");
  await button(row, "Download").waitFor();
  await page.getByRole("status").filter({ hasText: "was deleted" }).waitFor();
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

test("a file that the hub no longer has is said by name", async () => {
  const { context, page, row } = await open();
  await hub(context, { without: "tokenizer.json" });
  await page.goto(`${server.app}models.html`);
  await button(row, "Download").click();
  await row.getByRole("alert").filter({ hasText: /abc123 has no tokenizer\.json/ }).waitFor();
  await button(row, "Download").waitFor();
  await context.close();
});

test("a model damaged in the store is not taken for whole, and the damaged file alone comes again", async () => {
  const { context, page, row } = await open();
  const asked = await hub(context);
  await page.goto(`${server.app}models.html`);
  await button(row, "Download").click();
  await row.getByText("complete").waitFor();
  await button(row, "Check again").click();
  await page.getByRole("status").filter({ hasText: "is as it was stored" }).waitFor();

  const write = (position, bytes) => inStore(page, `
    const writable = await file.createWritable({ keepExistingData: true });
    await writable.write({ type: "write", position: ${position}, data: new Uint8Array(${bytes}) });
    await writable.close();
  `);
  await write(1000, "[1, 2, 3, 4, 5, 6, 7, 8]");
  await button(row, "Check again").click();
  await row.getByRole("alert").filter({ hasText: /model\.safetensors has the SHA-256 .*expected/ }).waitFor();
  asked.length = 0;
  await button(row, "Continue").click();
  await row.getByText("complete").waitFor();
  assert.deepEqual(asked.filter((path) => path.includes("/resolve/")), [`/${REPO}/resolve/abc123/model.safetensors`]);

  await write(weights.length, "[1]");
  await page.reload();
  await row.getByText("the rest is missing").waitFor();
  const app = await context.newPage();
  await app.goto(server.app);
  await app.getByRole("link", { name: `Go on downloading ${REPO}` }).waitFor();
  await context.close();
});

test("a download can be cancelled while nothing comes, and goes on in one tab at a time", async () => {
  const { context, page, row } = await open();
  let silent = true;
  await hub(context, { mute: () => silent });
  await page.goto(`${server.app}models.html`);
  await button(row, "Download").click();
  await row.getByText(/Downloading: 0\.0 B|Downloading: 8 B/).waitFor();

  const second = await context.newPage();
  await second.goto(`${server.app}models.html`);
  const there = second.getByTestId("hub-smollm2-135m");
  await there.getByText("in use: open on another tab, or being written there").waitFor();
  assert.ok(await button(there, "Continue").isDisabled());
  assert.ok(await button(there, "Delete").isDisabled());
  const one = await second.evaluate(async (repo) => {
    const locks = await navigator.locks.query();
    return locks.held.some(({ name, mode }) => name === `luthier-model-${repo}` && mode === "exclusive");
  }, REPO);
  assert.ok(one, "one lock a model");

  await button(row, "Cancel").click();
  await button(row, "Continue").waitFor();
  silent = false;
  await second.reload();
  await button(there, "Continue").click();
  await there.getByText("complete").waitFor();
  await context.close();
});

test("a connection over which nothing comes is given up, and the error says for how long", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await facadePage(context, server);
  await context.route("**/never", () => {});
  const error = await page.evaluate(() => {
    const files = [{ name: "config.json", url: new URL("never", location.href).href }];
    return Luthier.downloadModel({ name: "stalled", files, stall_seconds: 1 }).then(() => null, ({ code, message }) => ({ code, message }));
  });
  assert.deepEqual(error, { code: "io", message: "config.json: nothing came for 1 s." });
  await context.close();
});

test("a new revision replaces the model only when all of it is there", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await facadePage(context, server);
  const first = await page.evaluate(async () => {
    const at = (name) => new URL(`models/nano/${name}`, location.href).href;
    const take = (revision, names) => Luthier.downloadModel({ name: "nano", source: { url: "here", revision }, files: names.map((name) => ({ name, url: at(name) })) });
    const files = async () => (await Luthier.storedModel("nano")).files.map(({ name }) => name);
    await take("one", ["config.json"]);
    const failed = await take("two", ["config.json", "nothing-of-this-name"]).catch(({ message }) => message);
    const kept = await files();
    await take("two", ["config.json", "tokenizer.json"]);
    return { failed, kept, now: await files(), models: await Luthier.models() };
  });
  assert.match(first.failed, /nothing-of-this-name: the server answered 404/);
  assert.deepEqual(first.kept, ["config.json"]);
  assert.deepEqual(first.now, ["config.json", "tokenizer.json"]);
  assert.deepEqual(first.models.map(({ complete, source }) => [complete, source.revision]), [[true, "two"]]);
  await context.close();
});

test("a copy of one's own files that is cut off leaves nothing behind", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await facadePage(context, server);
  const left = await page.evaluate(async () => {
    const files = [{ name: "big", blob: new Blob([new Uint8Array(30_000_000)]) }];
    const stop = new AbortController();
    const code = await Luthier.storeModel({ name: "mine", files }, () => stop.abort(), stop.signal).catch(({ code }) => code);
    return { code, models: await Luthier.models() };
  });
  assert.deepEqual(left, { code: "cancelled", models: [] });
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
