// A static host that sets no headers of its own, as the plainest hosts do: what protects the page must be in the page.

import { existsSync, readFileSync, statSync } from "node:fs";
import http from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

export const www = fileURLToPath(new URL("../..", import.meta.url));
export const repository = fileURLToPath(new URL("../../..", import.meta.url));

const MIME = {
  ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".json": "application/json",
  ".svg": "image/svg+xml", ".png": "image/png", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json",
};

/** The app is below /app/, so that nothing can rely on lying at the root; luthier-web is beside it, as /luthier-web/. */
const FOLDERS = { "/app/": join(www, "dist"), "/luthier-web/": join(www, "luthier-web") };

/** A page of the app's policy and nothing else: tests of luthier-web run in it. */
function blank() {
  const [meta] = readFileSync(join(www, "dist/index.html"), "utf8").match(/<meta[^>]*Content-Security-Policy[^>]*>/s);
  return `<!doctype html><html lang="en"><meta charset="utf-8">${meta}<title>blank</title></html>`;
}

/** `inject` is put before the worker's script: the only way into it from outside. */
export async function serve({ inject = "", port = 0 } = {}) {
  const requests = [];
  const server = http.createServer((request, response) => {
    requests.push(request.url);
    const path = normalize(decodeURIComponent(request.url.split("?")[0]));
    const found = path === "/app/blank.html" ? blank() : fileOf(path);
    if (found === null) return response.writeHead(404).end();
    const type = MIME[extname(path) || ".html"] ?? "application/octet-stream";
    const injected = /worker[^/]*\.js$/.test(path) && !path.includes("service") ? inject : "";
    response.writeHead(200, { "content-type": type }).end(injected ? injected + found : found);
  });
  await new Promise((ready) => server.listen(port, "127.0.0.1", ready));
  const origin = `http://127.0.0.1:${server.address().port}`;
  const close = () => new Promise((closed) => (server.close(closed), server.closeAllConnections()));
  return { origin, app: `${origin}/app/`, requests, close };
}

function fileOf(path) {
  const [prefix, folder] = Object.entries(FOLDERS).find(([prefix]) => path.startsWith(prefix)) ?? [];
  if (!prefix) return null;
  const rest = path.slice(prefix.length) || "index.html";
  const file = join(folder, rest);
  return existsSync(file) && statSync(file).isFile() ? readFileSync(file) : null;
}
