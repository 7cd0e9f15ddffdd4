//! The low-rank terms of linears that share an input, `s·(x·Aᵀ)·Bᵀ`, several at a time.
//! Contracts: `shaders/parts/low_rank_project.wgsl`, `low_rank_gradient.wgsl`.
//!
//! The factors are stored so that both have rows along the wide side: A as [R, I], B transposed as Bᵀ [R, O]. A
//! [`Factor`] says where one lies, which columns of the wide side it works on and which of the narrow side, t. There
//! are three things to do with it, and a LoRA layer does each of them twice:
//!
//! ```text
//! project    t = s·x·Fᵀ       u = x·Aᵀ            du = s·dz·B
//! lift       y += s·t·F       z += s·u·Bᵀ         dx += du·A          (in the epilogue of the product: `matmul`)
//! gradient   dF += s·tᵀ·x     dA = duᵀ·x          dBᵀ = s·uᵀ·dz
//! ```

use super::product::{Left, PARTS, Part, Plus, Term};
use super::{Columns, kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan, Scratch};
use crate::simd;
use std::ops::Range;

params!(
    /// A factor F:[rank, width] in the adapter's flat buffer.
    Factor {
        /// Its first float.
        off: u32,
        rank: u32,
        /// First column of t that is its own; factors of the same columns are added up.
        t: u32,
        /// First column of x, or of y.
        col: u32,
        width: u32,
        scale: f32,
        pad0: u32,
        pad1: u32,
    }
);

/// Factors a step takes at most: q, k and v. Those of no rank do nothing.
pub const FACTORS: usize = PARTS;

pub type Factors = [Factor; FACTORS];

impl Factor {
    fn wide(&self) -> Range<usize> {
        self.col as usize..(self.col + self.width) as usize
    }

    fn narrow(&self) -> Range<usize> {
        self.t as usize..(self.t + self.rank) as usize
    }

    /// Its values within the flat buffer.
    fn of<'a, F>(&self, flat: &'a [F]) -> &'a [F] {
        &flat[self.off as usize..][..(self.rank * self.width) as usize]
    }
}

/// Those of the factors that do something.
fn some(factors: &Factors) -> impl Iterator<Item = &Factor> {
    factors.iter().filter(|f| f.rank > 0)
}

/// Floats that they take in an adapter's buffer.
pub fn elements(factors: &Factors) -> usize {
    some(factors).map(|f| (f.rank * f.width) as usize).sum()
}

params!(ProjectParams { n: u32, ld: u32, t_ld: u32, pad: u32, factors: [Factor; 3] });

params!(GradientParams {
    n: u32,
    t0_ld: u32,
    x0_ld: u32,
    t1_ld: u32,
    x1_ld: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
    first: [Factor; 3],
    second: [Factor; 3],
});

kernel!(PROJECT, "low_rank", "project", [Read, Read, Write], ProjectParams,
    [Direct "low_rank_project_direct" [256, 8, 1] {WG: 32}, Software "low_rank_project_direct" [64, 8, 1] {WG: 8}, Tiled "low_rank_project_tiled" [32, 32, 1]], project_twin);
kernel!(GRADIENT, "low_rank", "gradient", [Read, Read, Read, Read, ReadWrite], GradientParams,
    [Direct "low_rank_gradient_direct" [8, 128, 1] {WG: 32}, Software "low_rank_gradient_direct" [8, 32, 1] {WG: 8}, Tiled "low_rank_gradient_tiled" [8, 64, 1]], gradient_twin);

/// t:[N, width], narrow values with the row length they have.
#[derive(Clone, Copy, Debug)]
pub struct Narrow {
    pub buf: Buf,
    pub width: usize,
}

/// `t = s·x·Fᵀ`; rows of x are `ld` floats.
pub fn project(plan: &mut Plan, label: &str, n: usize, x: Buf, ld: usize, flat: Buf, factors: Factors, t: Narrow) {
    let params = ProjectParams { n: n as u32, ld: ld as u32, t_ld: t.width as u32, pad: 0, factors };
    let step = plan.push(&PROJECT, params, &[x, flat, t.buf], [n as u32, t.width as u32, 1]);
    step.label = label.into();
    let elements = elements(&factors);
    step.work = (n * elements) as u64;
    step.touch(1, elements);
}

/// What a gradient is made of: `dF += s·tᵀ·x` for each factor; of `x` the row length counts.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub t: Narrow,
    pub x: Columns,
    pub factors: Factors,
}

/// The gradients of the factors of one pair or of two, at the factors' places in `grads`.
pub fn gradient(plan: &mut Plan, label: &str, n: usize, first: Pair, second: Option<Pair>, grads: Buf) {
    let other = second.unwrap_or(Pair { factors: Factors::default(), ..first });
    let all = || some(&first.factors).chain(some(&other.factors));
    let params = GradientParams {
        n: n as u32,
        t0_ld: first.t.width as u32,
        x0_ld: first.x.ld as u32,
        t1_ld: other.t.width as u32,
        x1_ld: other.x.ld as u32,
        first: first.factors,
        second: other.factors,
        ..Default::default()
    };
    let rank = all().map(|f| f.rank).max().unwrap_or(0);
    // Each factor has blocks of columns of its own.
    let columns = all().map(|f| f.width.next_multiple_of(GRADIENT.shaders[0].tile[1])).sum();
    let bufs = [first.t.buf, first.x.buf, other.t.buf, other.x.buf, grads];
    let step = plan.push(&GRADIENT, params, &bufs, [rank, columns, 1]);
    step.label = label.into();
    let elements = elements(&first.factors) + elements(&other.factors);
    step.work = (n * elements) as u64;
    step.touch(4, elements);
    if second.is_none() {
        step.touch(2, 0).touch(3, 0);
    }
}

/// Up to so many rows of x, dot products beat a product: decoding.
const FEW_ROWS: usize = 8;

/// Rows of x that a task projects.
const TALL: usize = 128;

/// Rows of factors that are multiplied at a time.
const INNER: usize = 512;

fn project_twin<F: Float>(call: &mut Call<F>) {
    let p: ProjectParams = call.params();
    let (n, ld, t_ld) = (p.n as usize, p.ld as usize, p.t_ld as usize);
    let (x, flat, scratch) = (call.f(0), call.f(1), call.scratch);
    let flops = 2 * n * some(&p.factors).map(|f| (f.rank * f.width) as usize).sum::<usize>();
    let t = par::Sheet::new(call.f_mut(2), t_ld);
    let height = if n <= FEW_ROWS { FEW_ROWS } else { TALL };
    par::tasks(n.div_ceil(height), flops, |task| {
        let (r0, rows) = (task * height, height.min(n - task * height));
        for (keep, side) in runs(&p.factors) {
            let (f, x) = (side[0], &x[r0 * ld..]);
            let rank = side.iter().map(|f| f.rank as usize).sum();
            // SAFETY: no other task has these rows.
            let mut t = unsafe { t.rect((r0, f.t as usize), (rows, rank)) };
            match n <= FEW_ROWS {
                true => dots(&mut t, side, keep, x, ld, flat),
                false => side_by_side(&mut t, side, keep, x, ld, flat, scratch),
            }
        }
    });
}

/// The factors in runs that work on the same columns of x, one after the other in t; whether t holds something to add
/// to.
fn runs(factors: &Factors) -> impl Iterator<Item = (bool, &[Factor])> {
    let joined = |a: &Factor, b: &Factor| {
        a.rank > 0
            && b.rank > 0
            && (a.col, a.width, a.scale) == (b.col, b.width, b.scale)
            && a.narrow().end == b.t as usize
    };
    let old = |f: &Factor| some(factors).take_while(|before| !std::ptr::eq(*before, f)).any(|before| before.t == f.t);
    let runs = factors.chunk_by(move |a, b| joined(a, b) && !old(b)).filter(|run| run[0].rank > 0);
    runs.map(move |run| (old(&run[0]), run))
}

fn dots<F: Float>(t: &mut par::Rect<F>, side: &[Factor], keep: bool, x: &[F], ld: usize, flat: &[F]) {
    let wide = side[0].wide();
    let factors = side.iter().flat_map(|f| f.of(flat).chunks_exact(wide.len()).map(|row| (row, F::of32(f.scale))));
    for (r, (factor, scale)) in factors.enumerate() {
        for row in 0..t.rows {
            let (t, x) = (&mut t.row(row)[r], &x[row * ld..][wide.clone()]);
            *t = scale * simd::dot(x, factor) + if keep { *t } else { F::ZERO };
        }
    }
}

fn side_by_side<F: Float>(
    t: &mut par::Rect<F>,
    side: &[Factor],
    keep: bool,
    x: &[F],
    ld: usize,
    flat: &[F],
    scratch: &Scratch<F>,
) {
    let (f, width) = (side[0], side[0].width as usize);
    let x = par::Mat::new(&x[f.col as usize..], ld);
    Left::narrow((t.rows, t.cols, width), x, scratch, |left| {
        left.multiply(t, (0, 0), INNER, Plus::nothing(F::of32(f.scale), keep), |k, panels| {
            for each in side {
                let part = par::Mat::t(&each.of(flat)[k.start..], width);
                panels.lay((0, (each.t - f.t) as usize), part, (k.len(), each.rank as usize));
            }
        });
    });
}

fn gradient_twin<F: Float>(call: &mut Call<F>) {
    let p: GradientParams = call.params();
    let pairs = [
        (call.f(0), p.t0_ld as usize, call.f(1), p.x0_ld as usize, &p.first),
        (call.f(2), p.t1_ld as usize, call.f(3), p.x1_ld as usize, &p.second),
    ];
    let (n, scratch) = (p.n as usize, call.scratch);
    let all = || pairs.iter().flat_map(|(.., factors)| some(factors));
    assert!(all().enumerate().all(|(i, a)| all().skip(i + 1).all(|b| apart(a, b))), "gradients in one place");
    let flops = 2 * n * all().map(|f| (f.rank * f.width) as usize).sum::<usize>();
    let blocks = |f: &Factor| (f.width as usize).div_ceil(par::BLOCK_COLS);
    let grads = par::Sheet::new(call.f_mut(4), 0);
    par::tasks(all().map(blocks).sum(), flops, |task| {
        let mut at = task;
        for (t, t_ld, x, x_ld, factors) in pairs {
            for f in some(factors) {
                if at < blocks(f) {
                    let (c0, width) = (at * par::BLOCK_COLS, f.width as usize);
                    let shape = (f.rank as usize, par::BLOCK_COLS.min(width - c0));
                    // SAFETY: gradients lie apart, and no other task has these columns of this one.
                    let mut out = unsafe { grads.view(f.off as usize + c0, shape, width) };
                    let (t, x) =
                        (par::Mat::t(&t[f.t as usize..], t_ld), par::Mat::new(&x[f.col as usize + c0..], x_ld));
                    return out.product(true, n, t, x, F::of32(f.scale), scratch);
                }
                at -= blocks(f);
            }
        }
    });
}

/// Whether two factors share no float of the flat buffer.
fn apart(a: &Factor, b: &Factor) -> bool {
    let end = |f: &Factor| f.off + f.rank * f.width;
    end(a) <= b.off || end(b) <= a.off
}

/// The term that a product's epilogue adds: `s·t·F` at the factors' columns.
#[derive(Clone, Copy, Debug)]
pub struct Lift {
    pub t: Narrow,
    pub flat: Buf,
    pub factors: Factors,
}

impl Lift {
    /// The term as the twins of products see it: t, its row length and the flat buffer are what the step was given.
    pub fn term<'a, F: Float>(t: &'a [F], t_ld: u32, flat: &'a [F], factors: &Factors) -> Term<'a, F> {
        let parts = factors.map(|f| match f.rank {
            0 => Part::default(),
            rank => Part {
                factor: f.of(flat),
                rank: rank as usize,
                width: f.width as usize,
                t: f.t as usize,
                col: f.col as usize,
                scale: F::of32(f.scale),
            },
        });
        let rank = some(factors).map(|f| f.narrow().end).max().unwrap_or(0);
        Term { t, ld: t_ld as usize, rank, parts }
    }
}
