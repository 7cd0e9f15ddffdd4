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

export const policy = () => readFileSync(join(www, "csp.txt"), "utf8").trim();

/**
 * Empty pages: tests of luthier-web run in the one with the app's policy; the others are for comparison, without the part
 * about Trusted Types, and without any policy.
 */
const PAGES = {
  "/app/blank.html": policy,
  "/app/untyped.html": () => policy().replace(/; require-trusted-types-for.*/, ""),
  "/app/open.html": () => null,
};

function pageWith(policy) {
  const meta = policy ? `<meta http-equiv="Content-Security-Policy" content="${policy}">` : "";
  return `<!doctype html><html lang="en"><meta charset="utf-8">${meta}<title>blank</title></html>`;
}

/**
 * `inject` is put before the engine's worker: the only way into it from outside. `alter(path, body)` may give another body
 * and more headers for any path.
 */
export async function serve({ inject = "", alter = () => ({}), port = 0 } = {}) {
  const requests = [];
  const server = http.createServer((request, response) => {
    requests.push(request.url);
    const path = normalize(decodeURIComponent(request.url.split("?")[0]));
    const found = PAGES[path] ? pageWith(PAGES[path]()) : fileOf(path);
    if (found === null) return response.writeHead(404).end();
    const type = MIME[extname(path) || ".html"] ?? "application/octet-stream";
    const injected = /worker[^/]*\.js$/.test(path) && !path.includes("service") ? inject : "";
    const { body = injected ? injected + found : found, headers = {} } = alter(path, found);
    response.writeHead(200, { "content-type": type, ...headers }).end(body);
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
