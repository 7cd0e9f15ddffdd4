/** Models that can be had from a hub: the table that the command line uses. */

import table from "../../../models/registry.json";

export interface RegistryModel {
  id: string;
  about: string;
  repo: string;
}

export const registry: RegistryModel[] = Object.entries(table).flatMap(([id, entry]) =>
  "repo" in entry ? [{ id, about: entry.about, repo: entry.repo }] : [],
);
