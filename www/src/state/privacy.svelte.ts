/** What this page has asked of any server, as the browser itself counts it, and what its policy has blocked. */

export interface Sent {
  url: string;
  own: boolean;
  kind: string;
  bytes: number;
}

export const privacy = $state({ requests: [] as Sent[], blocked: [] as string[] });

/** Must start before anything else does. */
export function watchRequests(): void {
  const note = (entry: PerformanceEntry) => {
    const { name, initiatorType, transferSize } = entry as PerformanceResourceTiming;
    const url = new URL(name, location.href);
    if (url.protocol === "blob:" || url.protocol === "data:") return;
    privacy.requests.push({ url: name, own: url.origin === location.origin, kind: initiatorType, bytes: transferSize });
  };
  const observer = new PerformanceObserver((list) => list.getEntries().forEach(note));
  observer.observe({ type: "navigation", buffered: true });
  observer.observe({ type: "resource", buffered: true });
  // The default buffer of 250 entries feeds only what observes late.
  document.addEventListener("securitypolicyviolation", ({ blockedURI, effectiveDirective }) => {
    privacy.blocked.push(`${effectiveDirective}: ${blockedURI || "inline"}`);
  });
}

/** The policy in force, as far as the document says it. */
export const policy = (): string | null =>
  document.querySelector<HTMLMetaElement>('meta[http-equiv="Content-Security-Policy"]')?.content ?? null;
