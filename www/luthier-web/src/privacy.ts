/** For pages that hold data which must stay: ways out that no policy closes are taken away, and what is asked is seen. */

/** A request as the browser counts it, or as its policy refused it. */
export interface SeenRequest {
  url: string;
  /** What asked for it ("fetch", "script" …), or the directive that refused it. */
  kind: string;
  /** Over the network; 0 is from a cache. */
  bytes: number;
  blocked: boolean;
}

/** No Content-Security-Policy reaches the first two; the third obeys it only in some browsers. */
const WAYS_OUT = ["RTCPeerConnection", "webkitRTCPeerConnection", "WebTransport"];

/**
 * To be called before any data are read. A foreign script could have them again through an empty frame; that there is none
 * is what `script-src` and Trusted Types are for.
 */
export function closeWaysOut(): void {
  for (const name of WAYS_OUT) Reflect.deleteProperty(globalThis, name);
}

/** Tells of every request of this page or worker, from its first one on, and of those that the policy refused. */
export function watchRequests(tell: (request: SeenRequest) => void): void {
  const note = (entry: PerformanceEntry) => {
    const { name: url, initiatorType: kind, transferSize: bytes } = entry as PerformanceResourceTiming;
    if (!/^(blob|data):/.test(url)) tell({ url, kind, bytes, blocked: false });
  };
  const observer = new PerformanceObserver((list) => list.getEntries().forEach(note));
  // The default buffer of 250 entries feeds only what observes late.
  const types = ["navigation", "resource"].filter((type) => PerformanceObserver.supportedEntryTypes.includes(type));
  for (const type of types) observer.observe({ type, buffered: true });
  globalThis.addEventListener("securitypolicyviolation", (event) => {
    const { blockedURI: url, effectiveDirective: kind } = event as SecurityPolicyViolationEvent;
    tell({ url, kind, bytes: 0, blocked: true });
  });
}

const listeners = new Set<(request: SeenRequest) => void>();

/** Hears of what the workers ask for. */
export function onRequest(heard: (request: SeenRequest) => void): () => void {
  listeners.add(heard);
  return () => listeners.delete(heard);
}

export const tellAll = (request: SeenRequest): void => listeners.forEach((heard) => heard(request));
