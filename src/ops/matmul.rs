//! Products with a frozen matrix: `y = x·Wᵀ` and `dx = dy·W`, with the LoRA term, bias, residual and accumulation
//! in the epilogue. See `shaders/matmul_direct.wgsl` for the contract; `matmul_tiled.wgsl` keeps the same one.
//!
//! The low-rank factors are stored so that both have rows along the wide side: A as [R, I], B transposed as Bᵀ [R, O].
//! `u = x·Aᵀ` and `du = s·dz·B = s·dz·(Bᵀ)ᵀ` are then the same forward product with an f32 matrix.

use super::{kernel, par, params};
use crate::format::{WeightFormat, unpack};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan, Slot, Step};

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
        /// Rank of the low-rank term, 0 for none.
        r: u32,
        /// First float of the term's factor: Bᵀ [R, ·] forward, A [R, I] backward.
        low_off: u32,
        /// Row length of that factor.
        low_ld: u32,
        low_scale: f32,
        /// Factor of the whole product x·Wᵀ.
        scale: f32,
        flags: u32,
    }
);

/// `flags`
pub const BIAS: u32 = 1;
pub const RESIDUAL: u32 = 2;
pub const ACCUMULATE: u32 = 4;

kernel!(FORWARD, "matmul", "forward", [Read, Read, Read, Read, Read, Read, ReadWrite], Params,
    [Direct "matmul_direct" [8, 8, 1], Tiled "matmul_tiled" [64, 64, 1]], forward_twin);
kernel!(BACKWARD, "matmul", "backward", [Read, Read, Read, Read, ReadWrite], Params,
    [Direct "matmul_direct" [8, 8, 1], Tiled "matmul_tiled" [64, 64, 1]], backward_twin);

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

/// The low-rank term of an epilogue: `scale · t · factor` with t:[N,R] and the factor at `offset` of the adapter buffer.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    pub t: Buf,
    pub params: Buf,
    pub offset: usize,
    pub rank: usize,
    pub scale: f32,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    pub low: Option<LowRank>,
    pub bias: Option<Buf>,
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
pub fn forward(plan: &mut Plan, label: &str, n: usize, x: Buf, w: &Matrix, scale: f32, e: Epilogue, none: Buf, y: Buf) {
    for shard in &w.shards {
        let low = e.low;
        let params = Params {
            n: n as u32,
            i: w.cols as u32,
            o: shard.rows as u32,
            ld: w.rows as u32,
            col: shard.row0 as u32,
            w_off: shard.offset as u32,
            r: low.map_or(0, |l| l.rank as u32),
            low_off: low.map_or(0, |l| l.offset as u32),
            low_ld: w.rows as u32,
            low_scale: low.map_or(0.0, |l| l.scale),
            scale,
            flags: e.flags(),
        };
        let bufs = [
            x,
            shard.buf,
            low.map_or(none, |l| l.t),
            low.map_or(none, |l| l.params),
            e.bias.unwrap_or(none),
            e.residual.unwrap_or(none),
            y,
        ];
        let step = plan.push(&FORWARD, params, &bufs, [n as u32, shard.rows as u32, 1]);
        finish(step, label, w, n, shard.rows, w.cols);
        if !e.accumulate && shard.row0 == 0 {
            step.access[6] = Access::Write;
        }
    }
}

/// `dx[N,I] (+)= dy[N,O]·W + low`. A matrix of no rows leaves the low-rank term alone.
pub fn backward(
    plan: &mut Plan,
    label: &str,
    n: usize,
    dy: Buf,
    w: &Matrix,
    low: Option<LowRank>,
    accumulate: bool,
    none: Buf,
    dx: Buf,
) {
    for (k, shard) in w.shards.iter().enumerate() {
        let low = low.filter(|_| k == 0); // the low-rank term belongs to the sum once
        let params = Params {
            n: n as u32,
            i: w.cols as u32,
            o: shard.rows as u32,
            ld: w.rows as u32,
            col: shard.row0 as u32,
            w_off: shard.offset as u32,
            r: low.map_or(0, |l| l.rank as u32),
            low_off: low.map_or(0, |l| l.offset as u32),
            low_ld: w.cols as u32,
            low_scale: low.map_or(0.0, |l| l.scale),
            scale: 1.0,
            flags: if accumulate || k > 0 { ACCUMULATE } else { 0 },
        };
        let bufs = [dy, shard.buf, low.map_or(none, |l| l.t), low.map_or(none, |l| l.params), dx];
        let step = plan.push(&BACKWARD, params, &bufs, [n as u32, w.cols as u32, 1]);
        finish(step, label, w, n, w.cols, shard.rows);
        if params.flags & ACCUMULATE == 0 {
            step.access[4] = Access::Write;
        }
    }
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

/// Calls `f(first row, rows, values)` for panels of W as floats, unpacked into scratch unless they are floats already.
fn panels<F: Float>(
    w: &Slot<F>,
    p: &Params,
    format: WeightFormat,
    scratch: &mut Vec<F>,
    mut f: impl FnMut(usize, usize, &[F]),
) {
    let (o, i) = (p.o as usize, p.i as usize);
    match w {
        Slot::F(values) => f(0, o, &values[p.w_off as usize..][..o * i]),
        Slot::W(words) => {
            // A panel of about 8 MiB stays in the outer caches between unpacking and its product.
            let rows = ((8 << 20) / (size_of::<F>() * i)).clamp(8, o.max(8));
            let stride = format.words(i);
            let words = &words[p.w_off as usize..][..o * stride];
            if scratch.len() < rows.min(o) * i {
                scratch.resize(rows.min(o) * i, F::ZERO);
            }
            for row0 in (0..o).step_by(rows) {
                let rows = rows.min(o - row0);
                let panel = &mut scratch[..rows * i];
                par::rows(panel, i, 1, |r, out| unpack(format, &words[(row0 + r) * stride..][..stride], out));
                f(row0, rows, panel);
            }
        }
        _ => panic!("weights are bound for reading"),
    }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, i, r, ld) = (p.n as usize, p.i as usize, p.r as usize, p.ld as usize);
    let (x, t, low) = (call.f(0), call.f(2), call.f(3));
    let y = call.f_mut(6);
    start_rows(y, &p, call);
    let scale = F::of32(p.scale);
    panels(&call.slots[1], &p, call.format.expect("a weight has a format"), call.scratch, |row0, rows, w| {
        let y = &mut y[p.col as usize + row0..];
        par::gemm(
            (n, rows, i),
            y,
            ld,
            true,
            par::Mat::new(x, i),
            par::Mat::t(w, i),
            scale,
            par::gemm_parallelism(2 * n * rows * i),
        );
    });
    if r > 0 {
        let (o, low_ld) = (p.o as usize, p.low_ld as usize);
        let factor = par::Mat::new(&low[p.low_off as usize + p.col as usize..], low_ld);
        par::gemm(
            (n, o, r),
            &mut y[p.col as usize..],
            ld,
            true,
            par::Mat::new(t, r),
            factor,
            F::of32(p.low_scale),
            par::gemm_parallelism(2 * n * o * r),
        );
    }
}

/// Sets the rows of y to what the product is added to: bias + residual + old y.
fn start_rows<F: Float>(y: &mut [F], p: &Params, call: &Call<F>) {
    let (o, ld, col) = (p.o as usize, p.ld as usize, p.col as usize);
    let (bias, residual) = (call.f(4), call.f(5));
    par::rows(&mut y[..p.n as usize * ld], ld, 1, |row, y| {
        let y = &mut y[col..col + o];
        if p.flags & ACCUMULATE == 0 {
            y.fill(F::ZERO);
        }
        if p.flags & BIAS != 0 {
            y.iter_mut().zip(&bias[col..]).for_each(|(y, b)| *y += *b);
        }
        if p.flags & RESIDUAL != 0 {
            y.iter_mut().zip(&residual[row * ld + col..]).for_each(|(y, b)| *y += *b);
        }
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, i, r, ld) = (p.n as usize, p.i as usize, p.r as usize, p.ld as usize);
    let (dy, t, low) = (call.f(0), call.f(2), call.f(3));
    let dx = call.f_mut(4);
    let mut keep = p.flags & ACCUMULATE != 0;
    panels(&call.slots[1], &p, call.format.expect("a weight has a format"), call.scratch, |row0, rows, w| {
        let dy = par::Mat::new(&dy[p.col as usize + row0..], ld);
        par::gemm((n, i, rows), dx, i, keep, dy, par::Mat::new(w, i), F::ONE, par::gemm_parallelism(2 * n * rows * i));
        keep = true;
    });
    if r > 0 {
        let factor = par::Mat::new(&low[p.low_off as usize..], p.low_ld as usize);
        par::gemm(
            (n, i, r),
            dx,
            i,
            keep,
            par::Mat::new(t, r),
            factor,
            F::of32(p.low_scale),
            par::gemm_parallelism(2 * n * i * r),
        );
    }
}
