/** The engine behind the page: luthier-web, or in development with `?fake` a stand-in without wasm. */

import { Luthier, type LuthierStatic } from "luthier-web";

export const luthier: LuthierStatic =
  import.meta.env.DEV && new URLSearchParams(location.search).has("fake") ? (await import("../dev/fake")).Fake : Luthier;
