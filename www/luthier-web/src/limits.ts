/** A merged model above this is not loaded a second time to be compared: wasm has 4 GiB in all. */
export const CHECKED_BYTES = 1 << 30;
