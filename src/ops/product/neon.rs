//! Tiles for NEON: 32 registers of 4 floats.

use super::tile::{Vector, tile};
use std::arch::aarch64::*;

macro_rules! vector {
    ($vector:ty: $f:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $times:ident, $fma:ident) => {
        #[allow(unused_unsafe)]
        impl Vector for $vector {
            type F = $f;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn load(at: *const $f) -> Self {
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut $f) {
                unsafe { $store(at, self) }
            }
            #[inline(always)]
            unsafe fn splat(x: $f) -> Self {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                unsafe { $add(self, b) }
            }
            #[inline(always)]
            unsafe fn times(self, b: Self) -> Self {
                unsafe { $times(self, b) }
            }
            #[inline(always)]
            unsafe fn add_product(self, a: Self, b: Self) -> Self {
                unsafe { $fma(self, a, b) }
            }
        }
    };
}
vector!(float32x4_t: f32, 4, vld1q_f32, vst1q_f32, vdupq_n_f32, vaddq_f32, vmulq_f32, vfmaq_f32);
vector!(float64x2_t: f64, 2, vld1q_f64, vst1q_f64, vdupq_n_f64, vaddq_f64, vmulq_f64, vfmaq_f64);

tile!(NEON: f32, float32x4_t, 3, [1 2 3 4 5 6 7 8]);
tile!(NEON_64: f64, float64x2_t, 3, [1 2 3 4 5 6 7 8]);
