/** What in the data looks as if it should not leave by way of an adapter: counted, never shown or kept. */

const KINDS: [string, string, RegExp][] = [
  ["e-mail address", "e-mail addresses", /[\w.+-]+@[\w-]+\.[\w.-]+/g],
  ["access key", "access keys", /\b(?:sk|pk|ghp|gho|xox[abp]|AKIA)[-_A-Za-z0-9]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----/g],
  ["bank account", "bank accounts", /\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b/g],
  ["phone number", "phone numbers", /(?<![\w.])\+\d[\d ()/-]{7,}\d/g],
];

export function privateThings(text: string): string[] {
  return KINDS.flatMap(([one, many, pattern]) => {
    const n = text.match(pattern)?.length ?? 0;
    return n > 0 ? [`${n} ${n === 1 ? one : many}`] : [];
  });
}
