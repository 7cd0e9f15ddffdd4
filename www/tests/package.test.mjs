// What the page weighs, and that it lies in one folder which needs nothing else.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import { test } from "node:test";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { www } from "./support/server.mjs";

const LARGEST_WASM = 3_000_000;
const LARGEST_SCRIPTS = 150_000;

const dist = join(www, "dist");
const files = readdirSync(dist, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => join(entry.parentPath, entry.name));

function ending(extension) {
  const found = files.filter((file) => extname(file) === extension);
  assert.ok(found.length > 0, `there is no ${extension}`);
  return found;
}

function weigh(name, files, largest) {
  const bytes = files.map((file) => readFileSync(file));
  const sum = (compress) => bytes.map((content) => compress(content).length).reduce((a, b) => a + b, 0);
  const plain = sum((content) => content);
  const gzip = sum((content) => gzipSync(content, { level: 9 }));
  const brotli = sum((content) => brotliCompressSync(content, { params: { [constants.BROTLI_PARAM_QUALITY]: 9 } }));
  console.log(`${name}: ${plain} bytes, ${gzip} as gzip, ${brotli} as brotli (at most ${largest})`);
  assert.ok(gzip <= largest, `${name} has ${gzip} bytes compressed, at most ${largest} are allowed`);
}

test("the wasm is small enough", () => {
  assert.equal(ending(".wasm").length, 1);
  weigh("wasm", ending(".wasm"), LARGEST_WASM);
});

test("the scripts are small enough", () => weigh("scripts", ending(".js"), LARGEST_SCRIPTS));

test("the page names no other host and no place from the root", () => {
  for (const file of ending(".html")) {
    const html = readFileSync(file, "utf8").replace(/<meta[^>]*Content-Security-Policy[^>]*>/s, "");
    const references = [...html.matchAll(/(?:src|href)="([^"]*)"/g)].map(([, reference]) => reference);
    assert.ok(references.length > 0);
    for (const reference of references) assert.match(reference, /^(\.\/|#)/, `${file}: ${reference}`);
  }
});

test("no script can open a channel that no policy closes", () => {
  for (const file of ending(".js")) assert.doesNotMatch(readFileSync(file, "utf8"), /RTCPeerConnection\(/, file);
});
