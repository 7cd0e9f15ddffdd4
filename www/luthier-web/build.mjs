// Builds dist/: the façade, the worker with the engine's JavaScript in it, the wasm, and the types. `cargo xtask wasm` has
// put the engine into pkg/ before.

import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { build } from "rolldown";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));

if (!existsSync(at("pkg/luthier_bg.wasm"))) {
  throw new Error("www/luthier-web/pkg has no engine: run `cargo xtask wasm` first");
}
rmSync(at("dist"), { recursive: true, force: true });
// Two builds, so that the worker is one file: whoever bundles the façade brings it along as it is.
for (const name of ["index", "worker"]) {
  await build({
    input: at(`src/${name}.ts`),
    platform: "browser",
    output: { file: at(`dist/${name}.js`), format: "esm", minify: name === "worker", codeSplitting: false },
  });
}
copyFileSync(at("pkg/luthier_bg.wasm"), at("dist/luthier_bg.wasm"));
const tsc = createRequire(import.meta.url).resolve("typescript/package.json").replace("package.json", "bin/tsc");
execFileSync(process.execPath, [tsc, "--emitDeclarationOnly", "--project", at("tsconfig.json")], { stdio: "inherit" });
