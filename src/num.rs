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
