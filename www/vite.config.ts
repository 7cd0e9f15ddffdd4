import { readdirSync, readFileSync } from "node:fs";
import { basename, extname, resolve } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";
import { offline } from "./offline/plugin.ts";

const here = import.meta.dirname;
const MIME: Record<string, string> = { ".json": "application/json", ".jsonl": "application/jsonl" };

/** Files of the repository that the page serves beside itself: page path → file. */
function repositoryFiles(): Map<string, string> {
  const files = new Map<string, string>();
  const add = (from: string, to: string) => {
    for (const entry of readdirSync(resolve(here, from), { withFileTypes: true })) {
      if (entry.isFile()) files.set(`${to}/${entry.name}`, resolve(here, from, entry.name));
    }
  };
  add("../models/nano", "models/nano");
  add("../demo", "demo");
  add("../demo/gallery", "demo/gallery");
  files.set("models/registry.json", resolve(here, "../models/registry.json"));
  return files;
}

/** The bundled model and the sample data, served in development and copied into the build under the same paths. */
function bundled(): Plugin {
  const files = repositoryFiles();
  return {
    name: "luthier-bundled",
    configureServer(server) {
      server.middlewares.use((request, response, next) => {
        const file = files.get((request.url ?? "").split("?")[0]!.replace(/^\//, ""));
        if (!file) return next();
        response.setHeader("content-type", MIME[extname(file)] ?? "application/octet-stream");
        response.end(readFileSync(file));
      });
    },
    generateBundle() {
      for (const [path, file] of files) {
        if (basename(path) === "README.md") continue;
        this.emitFile({ type: "asset", fileName: path, source: readFileSync(file) });
      }
    },
  };
}

/** Where the page of models may go beside its own server: that of the registry, and the hosts to which it redirects. */
const HUB = "https://huggingface.co https://*.hf.co";

/** The policy of csp.txt as <meta>, for hosts that set no headers. Vite's development client could not live under it. */
function policy(): Plugin {
  const own = readFileSync(resolve(here, "csp.txt"), "utf8").trim();
  const withHub = own.replace("connect-src 'self'", `connect-src 'self' ${HUB}`);
  return {
    name: "luthier-csp",
    apply: "build",
    transformIndexHtml(html, { filename }) {
      const content = basename(filename) === "models.html" ? withHub : own;
      // As it is written and first of all: servers may read it, and nothing may load before it.
      return html.replace("<head>", `<head>\n    <meta http-equiv="Content-Security-Policy" content="${content}" />`);
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [svelte(), bundled(), policy(), offline()],
  build: {
    target: "es2023",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: { input: ["index.html", "models.html", "bench.html"].map((name) => resolve(here, name)) },
  },
});
