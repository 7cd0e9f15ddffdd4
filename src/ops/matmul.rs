//! Products with a frozen matrix: `y = x·Wᵀ` and `dx = dy·W`, with the LoRA term, bias, residual and accumulation
//! in the epilogue. Contract: `shaders/parts/matmul.wgsl`.
//!
//! Matrices that share an input can be stacked ([`Matrix::stack`]): one product, whose outputs lie side by side.

use super::gain::Vector;
use super::low_rank::{self, Factor, Factors, Lift};
use super::product::{Left, Mat, Panels, Plus, Term, add_dots};
use super::{Columns, kernel, par, params};
use crate::format::{WeightFormat, unpack};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan, Scratch, Slot, Step};
use crate::simd;
use std::ops::Range;

params!(
    /// Shared by both directions. `ld` is the width of a row of the O side (y or dy), `col` the first column used.
    Params {
        n: u32,
        i: u32,
        o: u32,
        ld: u32,
        col: u32,
        /// First word of W within its buffer (factors of an adapter share one buffer).
        w_off: u32,
        /// Factor of the whole product x·Wᵀ.
        scale: f32,
        flags: u32,
        /// The bias of column `col`.
        bias_off: u32,
        /// Row length of t.
        t_ld: u32,
        /// What dy is multiplied by while it is kept as halves, a power of 2: see [`range`].
        range: f32,
        pad: u32,
        /// Of the low-rank terms: Bᵀ forward, A backward; their columns are those of y or dx.
        factors: [Factor; 3],
    }
);

/// `flags`
pub const BIAS: u32 = 1;
pub const RESIDUAL: u32 = 2;
pub const ACCUMULATE: u32 = 4;

// The best guess of each style first, for machines where nothing is measured. LANES above 1 needs a subgroup of as many
// (SwiftShader's 4, lavapipe's 8); LARGE takes long to compile, and is guessed from 2 to the power of it multiply-adds on;
// SKINNY needs at most so many rows or outputs; HALF has to be asked for; FRAG needs matrix units of that size, and is taken
// where it was measured to be fast and right.
kernel!(FORWARD, "matmul", "forward", [Read, Read, Read, Read, Read, Read, ReadWrite], Params, [
    Direct "matmul_direct" [4, 32, 1] {TALL: 4, WIDE: 32, LANES: 8, LARGE: 27},
    Direct "matmul_direct" [4, 16, 1] {TALL: 4, WIDE: 16, LANES: 8},
    Direct "matmul_direct" [8, 16, 1] {TALL: 8, WIDE: 16, LANES: 4},
    Direct "matmul_direct" [8, 8, 1] {TALL: 8, WIDE: 8, LANES: 8},
    Direct "matmul_direct" [8, 8, 1] {TALL: 8, WIDE: 8, LANES: 4},
    Direct "matmul_direct" [8, 8, 1] {TALL: 8, WIDE: 8, LANES: 1},
    Direct "matmul_direct" [4, 4, 1] {TALL: 4, WIDE: 4, LANES: 1},
    Tiled "matmul_split" [4, 8, 1] {TALL: 4, WIDE: 8, SKINNY: 8},
    Tiled "matmul_tiled" [64, 64, 1] {TALL: 8, WIDE: 8, TX: 8, TY: 8, X_LOADS: 4, W_LOADS: 4, HALF: 1},
    Tiled "matmul_tiled" [64, 64, 1] {TALL: 8, WIDE: 8, TX: 8, TY: 8, X_LOADS: 4, W_LOADS: 4},
    Tiled "matmul_tiled" [64, 64, 1] {TALL: 4, WIDE: 4, TX: 16, TY: 16, X_LOADS: 1, W_LOADS: 1},
    Tiled "matmul_tiled" [128, 64, 1] {TALL: 8, WIDE: 4, TX: 16, TY: 16, X_LOADS: 2, W_LOADS: 1},
    Tiled "matmul_tiled" [128, 128, 1] {TALL: 8, WIDE: 8, TX: 16, TY: 16, X_LOADS: 2, W_LOADS: 2},
    Tiled "matmul_tiled" [32, 32, 1] {TALL: 4, WIDE: 4, TX: 8, TY: 8, X_LOADS: 2, W_LOADS: 2},
    Tiled "matmul_cooperative" [128, 128, 1] {FRAG: 16, LANES: 32, DOWN: 2, ACROSS: 4, TALL: 4, WIDE: 2, STEPS: 2, X_LOADS: 4, W_LOADS: 4, HALF: 1},
    Tiled "matmul_cooperative" [64, 64, 1] {FRAG: 16, LANES: 32, DOWN: 2, ACROSS: 2, TALL: 2, WIDE: 2, STEPS: 2, X_LOADS: 4, W_LOADS: 4, HALF: 1},
    Tiled "matmul_cooperative" [64, 64, 1] {FRAG: 8, LANES: 8, DOWN: 2, ACROSS: 4, TALL: 4, WIDE: 2, STEPS: 4, X_LOADS: 8, W_LOADS: 8, HALF: 1}
], forward_twin);
kernel!(BACKWARD, "matmul", "backward", [Read, Read, Read, Read, ReadWrite], Params, [
    Direct "matmul_direct" [4, 32, 1] {TALL: 4, WIDE: 32, LANES: 8, LARGE: 27},
    Direct "matmul_direct" [4, 16, 1] {TALL: 4, WIDE: 16, LANES: 8},
    Direct "matmul_direct" [8, 16, 1] {TALL: 8, WIDE: 16, LANES: 4},
    Direct "matmul_direct" [8, 8, 1] {TALL: 8, WIDE: 8, LANES: 8},
    Direct "matmul_direct" [8, 8, 1] {TALL: 8, WIDE: 8, LANES: 4},
    Direct "matmul_direct" [8, 8, 1] {TALL: 8, WIDE: 8, LANES: 1},
    Direct "matmul_direct" [4, 4, 1] {TALL: 4, WIDE: 4, LANES: 1},
    Tiled "matmul_tiled" [64, 64, 1] {TALL: 8, WIDE: 8, TX: 8, TY: 8, X_LOADS: 4, W_LOADS: 4, HALF: 1},
    Tiled "matmul_tiled" [64, 64, 1] {TALL: 8, WIDE: 8, TX: 8, TY: 8, X_LOADS: 4, W_LOADS: 4},
    Tiled "matmul_tiled" [64, 64, 1] {TALL: 4, WIDE: 4, TX: 16, TY: 16, X_LOADS: 1, W_LOADS: 1},
    Tiled "matmul_tiled" [128, 64, 1] {TALL: 8, WIDE: 4, TX: 16, TY: 16, X_LOADS: 2, W_LOADS: 1},
    Tiled "matmul_tiled" [128, 128, 1] {TALL: 8, WIDE: 8, TX: 16, TY: 16, X_LOADS: 2, W_LOADS: 2},
    Tiled "matmul_tiled" [32, 32, 1] {TALL: 4, WIDE: 4, TX: 8, TY: 8, X_LOADS: 2, W_LOADS: 2},
    Tiled "matmul_cooperative" [128, 128, 1] {FRAG: 16, LANES: 32, DOWN: 2, ACROSS: 4, TALL: 4, WIDE: 2, STEPS: 2, X_LOADS: 4, W_LOADS: 4, HALF: 1},
    Tiled "matmul_cooperative" [64, 64, 1] {FRAG: 16, LANES: 32, DOWN: 2, ACROSS: 2, TALL: 2, WIDE: 2, STEPS: 2, X_LOADS: 4, W_LOADS: 4, HALF: 1},
    Tiled "matmul_cooperative" [64, 64, 1] {FRAG: 8, LANES: 8, DOWN: 2, ACROSS: 4, TALL: 4, WIDE: 2, STEPS: 4, X_LOADS: 8, W_LOADS: 8, HALF: 1}
], backward_twin);

/// A matrix [rows, cols] in one or more buffers, split by rows where a binding would be too large.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub format: WeightFormat,
    pub rows: usize,
    pub cols: usize,
    pub shards: Vec<Shard>,
}

#[derive(Clone, Copy, Debug)]
pub struct Shard {
    pub buf: Buf,
    pub row0: usize,
    pub rows: usize,
    /// First word of the shard within `buf`.
    pub offset: usize,
}

impl Matrix {
    /// A part of a buffer as a matrix, from word `offset` on.
    pub fn at(buf: Buf, offset: usize, format: WeightFormat, rows: usize, cols: usize) -> Matrix {
        Matrix { format, rows, cols, shards: vec![Shard { buf, row0: 0, rows, offset }] }
    }

    /// Some of its rows, as a matrix.
    pub fn slice(&self, rows: Range<usize>) -> Matrix {
        let words = self.format.words(self.cols);
        let part = |s: &Shard| {
            let (lo, hi) = (s.row0.max(rows.start), (s.row0 + s.rows).min(rows.end));
            let offset = s.offset + (lo.max(s.row0) - s.row0) * words;
            (lo < hi).then(|| Shard { buf: s.buf, row0: lo - rows.start, rows: hi - lo, offset })
        };
        let shards = self.shards.iter().filter_map(part).collect();
        Matrix { rows: rows.len(), shards, ..*self }
    }

    /// Matrices of one format and width below one another; those that follow each other in a buffer are one again.
    pub fn stack<'a>(parts: impl IntoIterator<Item = &'a Matrix>) -> Matrix {
        let mut parts = parts.into_iter();
        let mut all = parts.next().expect("something to stack").clone();
        for part in parts {
            assert_eq!((part.format, part.cols), (all.format, all.cols), "stacked matrices are of one kind");
            let words = all.format.words(all.cols);
            for shard in &part.shards {
                match all.shards.last_mut() {
                    Some(l) if l.buf == shard.buf && l.offset + l.rows * words == shard.offset => l.rows += shard.rows,
                    _ => all.shards.push(Shard { row0: all.rows + shard.row0, ..*shard }),
                }
            }
            all.rows += part.rows;
        }
        all
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// Low-rank terms; their columns are those of y.
    pub low: Option<Lift>,
    pub bias: Option<Vector>,
    /// Lies as y does.
    pub residual: Option<Buf>,
    pub accumulate: bool,
}

impl Epilogue {
    fn flags(&self) -> u32 {
        (self.bias.is_some() as u32) * BIAS
            + (self.residual.is_some() as u32) * RESIDUAL
            + (self.accumulate as u32) * ACCUMULATE
    }
}

/// `y[N,O] = scale·x[N,I]·Wᵀ + low + bias + residual (+ y)`. `none` is any small buffer, bound where nothing is read.
pub fn forward(
    plan: &mut Plan,
    label: &str,
    n: usize,
    x: Buf,
    w: &Matrix,
    scale: f32,
    e: Epilogue,
    none: Buf,
    y: impl Into<Columns>,
) {
    let y = y.into();
    let [ld, col] = y.place(w.rows);
    for shard in &w.shards {
        let params = Params {
            n: n as u32,
            i: w.cols as u32,
            o: shard.rows as u32,
            ld,
            col: col + shard.row0 as u32,
            w_off: shard.offset as u32,
            scale,
            range: 1.0,
            flags: e.flags(),
            bias_off: e.bias.map_or(0, |b| (b.off + shard.row0) as u32),
            t_ld: e.low.map_or(0, |l| l.t.width as u32),
            factors: factors(e.low),
            ..Default::default()
        };
        let bufs = [
            x,
            shard.buf,
            e.low.map_or(none, |l| l.t.buf),
            e.low.map_or(none, |l| l.flat),
            e.bias.map_or(none, |b| b.buf),
            e.residual.unwrap_or(none),
            y.buf,
        ];
        let step = plan.push(&FORWARD, params, &bufs, [n as u32, shard.rows as u32, 1]);
        finish(step, label, w, n, shard.rows, w.cols);
        touch(step, w.format.words(w.cols) * shard.rows, e.low);
        step.touch(4, shard.rows).touch(5, n * shard.rows).touch(6, n * shard.rows);
        if !e.accumulate && shard.row0 == 0 {
            step.access[6] = Access::Write;
        }
    }
}

fn factors(low: Option<Lift>) -> Factors {
    low.map_or(Factors::default(), |low| low.factors)
}

/// `dx[N,I] (+)= dy[N,O]·W + low`. A matrix of no rows leaves the low-rank term alone.
pub fn backward(
    plan: &mut Plan,
    label: &str,
    n: usize,
    dy: impl Into<Columns>,
    w: &Matrix,
    low: Option<Lift>,
    accumulate: bool,
    none: Buf,
    dx: Buf,
) {
    let dy = dy.into();
    let [ld, col] = dy.place(w.rows);
    for (k, shard) in w.shards.iter().enumerate() {
        let low = low.filter(|_| k == 0); // the low-rank term belongs to the sum once
        let params = Params {
            n: n as u32,
            i: w.cols as u32,
            o: shard.rows as u32,
            ld,
            col: col + shard.row0 as u32,
            w_off: shard.offset as u32,
            scale: 1.0,
            range: range(n),
            flags: if accumulate || k > 0 { ACCUMULATE } else { 0 },
            t_ld: low.map_or(0, |l| l.t.width as u32),
            factors: factors(low),
            ..Default::default()
        };
        let bufs = [dy.buf, shard.buf, low.map_or(none, |l| l.t.buf), low.map_or(none, |l| l.flat), dx];
        let step = plan.push(&BACKWARD, params, &bufs, [n as u32, w.cols as u32, 1]);
        finish(step, label, w, n, w.cols, shard.rows);
        touch(step, w.format.words(w.cols) * shard.rows, low);
        step.touch(0, n * shard.rows);
        if params.flags & ACCUMULATE == 0 {
            step.access[4] = Access::Write;
        }
    }
}

/// Brings gradients to where halves keep all of their 11 bits, from 2⁻¹⁴ on, and far from 65504: those of a mean over the
/// tokens that count, some or all of n, are of the order of 1/n or more. Loss scaling (Micikevicius et al. 2018, Mixed
/// Precision Training), within the product.
fn range(n: usize) -> f32 {
    n.next_power_of_two().min(1 << 12) as f32
}

/// What both directions set: `n` × `width` outputs, `inner` products each.
fn finish(step: &mut Step, label: &str, w: &Matrix, n: usize, width: usize, inner: usize) {
    step.format = Some(w.format);
    step.label = label.into();
    step.work *= inner as u64;
    // Lanes go along the rows where outputs are few (rank-sized), along the outputs where rows are few (decoding).
    step.workgroup = match (n, width) {
        (_, ..=8) => [32, 1],
        (..=8, _) => [1, 32],
        _ => [8, 8],
    };
}

/// Of the weight so many words, of an adapter's buffer the factors.
fn touch(step: &mut Step, words: usize, low: Option<Lift>) {
    let factors = low.map_or(0, |low| low_rank::elements(&low.factors));
    step.touch(1, words).touch(3, factors);
}

/// The weight as a twin sees it: rows of floats, or of packed words.
enum Weight<'a, F> {
    Floats(&'a [F]),
    Packed(&'a [u32], WeightFormat),
}

impl<'a, F: Float> Weight<'a, F> {
    fn new(call: &Call<'a, F>, p: &Params) -> Self {
        let format = call.format.expect("a weight has a format");
        let (o, i, off) = (p.o as usize, p.i as usize, p.w_off as usize);
        match &call.slots[1] {
            Slot::F(values) => Weight::Floats(&values[off..][..o * i]),
            Slot::W(words) => Weight::Packed(&words[off..][..o * format.words(i)], format),
            _ => panic!("weights are bound for reading"),
        }
    }

    /// How many bf16 add up to a value. Two hold 16 bits: a value in f16 has 11, one in four bits 15 (more only beside
    /// a minimum far below its step, and then of no weight).
    fn parts(&self) -> usize {
        match self {
            Weight::Floats(_) | Weight::Packed(_, WeightFormat::F32 | WeightFormat::Q8_0) => 3,
            Weight::Packed(_, WeightFormat::F16 | WeightFormat::Q4_0 | WeightFormat::Q4_1) => 2,
            Weight::Packed(_, WeightFormat::BF16) => 1,
        }
    }

    /// Lends rows `rows` and columns `cols` of the matrix, `i` wide, as floats and their row length.
    fn with<R>(
        &self,
        i: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        scratch: &Scratch<F>,
        f: impl FnOnce(&[F], usize) -> R,
    ) -> R {
        match self {
            Weight::Floats(values) => f(&values[rows.start * i + cols.start..(rows.end - 1) * i + cols.end], i),
            Weight::Packed(words, format) => scratch.with(rows.len() * cols.len(), |panel| {
                let (stride, skip) = (format.words(i), format.words(cols.start));
                for (row, out) in rows.zip(panel.chunks_exact_mut(cols.len())) {
                    unpack(*format, &words[row * stride + skip..], out);
                }
                f(panel, cols.len())
            }),
        }
    }

    /// Asks for what [`Weight::with`] is about to read.
    fn prefetch(&self, i: usize, rows: Range<usize>, cols: Range<usize>) {
        if let Weight::Packed(words, format) = self {
            let (stride, skip, some) = (format.words(i), format.words(cols.start), format.words(cols.len()));
            rows.for_each(|row| {
                simd::prefetch(words.get(row * stride + skip..).map_or(&[], |w| &w[..some.min(w.len())]))
            });
        }
    }

    /// Packs rows × columns of the matrix: as rows of B, or as its columns where `transposed`.
    fn lay(
        &self,
        i: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        transposed: bool,
        scratch: &Scratch<F>,
        panels: &mut Panels<F>,
    ) {
        if let Weight::Packed(words, WeightFormat::BF16) = self
            && transposed
            && panels.lay_pairs(&words[rows.start * i / 2 + cols.start / 2..], i / 2)
        {
            return;
        }
        for row in (rows.clone()).step_by(PART.0) {
            let some = row..(row + PART.0).min(rows.end);
            for col in cols.clone().step_by(PART.1) {
                let (height, part) = (some.len(), col..(col + PART.1).min(cols.end));
                self.prefetch(i, some.end..some.end + PART.0, part.clone());
                let (down, across, width) = (row - rows.start, col - cols.start, part.len());
                self.with(i, some.clone(), part, scratch, |values, ld| match transposed {
                    true => panels.lay((across, down), Mat::t(values, ld), (width, height)),
                    false => panels.lay((down, across), Mat::new(values, ld), (height, width)),
                });
            }
        }
    }

    /// `y += scale · x · W[rows]ᵀ` for a few rows of x: some rows of W are unpacked and multiplied by all of them.
    fn times_few(&self, i: usize, rows: Range<usize>, x: &[F], scale: F, scratch: &Scratch<F>, y: &mut par::Rect<F>) {
        for first in rows.clone().step_by(FEW_COLS) {
            let some = first..(first + FEW_COLS).min(rows.end);
            self.prefetch(i, some.end..some.end + FEW_COLS, 0..i);
            let mut y = y.part((0, first - rows.start), (y.rows, some.len()));
            self.with(i, some, 0..i, scratch, |w, ld| add_dots(&mut y, i, x, w, [i, ld], scale));
        }
    }
}

/// Rows and columns of W that are unpacked before they are packed for tiles: 16 KiB, in the first cache.
const PART: (usize, usize) = (32, 128);

/// Inner dimension of one product: with [`par::BLOCK_COLS`] a panel of 576 KiB, which stays in the second cache.
const INNER: usize = 1536;

/// Up to so many rows of x, each row of W is unpacked once and multiplied by all of them: decoding.
const FEW_ROWS: usize = 8;

/// Rows of W unpacked at a time for them, so that they stay in the first cache.
const FEW_COLS: usize = 8;

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, i, o, ld, col) = (p.n as usize, p.i as usize, p.o as usize, p.ld as usize, p.col as usize);
    let (x, w) = (call.f(0), Weight::new(call, &p));
    let (start, term) = (Start::new(call, &p), Lift::term(call.f(2), p.t_ld, call.f(3), &p.factors));
    let (y, scratch, flops) = (call.f_mut(6), call.scratch, 2 * n * o * (i + term.rank));
    if n <= FEW_ROWS {
        // A weight takes as long to fetch and to unpack as a few products.
        let flops = flops.max(FEW_ROWS * i * o);
        return par::blocks(y, n, ld, col..col + o, flops, |r0, c0, mut y| {
            start.fill(r0, c0, &mut y);
            w.times_few(i, c0 - col..c0 - col + y.cols, &x[r0 * i..], F::of32(p.scale), scratch, &mut y);
            add_term(&term, r0, c0, &mut y, scratch);
        });
    }
    Left::with((n, o, i), Mat::new(x, i), term, w.parts(), scratch, |left| {
        par::blocks(y, n, ld, col..col + o, flops, |r0, c0, mut y| {
            let rows = c0 - col..c0 - col + y.cols;
            left.multiply(&mut y, (r0, c0), INNER, start.plus(r0, c0), |k, panels| {
                w.lay(i, rows.clone(), k, true, scratch, panels);
            });
        });
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, i, o, ld, col) = (p.n as usize, p.i as usize, p.o as usize, p.ld as usize, p.col as usize);
    let (dy, w) = (call.f(0), Weight::new(call, &p));
    let term = Lift::term(call.f(2), p.t_ld, call.f(3), &p.factors);
    let (dx, scratch) = (call.f_mut(4), call.scratch);
    let plus = Plus::nothing(F::ONE, p.flags & ACCUMULATE != 0);
    let dy = Mat::new(&dy[col.min(dy.len())..], ld);
    Left::with((n, i, o), dy, term, w.parts(), scratch, |left| {
        par::blocks(dx, n, i, 0..i, 2 * n * i * (o + term.rank), |r0, c0, mut dx| {
            let cols = c0..c0 + dx.cols;
            left.multiply(&mut dx, (r0, c0), INNER, plus, |k, panels| {
                w.lay(i, k, cols.clone(), false, scratch, panels);
            });
        });
    });
}

/// What the product is added to: old y, bias, residual.
struct Start<'a, F> {
    p: Params,
    bias: &'a [F],
    residual: &'a [F],
}

impl<'a, F: Float> Start<'a, F> {
    fn new(call: &Call<'a, F>, p: &Params) -> Self {
        Start { p: *p, bias: call.f(4), residual: call.f(5) }
    }

    fn has(&self, flag: u32) -> bool {
        self.p.flags & flag != 0
    }

    /// For the block at row `r0`, column `c0` of y.
    fn plus(&self, r0: usize, c0: usize) -> Plus<'a, F> {
        let ld = self.p.ld as usize;
        Plus {
            scale: F::of32(self.p.scale),
            old: self.has(ACCUMULATE),
            bias: self.has(BIAS).then(|| &self.bias[c0 - self.p.col as usize + self.p.bias_off as usize..]),
            residual: self.has(RESIDUAL).then(|| (&self.residual[r0 * ld + c0..], ld)),
        }
    }

    /// The same as a block that rows are added to.
    fn fill(&self, r0: usize, c0: usize, y: &mut par::Rect<F>) {
        let plus = self.plus(r0, c0);
        let zeros = [F::ZERO; par::BLOCK_COLS];
        for row in 0..y.rows {
            plus.write((row, 0), y.row(row), &zeros);
        }
    }
}

/// Adds the term's block at row `r0` and column `c0` of the product, for a few rows.
fn add_term<F: Float>(term: &Term<F>, r0: usize, c0: usize, out: &mut par::Rect<F>, scratch: &Scratch<F>) {
    let (block, rows) = (c0..c0 + out.cols, out.rows);
    for part in term.parts.iter().filter(|part| part.rank > 0) {
        let (lo, hi) = (block.start.max(part.col), block.end.min(part.col + part.width));
        if lo < hi {
            let t = Mat::new(&term.t[r0 * term.ld + part.t..], term.ld);
            let factor = Mat::new(&part.factor[lo - part.col..], part.width);
            out.part((0, lo - c0), (rows, hi - lo)).product(true, part.rank, t, factor, part.scale, scratch);
        }
    }
}
