/** A new version of the page, which waits until the user lets it in. */

export const update = $state({
  waiting: null as ServiceWorker | null,
  /** Tabs that are open with this version, when that is why it cannot come in. */
  tabs: 0,
});

export function offerUpdate(version: ServiceWorker): void {
  update.waiting = version;
}

/** Only the new version can tell how many tabs still use this one: it takes over, or says so. */
export function takeUpdate(): void {
  const { serviceWorker } = navigator;
  serviceWorker.addEventListener("controllerchange", () => location.reload(), { once: true });
  serviceWorker.addEventListener("message", ({ data }: MessageEvent<{ tabs?: number }>) => (update.tabs = data.tabs ?? update.tabs));
  update.waiting?.postMessage("take over");
}
