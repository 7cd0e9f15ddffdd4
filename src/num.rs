//! The float a twin runs in: f64 for the reference, f32 for the CPU back end.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

pub trait Float:
    Copy
    + Default
    + Debug
    + Display
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
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
    ($t:ty, $exp:path) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn of32(x: f32) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn to32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                self.ln()
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn max(self, o: Self) -> Self {
                // `f32::max`, NaN included, in words that wasm has instructions for: there that one is a call.
                let larger = if o > self { o } else { self };
                if self.is_nan() { o } else { larger }
            }
            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
float!(f32, exp32);
float!(f64, f64::exp);

/// eˣ within 2 ulp in plain arithmetic, which compilers turn into SIMD where they leave a call to libm alone: softmax,
/// SwiGLU and cross-entropy spend most of their time here. Cody–Waite reduction to |r| ≤ ln 2 / 2, then the polynomial
/// of Cephes' `expf`. NaN stays NaN; below −86.9 (near where results turn denormal) it is 0, above 88.73 infinite.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer, held in the low bits
    // What is 0 in the end counts as 0 from here on: half of a tiny result is denormal, which takes processors 100
    // cycles.
    let tiny = x < -86.9;
    let x = if tiny {
        0.0
    } else if x > 88.8 {
        88.8
    } else {
        x
    };
    let t = x * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let p = 1.987_569_15e-4;
    let p = p * r + 1.398_199_95e-3;
    let p = p * r + 8.333_451_9e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_55e-1;
    let p = p * r + 5.000_000_1e-1;
    // 2ⁿ as half of it, twice: n may be 128.
    let half = f32::from_bits(t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(126) << 23);
    let y = (p * r * r + r + 1.0) * half * 2.0;
    if tiny { 0.0 } else { y }
}

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

/// A standard normal number, as much a pure function of its counters (Box and Muller 1958).
pub fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    let (a, b) = (uniform(seed, stream, 2 * index), uniform(seed, stream, 2 * index + 1));
    (-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp32_is_within_two_ulp_and_right_at_the_ends() {
        for i in -869_000..887_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (exp32(x) as f64, (x as f64).exp());
            assert!((got - want).abs() <= 2.0 * f32::EPSILON as f64 * want, "exp({x}) = {got}, want {want}");
        }
        assert_eq!((exp32(0.0), exp32(-90.0), exp32(-1e30), exp32(f32::NEG_INFINITY)), (1.0, 0.0, 0.0, 0.0));
        assert_eq!((exp32(89.0), exp32(1e30), exp32(f32::INFINITY)), (f32::INFINITY, f32::INFINITY, f32::INFINITY));
        assert!(exp32(f32::NAN).is_nan());
    }
}
