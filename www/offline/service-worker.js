// Keeps one version of the whole page for use without a network. offline/plugin.ts writes VERSION and FILES above this.
// A new version waits until no tab uses the old one, or until the only tab says so: no run is ever cut off.
// A policy reaches a service worker only by headers, which plain hosts do not set. So it asks for FILES and for nothing else,
// hears nothing of what the page holds, and tells the page of every request that it makes.

const PREFIX = `luthier ${registration.scope} `;
const CACHE = PREFIX + VERSION;

addEventListener("install", (event) => {
  // Past the HTTP cache: files of two versions must not mix.
  const requests = FILES.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
});

addEventListener("activate", (event) => {
  event.waitUntil(Promise.all([dropOthers(), clients.claim()]));
});

async function dropOthers() {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
}

addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const path = pathOf(url);
  if (method === "GET" && FILES.includes(path)) event.respondWith(answer(event.request, path));
});

/** The file a URL names below the page's folder; other origins have none. */
function pathOf(url) {
  const { origin, pathname } = new URL(url);
  const scope = new URL(registration.scope);
  if (origin !== scope.origin || !pathname.startsWith(scope.pathname)) return "";
  return decodeURIComponent(pathname.slice(scope.pathname.length)) || "index.html";
}

async function answer(request, path) {
  const cache = await caches.open(CACHE);
  return (await cache.match(path)) ?? fetch(request);
}

// ---- what the page may ask

addEventListener("message", (event) => {
  if (event.data === "requests?") event.source.postMessage({ requests });
  if (event.data === "take over") event.waitUntil(takeOver(event.source));
});

/** Files of the old version must not go while another tab may still need them. */
async function takeOver(page) {
  const tabs = await clients.matchAll({ type: "window", includeUncontrolled: true });
  if (tabs.length > 1) page.postMessage({ tabs: tabs.length });
  else await skipWaiting();
}

const requests = [];

async function note(request) {
  requests.push(request);
  for (const page of await clients.matchAll({ includeUncontrolled: true })) page.postMessage({ requests: [request] });
}

new PerformanceObserver((list) => {
  for (const { name: url, initiatorType: kind, transferSize: bytes } of list.getEntries()) void note({ url, kind, bytes, blocked: false });
}).observe({ type: "resource", buffered: true });

addEventListener("securitypolicyviolation", ({ blockedURI: url, effectiveDirective: kind }) => {
  void note({ url, kind, bytes: 0, blocked: true });
});
