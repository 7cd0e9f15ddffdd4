//! The low-rank terms of linears that share an input, `s·(x·Aᵀ)·Bᵀ`, several at a time.
//! Contracts: `shaders/low_rank_project_direct.wgsl`, `low_rank_gradient_direct.wgsl`; the tiled ones keep the same.
//!
//! The factors are stored so that both have rows along the wide side: A as [R, I], B transposed as Bᵀ [R, O]. A [`Factor`]
//! says where one lies, which columns of the wide side it works on and which of the narrow side, t. There are three things
//! to do with it, and a LoRA layer does each of them twice:
//!
//! ```text
//! project    t = s·x·Fᵀ       u = x·Aᵀ            du = s·dz·B
//! lift       y += s·t·F       z += s·u·Bᵀ         dx += du·A          (in the epilogue of the product: `matmul`)
//! gradient   dF += s·tᵀ·x     dA = duᵀ·x          dBᵀ = s·uᵀ·dz
//! ```

use super::product::{PARTS, Part, Term};
use super::{Columns, kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
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
    [Direct "low_rank_project_direct" [256, 8, 1], Tiled "low_rank_project_tiled" [32, 32, 1]], project_twin);
kernel!(GRADIENT, "low_rank", "gradient", [Read, Read, Read, Read, ReadWrite], GradientParams,
    [Direct "low_rank_gradient_direct" [8, 128, 1], Tiled "low_rank_gradient_tiled" [8, 64, 1]], gradient_twin);

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
    step.work = n as u64 * some(&factors).map(|f| (f.rank * f.width) as u64).sum::<u64>();
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
    step.work = n as u64 * all().map(|f| (f.rank * f.width) as u64).sum::<u64>();
}

/// Up to so many rows of x, dot products beat a product: decoding.
const FEW_ROWS: usize = 8;

fn project_twin<F: Float>(call: &mut Call<F>) {
    let p: ProjectParams = call.params();
    let (n, ld, t_ld) = (p.n as usize, p.ld as usize, p.t_ld as usize);
    let (x, flat, t) = (call.f(0), call.f(1), call.f_mut(2));
    for (k, f) in p.factors.iter().enumerate().filter(|(_, f)| f.rank > 0) {
        let keep = p.factors[..k].iter().any(|before| before.rank > 0 && before.t == f.t);
        let (factor, width, scale) = (f.of(flat), f.width as usize, F::of32(f.scale));
        par::blocks(t, n, t_ld, f.narrow(), 2 * n * factor.len(), |r0, c0, mut t| {
            let factor = &factor[(c0 - f.t as usize) * width..];
            if t.rows > FEW_ROWS {
                let x = par::Mat::new(&x[r0 * ld + f.col as usize..], ld);
                return t.product(keep, width, x, par::Mat::t(factor, width), scale);
            }
            for row in 0..t.rows {
                let x = &x[(r0 + row) * ld..][f.wide()];
                for (t, factor) in t.row(row).iter_mut().zip(factor.chunks_exact(width)) {
                    *t = scale * simd::dot(x, factor) + if keep { *t } else { F::ZERO };
                }
            }
        });
    }
}

fn gradient_twin<F: Float>(call: &mut Call<F>) {
    let p: GradientParams = call.params();
    let pairs = [
        (call.f(0), p.t0_ld as usize, call.f(1), p.x0_ld as usize, p.first),
        (call.f(2), p.t1_ld as usize, call.f(3), p.x1_ld as usize, p.second),
    ];
    let (n, grads) = (p.n as usize, call.f_mut(4));
    for (t, t_ld, x, ld, factors) in pairs {
        for f in some(&factors) {
            let (rank, width) = (f.rank as usize, f.width as usize);
            let out = &mut grads[f.off as usize..];
            par::blocks(out, rank, width, 0..width, 2 * n * rank * width, |r0, c0, mut out| {
                let t = par::Mat::t(&t[f.t as usize + r0..], t_ld);
                let x = par::Mat::new(&x[f.col as usize + c0..], ld);
                out.product(true, n, t, x, F::of32(f.scale));
            });
        }
    }
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
