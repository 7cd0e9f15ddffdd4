//! Tiles for wasm's simd128: V8 maps its values to the 16 registers of SSE or to NEON's 32. With relaxed SIMD a product is
//! added in one instruction, rounded once or twice as the processor has it.

use super::dots::dots;
use super::tile::{Vector, tile};
use std::arch::wasm32::*;

#[derive(Clone, Copy)]
pub(super) struct F32x4(v128);

impl Vector for F32x4 {
    type F = f32;
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        Self(unsafe { v128_load(at.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { v128_store(at.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(f32x4_splat(x))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(f32x4_add(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn times(self, b: Self) -> Self {
        Self(f32x4_mul(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        #[cfg(feature = "relaxed-simd")]
        return Self(f32x4_relaxed_madd(a.0, b.0, self.0));
        #[cfg(not(feature = "relaxed-simd"))]
        Self(f32x4_add(self.0, f32x4_mul(a.0, b.0)))
    }
}

#[cfg(not(feature = "relaxed-simd"))]
tile!(SIMD128: f32, F32x4, 2, [1 2 3 4]);
#[cfg(feature = "relaxed-simd")]
tile!(SIMD128: f32, F32x4, 2, [1 2 3 4], "relaxed-simd");
#[cfg(not(feature = "relaxed-simd"))]
dots!(DOTS: f32, F32x4, [1 2]);
#[cfg(feature = "relaxed-simd")]
dots!(DOTS: f32, F32x4, [1 2], "relaxed-simd");
