/** Models that can be had from a hub: the table that the command line uses. */

import table from "../../../models/registry.json";

export interface RegistryModel {
  id: string;
  about: string;
  repo: string;
}

/** What follows a colon says what to do on the command line. */
export const aboutOf = ({ about }: { about: string }): string => about.split(":", 1)[0]!;

export const registry: RegistryModel[] = Object.entries(table).flatMap(([id, entry]) =>
  "repo" in entry ? [{ id, about: aboutOf(entry), repo: entry.repo }] : [],
);
