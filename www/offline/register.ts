/** The page works without a network after the first visit. Where a service worker is not to be had it goes on without. */
export function registerServiceWorker(): void {
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  const register = () => navigator.serviceWorker.register("./service-worker.js", { scope: "./" }).catch(console.warn);
  // Not while the page itself is still loading.
  if (document.readyState === "complete") void register();
  else window.addEventListener("load", register, { once: true });
}
