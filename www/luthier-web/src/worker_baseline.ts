/** The worker for every browser. */

import * as engine from "../pkg/luthier.js";
import { serve } from "./worker.js";

serve(engine);
