//! Tiles in plain Rust, for every other machine: four lanes, which compilers map to what there is.

use super::dots::dots;
use super::tile::{Vector, tile};
use crate::num::Float;

#[derive(Clone, Copy)]
pub(super) struct Four<F>([F; 4]);

impl<F: Float> Vector for Four<F> {
    type F = F;
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn load(at: *const F) -> Self {
        Self(unsafe { *at.cast::<[F; 4]>() })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut F) {
        unsafe { *at.cast::<[F; 4]>() = self.0 }
    }
    #[inline(always)]
    unsafe fn splat(x: F) -> Self {
        Self([x; 4])
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + b.0[i]))
    }
    #[inline(always)]
    unsafe fn times(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
}

tile!(PLAIN: f32, Four<f32>, 2, [1 2 3 4]);
tile!(PLAIN_64: f64, Four<f64>, 2, [1 2 3 4]);
dots!(DOTS: f32, Four<f32>, [1 2]);
dots!(DOTS_64: f64, Four<f64>, [1 2]);
