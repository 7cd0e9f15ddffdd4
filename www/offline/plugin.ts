import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import type { Plugin } from "vite";

const SERVICE_WORKER = "service-worker.js";

/** Writes the service worker, which keeps every file of the build; its version is the hash of all of them. */
export function offline(): Plugin {
  let out = "";
  return {
    name: "luthier-offline",
    apply: "build",
    enforce: "post",
    configResolved(config) {
      out = join(config.root, config.build.outDir);
    },
    closeBundle() {
      const files = filesIn(out).filter((file) => file !== SERVICE_WORKER);
      const hash = createHash("sha256");
      for (const file of files) hash.update(`${file}\0`).update(readFileSync(join(out, file)));
      const version = hash.digest("hex").slice(0, 16);
      const source = readFileSync(join(import.meta.dirname, SERVICE_WORKER), "utf8");
      const facts = `const VERSION = ${JSON.stringify(version)};\nconst FILES = ${JSON.stringify(files)};\n`;
      writeFileSync(join(out, SERVICE_WORKER), facts + source);
    },
  };
}

function filesIn(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return files.map((file) => relative(folder, file).split(sep).join("/")).sort();
}
