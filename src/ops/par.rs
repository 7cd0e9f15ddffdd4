//! Rows in parallel: rayon natively, one thread in wasm. Small work stays on the calling thread.

use super::product;
pub use super::product::Mat;
use crate::num::Float;
use crate::plan::Scratch;
use std::marker::PhantomData;

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

/// Calls `f` on a thread of the pool: what it spreads is handed to the others without a switch of threads.
pub fn on_pool(f: impl FnOnce() + Send) {
    #[cfg(not(target_arch = "wasm32"))]
    rayon::scope(|_| f());
    #[cfg(target_arch = "wasm32")]
    f();
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
    #[cfg(not(target_arch = "wasm32"))]
    if (a.len() + b.len()).saturating_mul(weight) >= WORTH_IT && a.len() > a_len {
        use rayon::prelude::*;
        let group = (WORTH_IT / 4 / ((a_len + b_len) * weight)).max(1);
        let pairs = a.par_chunks_mut(a_len * group).zip(b.par_chunks_mut(b_len * group));
        return pairs.enumerate().for_each(|(g, (a, b))| {
            a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate().for_each(|(i, (a, b))| f(g * group + i, a, b));
        });
    }
    let _ = weight;
    a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
}

/// Operations below which a product stays on one thread: a dozen microseconds.
const WORTH_SPREADING: usize = 1 << 20;

/// A rectangle of a row-major matrix, for one task to write: rectangles of one matrix may interleave in memory.
pub struct Rect<'a, F> {
    at: *mut F,
    pub rows: usize,
    pub cols: usize,
    ld: usize,
    borrow: PhantomData<&'a mut [F]>,
}

impl<'a, F: Float> Rect<'a, F> {
    /// The first `rows` × `cols` elements of `out`, `ld` from row to row.
    pub fn new(out: &'a mut [F], (rows, cols): (usize, usize), ld: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * ld + cols <= out.len(), "output view out of bounds");
        Rect { at: out.as_mut_ptr(), rows, cols, ld, borrow: PhantomData }
    }

    pub fn row(&mut self, row: usize) -> &mut [F] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: within the rectangle, which is this value's alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.ld), self.cols) }
    }

    /// Tells the processor that a part is about to be written, so that its lines are there by then.
    #[cfg(target_arch = "x86_64")]
    pub fn prefetch(&mut self, at: (usize, usize), shape: (usize, usize)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let part = self.part(at, shape);
        for row in 0..part.rows {
            for col in (0..part.cols).step_by(64 / size_of::<F>()) {
                // SAFETY: within the part.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(part.at.add(row * part.ld + col).cast()) };
            }
        }
    }

    /// Its first element, and how many there are from row to row.
    pub fn raw(&mut self) -> (*mut F, usize) {
        (self.at, self.ld)
    }

    /// The part of `rows` × `cols` that begins at a row and a column, as a rectangle of its own.
    pub fn part(&mut self, (row, col): (usize, usize), (rows, cols): (usize, usize)) -> Rect<'_, F> {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "a part beyond the rectangle");
        // SAFETY: within the rectangle, which is this value's alone.
        Rect { at: unsafe { self.at.add(row * self.ld + col) }, rows, cols, ld: self.ld, borrow: PhantomData }
    }

    /// `self = keep·self + scale · a[rows, k] · b[k, cols]`.
    pub fn product(&mut self, keep: bool, k: usize, a: Mat<F>, b: Mat<F>, scale: F, scratch: &Scratch<F>) {
        product::multiply(self, keep, k, a, b, scale, scratch);
    }
}

/// A row-major matrix of which tasks write rectangles side by side.
pub struct Sheet<'a, F> {
    at: *mut F,
    len: usize,
    ld: usize,
    borrow: PhantomData<&'a mut [F]>,
}

// SAFETY: what is written is written through rectangles, which do not overlap.
unsafe impl<F: Send> Sync for Sheet<'_, F> {}

impl<'a, F: Float> Sheet<'a, F> {
    pub fn new(out: &'a mut [F], ld: usize) -> Self {
        Sheet { at: out.as_mut_ptr(), len: out.len(), ld, borrow: PhantomData }
    }

    /// `rows` × `cols` elements from row `r0` and column `c0` on.
    ///
    /// # Safety
    /// No two rectangles that live at the same time may overlap.
    pub unsafe fn rect(&self, (r0, c0): (usize, usize), (rows, cols): (usize, usize)) -> Rect<'_, F> {
        let inside =
            rows == 0 || cols == 0 || c0 + cols <= self.ld && (r0 + rows - 1) * self.ld + c0 + cols <= self.len;
        assert!(inside, "a rectangle of {rows} x {cols} at {r0}, {c0} leaves its matrix");
        // SAFETY: within the matrix.
        Rect { at: unsafe { self.at.add(r0 * self.ld + c0) }, rows, cols, ld: self.ld, borrow: PhantomData }
    }

    /// A rectangle of a matrix within this one's memory: from element `first` on, `ld` from row to row.
    ///
    /// # Safety
    /// As for [`Sheet::rect`].
    pub unsafe fn view(&self, first: usize, (rows, cols): (usize, usize), ld: usize) -> Rect<'_, F> {
        let inside = rows == 0 || cols == 0 || first + (rows - 1) * ld + cols <= self.len;
        assert!(inside, "a rectangle of {rows} x {cols} at {first} leaves its memory");
        // SAFETY: within the memory.
        Rect { at: unsafe { self.at.add(first) }, rows, cols, ld, borrow: PhantomData }
    }
}

/// Calls `f` for each of `tasks`, in parallel where the work of all, in operations, is worth it.
pub fn tasks(tasks: usize, flops: usize, f: impl Fn(usize) + Sync) {
    #[cfg(not(target_arch = "wasm32"))]
    if flops > WORTH_SPREADING {
        use rayon::prelude::*;
        return (0..tasks).into_par_iter().with_max_len(1).for_each(&f);
    }
    let _ = flops;
    (0..tasks).for_each(f);
}

/// Columns of a block of [`blocks`]: a multiple of every quantised block and of the vector kernels' widths. Measured on
/// AVX-512: products of 96 columns run at the full rate, and 96 unpacked rows of a weight fit the second cache.
pub const BLOCK_COLS: usize = 96;

/// Cuts the columns `cols` of a matrix of `rows` rows into blocks and calls `f(first row, first column, block)` for
/// each, in parallel. `flops` is the work of all.
pub fn blocks<F: Float>(
    out: &mut [F],
    rows: usize,
    ld: usize,
    cols: std::ops::Range<usize>,
    flops: usize,
    f: impl Fn(usize, usize, Rect<F>) + Sync,
) {
    assert!(rows == 0 || cols.is_empty() || (rows - 1) * ld + cols.end <= out.len(), "output view out of bounds");
    let across = cols.len().div_ceil(BLOCK_COLS);
    // Few columns and many threads: rows are cut as well, at the price of unpacking the weight once for each part.
    let down = if flops > WORTH_SPREADING {
        (2 * threads()).div_ceil(across.max(1)).clamp(1, rows.div_ceil(64).max(1))
    } else {
        1
    };
    // Blocks begin where the tiles of a product may.
    let height = rows.div_ceil(down).next_multiple_of(32).max(32);
    let sheet = Sheet::new(out, ld);
    tasks(across * rows.div_ceil(height), flops, |i| {
        let (r0, c0) = (i / across * height, cols.start + i % across * BLOCK_COLS);
        let shape = (height.min(rows - r0), BLOCK_COLS.min(cols.end - c0));
        // SAFETY: no other task has these rows and columns.
        f(r0, c0, unsafe { sheet.rect((r0, c0), shape) });
    });
}

fn threads() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_num_threads();
    #[cfg(target_arch = "wasm32")]
    1
}
