//! Products of a few rows with rows: both lie along k, and nothing is packed. As [`super::tile`], one body for every
//! instruction set.

#![expect(clippy::needless_range_loop, reason = "arrays of registers that iterators own go through memory")]

use super::tile::Vector;
use crate::num::Float;

/// Rows of B that are multiplied side by side: they share what is loaded of A, and no sum waits for the one before it.
pub(super) const ROWS: usize = 4;

/// Rows that lie `ld` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<F> {
    pub at: *const F,
    pub ld: usize,
}

/// `out[M][N] = a[M, k] · b[N, k]ᵀ`
pub(super) type Run<F> = unsafe fn(k: usize, a: Rows<F>, b: Rows<F>, out: *mut F);

/// For each number of rows of A up to the most that fit the registers: with one row of B, and with [`ROWS`].
pub(super) struct Dots<F: 'static>(pub &'static [[Run<F>; 2]]);

/// The most elements of any `out`.
pub(super) const MAX: usize = 4 * ROWS;

/// # Safety
/// `a`, `b` and `out` hold what [`Run`] says.
#[inline(always)]
pub(super) unsafe fn run<V: Vector, const M: usize, const N: usize>(
    k: usize,
    a: Rows<V::F>,
    b: Rows<V::F>,
    out: *mut V::F,
) where
    V::F: Float,
{
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[V::splat(V::F::ZERO); N]; M];
        let whole = k / V::LANES * V::LANES;
        let mut at = 0;
        while at < whole {
            let row: [V; N] = std::array::from_fn(|n| V::load(b.at.wrapping_add(n * b.ld + at)));
            for m in 0..M {
                let x = V::load(a.at.wrapping_add(m * a.ld + at));
                for n in 0..N {
                    sums[m][n] = sums[m][n].add_product(x, row[n]);
                }
            }
            at += V::LANES;
        }
        for m in 0..M {
            for n in 0..N {
                let (a, b) = (a.at.add(m * a.ld), b.at.add(n * b.ld));
                let rest: V::F = (whole..k).map(|at| *a.add(at) * *b.add(at)).sum();
                *out.add(m * N + n) = sum(sums[m][n]) + rest;
            }
        }
    }
}

/// The lanes added, halves to halves.
#[inline(always)]
fn sum<V: Vector>(x: V) -> V::F
where
    V::F: Float,
{
    let mut lanes = [V::F::ZERO; 16];
    // SAFETY: no vector has more than 16 lanes.
    unsafe { x.store(lanes.as_mut_ptr()) };
    let mut half = V::LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Compiles them for the instruction set named, if any.
macro_rules! dots {
    ($name:ident: $f:ty, $vector:ty, [$($m:literal)*] $(, $feature:literal)?) => {
        pub(in crate::ops::product) static $name: crate::ops::product::dots::Dots<$f> = {
            use crate::ops::product::dots;
            $(#[target_feature(enable = $feature)])?
            unsafe fn run<const M: usize, const N: usize>(
                k: usize,
                a: dots::Rows<$f>,
                b: dots::Rows<$f>,
                out: *mut $f,
            ) {
                // SAFETY: the caller's.
                unsafe { dots::run::<$vector, M, N>(k, a, b, out) }
            }
            dots::Dots(&[$([run::<$m, 1>, run::<$m, { dots::ROWS }>]),*])
        };
    };
}
pub(super) use dots;
