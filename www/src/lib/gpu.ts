/** What this browser offers, and what to do where WebGPU is missing. */

import { bytes } from "./format";

export type GpuCase = "ready" | "software" | "insecure" | "absent" | "no_adapter" | "too_small";

export interface GpuReport {
  case: GpuCase;
  name: string;
  limits: { buffer: number; binding: number; storageBuffers: number } | null;
  f16: boolean;
  subgroups: boolean;
}

export interface StorageReport {
  usage: number;
  quota: number;
  persisted: boolean;
}

/** Storage buffers a kernel binds, and the largest tensor that a model worth tuning has. */
const NEEDED_STORAGE_BUFFERS = 8;
const NEEDED_BINDING = 64 << 20;

/** The part of WebGPU's API that is asked here. */
interface Adapter {
  info?: { vendor?: string; architecture?: string; description?: string; isFallbackAdapter?: boolean };
  limits: { maxBufferSize: number; maxStorageBufferBindingSize: number; maxStorageBuffersPerShaderStage: number };
  features: ReadonlySet<string>;
}
interface Gpu {
  requestAdapter(options?: { powerPreference?: string }): Promise<Adapter | null>;
}

export async function probeGpu(): Promise<GpuReport> {
  const none = (kind: GpuCase): GpuReport => ({ case: kind, name: "", limits: null, f16: false, subgroups: false });
  if (!window.isSecureContext) return none("insecure");
  const gpu = (navigator as { gpu?: Gpu }).gpu;
  if (!gpu) return none("absent");
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  return adapter ? describe(adapter) : none("no_adapter");
}

function describe({ info = {}, limits, features }: Adapter): GpuReport {
  const { vendor, architecture, description, isFallbackAdapter } = info;
  const name = description || [vendor, architecture].filter(Boolean).join(" ") || "unnamed adapter";
  const software = isFallbackAdapter || /swiftshader|llvmpipe|lavapipe|basic render/i.test(`${name} ${architecture ?? ""}`);
  const small = limits.maxStorageBuffersPerShaderStage < NEEDED_STORAGE_BUFFERS
    || limits.maxStorageBufferBindingSize < NEEDED_BINDING;
  return {
    case: small ? "too_small" : software ? "software" : "ready",
    name,
    limits: {
      buffer: limits.maxBufferSize,
      binding: limits.maxStorageBufferBindingSize,
      storageBuffers: limits.maxStorageBuffersPerShaderStage,
    },
    f16: features.has("shader-f16"),
    subgroups: features.has("subgroups"),
  };
}

export async function probeStorage(): Promise<StorageReport | null> {
  if (!navigator.storage?.estimate) return null;
  const [{ usage = 0, quota = 0 }, persisted] = await Promise.all([
    navigator.storage.estimate(),
    navigator.storage.persisted?.() ?? false,
  ]);
  return { usage, quota, persisted };
}

// ---- what to say

type Browser = "chrome" | "firefox" | "safari" | "other";
type System = "windows" | "macos" | "linux" | "android" | "ios" | "other";

export function whichBrowser(agent = navigator.userAgent): { browser: Browser; system: System } {
  const system: System = /iPhone|iPad|iPod/.test(agent) ? "ios"
    : /Android/.test(agent) ? "android"
    : /Windows/.test(agent) ? "windows"
    : /Mac OS X/.test(agent) ? "macos"
    : /Linux|CrOS/.test(agent) ? "linux" : "other";
  const browser: Browser = /Firefox|FxiOS/.test(agent) ? "firefox"
    : /Chrome|Chromium|CriOS|Edg/.test(agent) ? "chrome"
    : /Safari/.test(agent) ? "safari" : "other";
  return { browser, system };
}

export interface Advice {
  title: string;
  /** What to do, in order of ease. */
  advice: string[];
}

const ABSENT: Record<Browser, string> = {
  chrome: "Update: Chrome and Edge have WebGPU since 113 on Windows, macOS and ChromeOS, and since 121 on Android.",
  firefox: "Firefox has WebGPU since 141 on Windows and since 145 on Macs with Apple silicon, and none yet on Linux and "
    + "Android: there, use Chrome.",
  safari: "Safari has WebGPU since 26, on macOS and iOS: update the system.",
  other: "Current Chrome, Edge and Safari have WebGPU, and Firefox on Windows and Apple silicon.",
};

const NO_ADAPTER: Record<System, string> = {
  linux: "On Linux, Chrome uses WebGPU by itself with Intel graphics of the 12th generation on. Else open chrome://flags there, "
    + "enable “Unsafe WebGPU Support” and “Vulkan”, and restart it.",
  windows: "Update the graphics driver, and see that “graphics acceleration” is on in the browser's settings.",
  macos: "See that “graphics acceleration” is on in the browser's settings, and that Low Power Mode is off.",
  android: "WebGPU needs Android 12 and a Qualcomm, ARM or newer PowerVR graphics chip.",
  ios: "Turn Lockdown Mode off for this page, and Low Power Mode off.",
  other: "See that “graphics acceleration” is on in the browser's settings, and update the graphics driver.",
};

/** Where a browser says why it offers no device. */
const WHY: Partial<Record<Browser, string>> = {
  chrome: "chrome://gpu says why.",
  firefox: "about:support says why, under “Graphics”.",
};

const CPU_MEANWHILE = "Meanwhile training goes on the CPU (WebAssembly, on all cores but one): fine for nano, slow for larger models.";

/** Nothing where all is well. */
export function advice(report: GpuReport, where = whichBrowser()): Advice | null {
  switch (report.case) {
    case "ready":
      return null;
    case "insecure":
      return {
        title: "This page came over plain http, so the browser withholds WebGPU.",
        advice: ["Open it by https, or from this machine itself (http://localhost).", CPU_MEANWHILE],
      };
    case "absent":
      return { title: "This browser has no WebGPU.", advice: [ABSENT[where.browser], CPU_MEANWHILE] };
    case "no_adapter":
      return {
        title: "The browser has WebGPU, but offers no graphics device.",
        advice: [NO_ADAPTER[where.system], WHY[where.browser], CPU_MEANWHILE].filter((tip) => tip !== undefined),
      };
    case "software":
      return {
        title: `WebGPU is there in software only (${report.name}).`,
        advice: ["The CPU path is faster than that, so it is the one taken.", NO_ADAPTER[where.system]],
      };
    case "too_small":
      return {
        title: `The limits of ${report.name} are too small: ${tooSmall(report)}.`,
        advice: ["Another browser or a newer driver may allow more.", CPU_MEANWHILE],
      };
  }
}

function tooSmall({ limits }: GpuReport): string {
  if (!limits) return "unknown";
  return limits.storageBuffers < NEEDED_STORAGE_BUFFERS
    ? `${limits.storageBuffers} storage buffers a kernel, ${NEEDED_STORAGE_BUFFERS} are needed`
    : `${bytes(limits.binding)} a buffer, ${bytes(NEEDED_BINDING)} are needed`;
}
