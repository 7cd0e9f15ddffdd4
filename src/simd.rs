//! Row loops compiled for the widest vectors of the processor at hand: x86-64's baseline has 4 lanes, AVX2 8, AVX-512
//! 16; wasm needs simd128 named. Nothing is reordered or fused by that: every version gives the same bits.

use crate::num::Float;

/// Defines a function over slices and compiles it for each instruction set; the call picks one.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<F: Float>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<F: Float>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<F: Float>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<F: Float>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2<F: Float>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match crate::simd::level() {
                    // SAFETY: the processor was asked and has them.
                    crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    crate::simd::Level::Baseline => {}
                }
            }
            #[cfg(target_arch = "wasm32")]
            {
                #[target_feature(enable = "simd128")]
                fn simd128<F: Float>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                return simd128($($arg),*);
            }
            #[cfg(not(target_arch = "wasm32"))]
            body($($arg),*)
        }
    };
}
pub(crate) use simd;

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Baseline,
    Avx2,
    Avx512,
}

/// What the processor has, asked once: row loops of a few dozen elements ask each time.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn level() -> Level {
    static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    match () {
        _ if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") => Level::Avx512,
        _ if has!("avx2") && has!("fma") => Level::Avx2,
        _ => Level::Baseline,
    }
}

/// Tells the processor that words are about to be read, so that they are in its cache by then.
#[inline(always)]
pub fn prefetch(words: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    for line in words.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has it, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = words;
}

/// Elements folded side by side: a sum in one chain of additions cannot use SIMD. The order is fixed all the same.
pub const LANES: usize = 16;

/// Combines `map` of every element.
#[inline(always)]
fn fold<F: Float>(x: &[F], start: F, map: impl Fn(F) -> F, combine: impl Fn(F, F) -> F + Copy) -> F {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(start, |a, x| combine(a, map(*x)));
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(a, x)| *a = combine(*a, map(*x)));
    }
    combine(rest, joined(lanes, combine))
}

/// The lanes combined, halves with halves: one after the other takes four times as long.
#[inline(always)]
fn joined<F: Float>(lanes: [F; LANES], combine: impl Fn(F, F) -> F) -> F {
    let lanes: [F; 8] = std::array::from_fn(|i| combine(lanes[i], lanes[i + 8]));
    let lanes: [F; 4] = std::array::from_fn(|i| combine(lanes[i], lanes[i + 4]));
    combine(combine(lanes[0], lanes[2]), combine(lanes[1], lanes[3]))
}

simd! {
    /// The largest of `x`, which is not empty; NaN does not count.
    pub fn max<F: Float>(x: &[F]) -> F {
        fold(x, x[0], |x| x, |a, b| a.max(b))
    }
}

simd! {
    /// The largest magnitude in `x`.
    pub fn largest<F: Float>(x: &[F]) -> F {
        fold(x, F::ZERO, |x| x.max(-x), |a, b| a.max(b))
    }
}

simd! {
    /// `Σ x`
    pub fn sum<F: Float>(x: &[F]) -> F {
        fold(x, F::ZERO, |x| x, |a, b| a + b)
    }
}

simd! {
    /// `x = cap · tanh(x / cap)`, as 1 − 2/(1 + e^2x), which is in no danger from large numbers.
    pub fn soft_cap<F: Float>(x: &mut [F], cap: F) {
        let two = F::of(2.0);
        x.iter_mut().for_each(|x| *x = cap * (F::ONE - two / (F::ONE + (two * *x / cap).exp())));
    }
}

simd! {
    /// `dx = dx · slope of soft_cap` where its value is y.
    pub fn soft_cap_slope<F: Float>(dx: &mut [F], y: &[F], cap: F) {
        dx.iter_mut().zip(y).for_each(|(dx, y)| *dx *= F::ONE - *y / cap * (*y / cap));
    }
}

simd! {
    /// `Σ exp(x − shift)`
    pub fn sum_exp<F: Float>(x: &[F], shift: F) -> F {
        fold(x, F::ZERO, |x| (x - shift).exp(), |a, b| a + b)
    }
}

simd! {
    /// `x = exp(x − shift) · scale`
    pub fn exp_in_place<F: Float>(x: &mut [F], shift: F, scale: F) {
        x.iter_mut().for_each(|x| *x = (*x - shift).exp() * scale);
    }
}

simd! {
    /// `x = exp(x − shift)`; returns their sum.
    pub fn exp_and_sum<F: Float>(x: &mut [F], shift: F) -> F {
        let mut lanes = [F::ZERO; LANES];
        let mut chunks = x.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (a, x) in lanes.iter_mut().zip(chunk) {
                *x = (*x - shift).exp();
                *a += *x;
            }
        }
        let mut sum = F::ZERO;
        for x in chunks.into_remainder() {
            *x = (*x - shift).exp();
            sum += *x;
        }
        sum + joined(lanes, |a, b| a + b)
    }
}

simd! {
    /// `x = x · factor`
    pub fn scale<F: Float>(x: &mut [F], factor: F) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

simd! {
    /// `y += factor · x`
    pub fn add_scaled<F: Float>(y: &mut [F], x: &[F], factor: F) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * *x);
    }
}

simd! {
    /// `Σ a · b`
    pub fn dot<F: Float>(a: &[F], b: &[F]) -> F {
        let mut lanes = [F::ZERO; LANES];
        let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest: F = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| *a * *b).sum();
        for (a, b) in a_chunks.zip(b_chunks) {
            lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += *a * *b);
        }
        lanes.into_iter().fold(rest, |a, b| a + b)
    }
}

simd! {
    /// `Σ a · b · c`
    pub fn dot3<F: Float>(a: &[F], b: &[F], c: &[F]) -> F {
        let mut lanes = [F::ZERO; LANES];
        let whole = a.len() / LANES * LANES;
        for ((a, b), c) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)).zip(c.chunks_exact(LANES)) {
            for (l, s) in lanes.iter_mut().enumerate() {
                *s += a[l] * b[l] * c[l];
            }
        }
        let rest: F = (whole..a.len()).map(|i| a[i] * b[i] * c[i]).sum();
        lanes.into_iter().fold(rest, |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_agree_with_plain_loops_at_every_length() {
        for len in 1..70 {
            let a: Vec<f64> = (0..len).map(|i| ((i * 37 % 11) as f64 - 5.0) / 3.0).collect();
            let b: Vec<f64> = (0..len).map(|i| ((i * 17 % 13) as f64 - 6.0) / 5.0).collect();
            let plain: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - plain).abs() < 1e-12);
            let plain: f64 = a.iter().zip(&b).map(|(a, b)| a * b * a).sum();
            assert!((dot3(&a, &b, &a) - plain).abs() < 1e-12);
            assert_eq!(max(&a), a.iter().copied().fold(f64::MIN, f64::max));
            assert_eq!(largest(&a), a.iter().copied().map(f64::abs).fold(0.0, f64::max));
            let sum: f64 = a.iter().map(|a| (a - 0.5).exp()).sum();
            let mut e = a.clone();
            assert!((sum_exp(&a, 0.5) - sum).abs() < 1e-12 && (exp_and_sum(&mut e, 0.5) - sum).abs() < 1e-12);
            assert!(e.iter().zip(&a).all(|(e, a)| (e - (a - 0.5).exp()).abs() < 1e-15));
        }
    }
}
