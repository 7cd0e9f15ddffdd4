//! Rows in parallel: rayon natively, one thread in wasm. Small work stays on the calling thread.

use crate::num::Float;

/// Below this many elements a task costs more to hand out than to do.
#[cfg(not(target_arch = "wasm32"))]
const WORTH_IT: usize = 1 << 14;

/// Calls `f(row, chunk)` for each chunk of `len` elements of `out`; `weight` is the work an element stands for.
#[cfg(not(target_arch = "wasm32"))]
pub fn rows<T: Send>(out: &mut [T], len: usize, weight: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    use rayon::prelude::*;
    let work = out.len().saturating_mul(weight);
    if work < WORTH_IT || out.len() <= len {
        out.chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        let group = (WORTH_IT / 4 / (len * weight)).max(1);
        out.par_chunks_mut(len * group).enumerate().for_each(|(g, chunks)| {
            chunks.chunks_mut(len).enumerate().for_each(|(i, chunk)| f(g * group + i, chunk));
        });
    }
}

#[cfg(target_arch = "wasm32")]
pub fn rows<T: Send>(out: &mut [T], len: usize, _weight: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    out.chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk));
}

/// [`rows`] over two outputs with chunks of `a_len` and `b_len` elements.
pub fn rows2<A: Send, B: Send>(
    a: &mut [A],
    a_len: usize,
    b: &mut [B],
    b_len: usize,
    weight: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let mut pairs: Vec<(&mut [A], &mut [B])> = a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).collect();
    rows(&mut pairs, 1, weight.saturating_mul(a_len + b_len), |i, pair| f(i, &mut *pair[0].0, &mut *pair[0].1));
}

/// Elements folded side by side: a sum in one chain of additions cannot use SIMD. The order is fixed all the same.
const LANES: usize = 16;

/// Combines `map` of every element.
fn fold<F: Float>(x: &[F], start: F, map: impl Fn(F) -> F, combine: impl Fn(F, F) -> F) -> F {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(start, |a, x| combine(a, map(*x)));
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(a, x)| *a = combine(*a, map(*x)));
    }
    lanes.into_iter().fold(rest, combine)
}

/// The largest of `x`, which is not empty; NaN does not count.
pub fn max<F: Float>(x: &[F]) -> F {
    fold(x, x[0], |x| x, |a, b| a.max(b))
}

/// `Σ exp(x − shift)`
pub fn sum_exp<F: Float>(x: &[F], shift: F) -> F {
    fold(x, F::ZERO, |x| (x - shift).exp(), |a, b| a + b)
}

/// How a matrix product of about `flops` operations is spread.
pub fn gemm_parallelism(flops: usize) -> gemm::Parallelism {
    #[cfg(not(target_arch = "wasm32"))]
    if flops > 1 << 21 {
        return gemm::Parallelism::Rayon(0);
    }
    let _ = flops;
    gemm::Parallelism::None
}

/// A row-major view for [`gemm`]: `ld` elements from row to row, or transposed.
#[derive(Clone, Copy)]
pub struct Mat<'a, F> {
    pub data: &'a [F],
    pub ld: usize,
    pub transposed: bool,
}

impl<'a, F> Mat<'a, F> {
    pub fn new(data: &'a [F], ld: usize) -> Self {
        Mat { data, ld, transposed: false }
    }

    pub fn t(data: &'a [F], ld: usize) -> Self {
        Mat { data, ld, transposed: true }
    }

    /// Panics unless the view of `rows` × `cols` lies within the data.
    fn strides(&self, rows: usize, cols: usize) -> (isize, isize) {
        let (r, c) = if self.transposed { (cols, rows) } else { (rows, cols) };
        assert!(r == 0 || c == 0 || (r - 1) * self.ld + c <= self.data.len(), "matrix view out of bounds");
        if self.transposed { (1, self.ld as isize) } else { (self.ld as isize, 1) }
    }
}

/// `out[m,n] (ld) = keep·out + scale · a[m,k] · b[k,n]`.
pub fn gemm<F: Float>(
    (m, n, k): (usize, usize, usize),
    out: &mut [F],
    ld: usize,
    keep: bool,
    a: Mat<F>,
    b: Mat<F>,
    scale: F,
    parallelism: gemm::Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * ld + n <= out.len(), "output view out of bounds");
    let (a_rs, a_cs) = a.strides(m, k);
    let (b_rs, b_cs) = b.strides(k, n);
    // SAFETY: the three views were checked to lie within their slices, and `out` is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            ld as isize,
            keep,
            a.data.as_ptr(),
            a_cs,
            a_rs,
            b.data.as_ptr(),
            b_cs,
            b_rs,
            F::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
