/** What the hub knows of a model's files: the revision, their sizes, and the SHA-256 of the large ones. */

import { type DownloadFile, LuthierError, type ModelDownload, type ModelSource } from "luthier-web";
import table from "../../../models/registry.json";

const HUB = "https://huggingface.co";
const PATIENCE_MS = 30_000;

interface HubFile {
  name: string;
  sha256?: string;
}

export interface HubModel {
  id: string;
  about: string;
  repo: string;
  revision: string;
  files: HubFile[];
}

interface Listing {
  sha: string;
  siblings: { rfilename: string; size?: number; lfs?: { sha256: string } }[];
}

export const hubModels: HubModel[] = Object.entries(table).flatMap(([id, entry]) => ("repo" in entry ? [{ id, ...entry }] : []));

/**
 * Asks the hub which files there are, all of one revision: that of `kept`, a download that goes on, or else the registry's.
 */
export async function downloadOf(model: HubModel, kept: ModelSource | null, signal: AbortSignal): Promise<ModelDownload> {
  const { repo, files } = model;
  const { sha, siblings } = await list(repo, kept?.revision ?? model.revision, signal);
  const there = new Map(siblings.map((file) => [file.rfilename, file]));
  const missing = files.filter(({ name }) => !there.has(name)).map(({ name }) => name);
  if (missing.length > 0) {
    const hint = "The model was changed on the hub since this page was made: take another one, or open its files from your disk.";
    throw new LuthierError("mismatch", `${repo} at revision ${sha.slice(0, 8)} has no ${missing.join(", ")}.`, hint);
  }
  const wanted = files.map(({ name, sha256 }): DownloadFile => {
    const { size, lfs } = there.get(name)!;
    const known = sha256 ? { sha256, sha256_by: "this page" } : lfs && { sha256: lfs.sha256, sha256_by: "the hub" };
    return { name, url: `${HUB}/${repo}/resolve/${sha}/${name}`, ...(size !== undefined && { bytes: size }), ...known };
  });
  return { name: repo, source: { url: `${HUB}/${repo}`, revision: sha }, files: wanted };
}

async function list(repo: string, revision: string, signal: AbortSignal): Promise<Listing> {
  const url = `${HUB}/api/models/${repo}/revision/${revision}?blobs=true`;
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const options: RequestInit = { referrerPolicy: "no-referrer", credentials: "omit", signal: AbortSignal.any([signal, patience]) };
  const response = await fetch(url, options).catch(() => null);
  if (response?.ok) return response.json();
  if (signal.aborted) throw new LuthierError("cancelled", "This was stopped.");
  throw refused(repo, revision, response?.status, patience.aborted);
}

function refused(repo: string, revision: string, status: number | undefined, late: boolean): LuthierError {
  if (status === 401 || status === 403) {
    const hint = `Accept its licence at ${HUB}/${repo}, download the files there, and open the folder in Luthier.`;
    return new LuthierError("io", "This model is only for accounts that have accepted its licence.", hint);
  }
  if (status === 404) {
    const hint = "Delete what is here of it, and download it anew.";
    return new LuthierError("io", `${repo}: the hub no longer has revision ${revision}.`, hint);
  }
  const silent = late ? `the hub did not answer within ${PATIENCE_MS / 1000} seconds` : "the hub could not be reached";
  const why = status ? `the hub answered ${status}` : silent;
  return new LuthierError("io", `${repo}: ${why}.`, "Look at the network connection and try again.");
}
