/** Numbers and texts as people read them. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n: number): string {
  let unit = 0;
  while (n >= 1024 && unit < UNITS.length - 1) {
    n /= 1024;
    unit++;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${UNITS[unit]}`;
}

/** 1369728 → "1.4 M" */
export function short(n: number): string {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]] as const) {
    if (n >= size) return `${(n / size).toFixed(n >= 100 * size ? 0 : 1)} ${unit}`;
  }
  return String(Math.round(n));
}

const grouping = new Intl.NumberFormat("en");
export const grouped = (n: number): string => grouping.format(n);

export const plural = (n: number, one: string, many = `${one}s`): string => `${grouped(n)} ${n === 1 ? one : many}`;

/** A number that is no number is said to be none. */
export function fixed(n: number | null | undefined, digits: number): string {
  return n !== null && n !== undefined && Number.isFinite(n) ? n.toFixed(digits) : "–";
}

/** 0.0005 → "5e-4", 0.05 → "0.05" */
export function rate(n: number): string {
  return n !== 0 && Math.abs(n) < 1e-2 ? n.toExponential(2).replace(/\.?0+e/, "e") : String(Number(n.toPrecision(3)));
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ""}`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** A guess, said as one: seconds by fives, minutes without seconds. */
export function about(seconds: number): string {
  if (seconds < 5) return "a few seconds";
  if (seconds < 90) return `about ${Math.round(seconds / 5) * 5} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

export const percent = (part: number, whole: number): string => (whole ? `${Math.round((100 * part) / whole)} %` : "–");

export function date(iso: string): string {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? iso : at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}
