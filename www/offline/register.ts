/** Under Trusted Types a script is named by a policy; this one can name no other than the service worker. */
interface Scripts {
  trustedTypes?: { createPolicy(name: string, rules: { createScriptURL(): string }): { createScriptURL(url: string): string } };
}

const SCRIPT = "./service-worker.js";

/**
 * The page works without a network after the first visit. Where a service worker is not to be had it goes on without.
 * `onWaiting` hears of a new version that waits for this one to end.
 */
export function registerServiceWorker(onWaiting: (version: ServiceWorker) => void = () => {}): void {
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  // Not while the page itself is still loading.
  const start = () => void register(onWaiting).catch(console.warn);
  if (document.readyState === "complete") start();
  else window.addEventListener("load", start, { once: true });
}

async function register(onWaiting: (version: ServiceWorker) => void): Promise<void> {
  const policy = (globalThis as Scripts).trustedTypes?.createPolicy("luthier-offline", { createScriptURL: () => SCRIPT });
  const script = policy?.createScriptURL(SCRIPT) ?? SCRIPT;
  const registration = await navigator.serviceWorker.register(script, { scope: "./" });
  // The first version of all takes over by itself.
  const look = () => registration.waiting && navigator.serviceWorker.controller && onWaiting(registration.waiting);
  look();
  registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", look));
}
