/** The worker for browsers with relaxed SIMD. */

import * as engine from "../pkg/luthier_relaxed.js";
import { serve } from "./worker.js";

serve(engine);
