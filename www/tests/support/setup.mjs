// What most files of tests need: a server, a browser, and a folder, which are gone when the file is done. Node runs each
// file in a process of its own, so one of each is enough.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before } from "node:test";
import { launch } from "./browser.mjs";
import { repository, serve } from "./server.mjs";

export let server, browser, folder;

/** `options` are those of `serve`, `flags` those of the browser. */
export function setUp(options, flags) {
  before(async () => {
    server = await serve(options);
    browser = await launch(flags);
    folder = mkdtempSync(join(tmpdir(), "luthier-"));
  });
  after(async () => {
    await browser?.close();
    await server?.close();
    if (folder) rmSync(folder, { recursive: true });
  });
}

/** The command line tool; `cargo xtask test` says where it is. */
export function luthier(...args) {
  return execFileSync(process.env.LUTHIER ?? join(repository, "target/debug/luthier"), args, { encoding: "utf8" });
}
