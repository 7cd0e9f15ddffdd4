/** Models that can be had from a hub: the table that the command line uses. */

import table from "../../../models/registry.json";

export interface RegistryModel {
  id: string;
  about: string;
  repo: string;
  /** The id of the model it was made from, where its weights are quantised. */
  unquantised?: string;
}

/** What follows a colon says what to do on the command line. */
export const aboutOf = ({ about }: { about: string }): string => about.split(":", 1)[0]!;

export const registry: RegistryModel[] = Object.entries(table).flatMap(([id, entry]) =>
  "repo" in entry ? [{ ...entry, id, about: aboutOf(entry) }] : [],
);

/** The model that a quantised one was made from; stored models are called by their repositories. */
export function unquantised(name: string): RegistryModel | undefined {
  const base = registry.find(({ repo }) => repo === name)?.unquantised;
  return registry.find(({ id }) => id === base);
}
