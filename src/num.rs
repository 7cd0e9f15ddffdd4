//! The float a twin runs in: f64 for the reference, f32 for the CPU back end.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

pub trait Float:
    Copy + Default + Debug + Display + PartialOrd + Send + Sync + 'static
    + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
    + AddAssign + SubAssign + MulAssign + DivAssign + Sum
{
    const ZERO: Self;
    const ONE: Self;
    fn of(x: f64) -> Self;
    fn of32(x: f32) -> Self;
    fn to64(self) -> f64;
    fn to32(self) -> f32;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn max(self, o: Self) -> Self;
    fn finite(self) -> bool;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(x: f64) -> Self { x as $t }
            #[inline(always)]
            fn of32(x: f32) -> Self { x as $t }
            #[inline(always)]
            fn to64(self) -> f64 { self as f64 }
            #[inline(always)]
            fn to32(self) -> f32 { self as f32 }
            #[inline(always)]
            fn exp(self) -> Self { self.exp() }
            #[inline(always)]
            fn ln(self) -> Self { self.ln() }
            #[inline(always)]
            fn sqrt(self) -> Self { self.sqrt() }
            #[inline(always)]
            fn max(self, o: Self) -> Self { self.max(o) }
            #[inline(always)]
            fn finite(self) -> bool { self.is_finite() }
        }
    };
}
float!(f32);
float!(f64);

/// A uniform number in [0, 1) that is a pure function of its counters (splitmix64, Steele et al. 2014): randomness
/// replays exactly wherever a run is resumed.
pub fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15u64;
    let key = mix(seed.wrapping_add(golden)) ^ stream.wrapping_mul(golden);
    (mix(mix(key).wrapping_add(index.wrapping_mul(golden))) >> 11) as f64 / (1u64 << 53) as f64
}
