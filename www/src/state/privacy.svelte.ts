/** What this page, its engine and its service worker have asked of any server, and what the policy has refused. */

import { Luthier, type SeenRequest, watchRequests } from "luthier-web";

export type Asker = "the page" | "the engine" | "the service worker";

export interface Sent extends SeenRequest {
  by: Asker;
  own: boolean;
}

export const privacy = $state({ requests: [] as Sent[], blocked: [] as Sent[] });

/** Must start before anything else does. */
export function watch(): void {
  const noting = (by: Asker) => (request: SeenRequest) => {
    const seen = { ...request, by, own: URL.parse(request.url, location.href)?.origin === location.origin };
    (request.blocked ? privacy.blocked : privacy.requests).push(seen);
  };
  watchRequests(noting("the page"));
  Luthier.onRequest(noting("the engine"));
  watchServiceWorker(noting("the service worker"));
}

/** It outlives the page, so it is asked what it did before; from then on it tells by itself. */
function watchServiceWorker(note: (request: SeenRequest) => void): void {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return;
  serviceWorker.addEventListener("message", ({ data }: MessageEvent<{ requests?: SeenRequest[] }>) => data.requests?.forEach(note));
  serviceWorker.startMessages();
  void serviceWorker.ready.then(({ active }) => active?.postMessage("requests?"));
}

/** The policy in force, as far as the document says it. */
export const policy = (): string | null =>
  document.querySelector<HTMLMetaElement>('meta[http-equiv="Content-Security-Policy"]')?.content ?? null;
