/**
 * There are two builds of the engine, each with its worker: for browsers that multiply and add in one instruction of relaxed
 * SIMD, and for the others. A module with one instruction that a browser does not know cannot be loaded at all.
 */

/** A module of one function, () -> v128, that gives f32x4.relaxed_madd of three zeros. */
const RELAXED_MADD = new Uint8Array([
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00, // "\0asm", version 1
  0x01, 0x05, 0x01, 0x60, 0x00, 0x01, 0x7b, // one type
  0x03, 0x02, 0x01, 0x00, // one function of it
  0x0a, 0x13, 0x01, 0x11, 0x00, // its code: no locals
  0x41, 0x00, 0xfd, 0x0f, 0x41, 0x00, 0xfd, 0x0f, 0x41, 0x00, 0xfd, 0x0f, // three times i8x16.splat (i32.const 0)
  0xfd, 0x85, 0x02, 0x0b, // f32x4.relaxed_madd, end
]);

/** Chromium has it from 114 on; Safari had not by version 26. Where there is no WebAssembly at all, loading says so. */
export const hasRelaxedSimd = (): boolean => typeof WebAssembly === "object" && WebAssembly.validate(RELAXED_MADD);
