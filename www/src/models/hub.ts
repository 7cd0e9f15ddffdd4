/** What the hub knows of a model's files: their sizes, and the SHA-256 of the large ones. */

import { type DownloadFile, LuthierError } from "luthier-web";
import table from "../../../models/registry.json";

const HUB = "https://huggingface.co";

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
  siblings: { rfilename: string; size: number; lfs?: { sha256: string } }[];
}

export const hubModels: HubModel[] = Object.entries(table).flatMap(([id, entry]) => ("repo" in entry ? [{ id, ...entry }] : []));

/** Asks the hub which files there are, and pins them to one revision, so that a download that goes on gets the same ones. */
export async function filesOf(model: HubModel): Promise<DownloadFile[]> {
  const { sha, siblings } = await list(model);
  const wanted = new Map(model.files.map((file) => [file.name, file]));
  return siblings
    .filter(({ rfilename }) => wanted.has(rfilename))
    .map(({ rfilename: name, size, lfs }) => {
      const sha256 = wanted.get(name)?.sha256 ?? lfs?.sha256;
      return { name, url: `${HUB}/${model.repo}/resolve/${sha}/${name}`, bytes: size, ...(sha256 && { sha256 }) };
    });
}

async function list({ repo, revision }: HubModel): Promise<Listing> {
  const url = `${HUB}/api/models/${repo}/revision/${revision}?blobs=true`;
  const response = await fetch(url, { referrerPolicy: "no-referrer", credentials: "omit" }).catch(() => null);
  if (response?.ok) return response.json();
  const status = response?.status;
  if (status === 401 || status === 403) {
    const hint = `Accept its licence at ${HUB}/${repo}, download the files there, and open the folder in Luthier.`;
    throw new LuthierError("io", "This model is only for accounts that have accepted its licence.", hint);
  }
  const why = status ? `the hub answered ${status}` : "the hub could not be reached";
  throw new LuthierError("io", `${repo}: ${why}.`, "Look at the network connection and try again.");
}
