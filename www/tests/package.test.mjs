// What the page weighs, and that it lies in one folder which needs nothing else.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { basename, extname, join } from "node:path";
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

/** Of the files with this ending, what a browser with relaxed SIMD loads, or one without. */
const loaded = (extension, relaxed) =>
  ending(extension).filter((file) => !(relaxed ? /(worker_baseline|luthier_bg)-/ : /_relaxed/).test(basename(file)));

for (const relaxed of [true, false]) {
  const browser = relaxed ? "with relaxed SIMD" : "for every browser";

  test(`the wasm ${browser} is small enough`, () => {
    assert.equal(loaded(".wasm", relaxed).length, 1);
    // Named in the section of the features that a module asks for: nothing here could tell a mix-up by running it.
    assert.equal(readFileSync(loaded(".wasm", relaxed)[0]).includes("relaxed-simd"), relaxed);
    weigh("wasm", loaded(".wasm", relaxed), LARGEST_WASM);
  });

  test(`the scripts ${browser} are small enough`, () => {
    assert.equal(loaded(".js", relaxed).length, ending(".js").length - 1);
    weigh("scripts", loaded(".js", relaxed), LARGEST_SCRIPTS);
  });
}

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
