// Builds dist/: the façade, the workers with the engines' JavaScript in them, the wasm, and the types. `cargo xtask wasm` has
// put the engines into pkg/ before.

import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { build } from "rolldown";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));

const ENGINES = ["luthier_bg.wasm", "luthier_relaxed_bg.wasm"];
for (const engine of ENGINES) {
  if (!existsSync(at(`pkg/${engine}`))) throw new Error(`www/luthier-web/pkg has no ${engine}: run \`cargo xtask wasm\` first`);
}
rmSync(at("dist"), { recursive: true, force: true });
// A build each, so that a worker is one file: whoever bundles the façade brings it along as it is.
for (const name of ["index", "worker_baseline", "worker_relaxed"]) {
  await build({
    input: at(`src/${name}.ts`),
    platform: "browser",
    output: { file: at(`dist/${name}.js`), format: "esm", minify: name !== "index", codeSplitting: false },
  });
}
for (const engine of ENGINES) copyFileSync(at(`pkg/${engine}`), at(`dist/${engine}`));
const tsc = createRequire(import.meta.url).resolve("typescript/package.json").replace("package.json", "bin/tsc");
execFileSync(process.execPath, [tsc, "--emitDeclarationOnly", "--project", at("tsconfig.json")], { stdio: "inherit" });
