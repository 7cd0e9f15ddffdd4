//! Causal attention over packed documents, with grouped kv heads. Contract: `shaders/attention.wgsl`.
//!
//! `spans[n]` = (first, end) are the rows of n's document, so a query sees the keys `first..=n`, or the nearest `window`
//! of them, and cost follows the documents' lengths, not T². The forward pass is an online softmax that keeps the log-sum-exp (Dao 2023,
//! FlashAttention-2); the backward pass recomputes the probabilities from it, in one kernel by queries (dq) and one by
//! keys (dk, dv), so there are no atomics and scores never exist as a whole. The twins work in blocks of rows, with
//! products by GEMM.
//!
//! q, k and v of a row lie side by side, as the product that makes them leaves them: [N, (H + 2G)·D]. Where heads are
//! normed, q and k come from a buffer of their own in the same places, so there are two inputs: `qk` and `v`, often one
//! buffer. The gradients of all three go to one buffer of that layout.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan, Step};
use crate::simd::{self, simd};

params!(Params { n: u32, heads: u32, kv_heads: u32, d: u32, scale: f32, cap: f32, window: u32, pad: u32 });

kernel!(FORWARD, "attention", "forward", [Read, Read, Read, Write, Write], Params, [Direct "attention" [64, 1, 1]], forward_twin);
kernel!(DELTA, "attention", "delta", [Read, Read, ReadWrite], Params, [Direct "attention" [64, 1, 1]], delta_twin);
kernel!(BACKWARD_Q, "attention", "backward_q", [Read, Read, Read, Read, Read, Write], Params,
    [Direct "attention" [64, 1, 1]], backward_q_twin);
kernel!(BACKWARD_KV, "attention", "backward_kv", [Read, Read, Read, Read, Read, ReadWrite], Params,
    [Direct "attention" [64, 1, 1]], backward_kv_twin);

#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub n: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
    /// Factor of the scores, 1/√D.
    pub scale: f32,
    /// Scores go through `cap·tanh(s/cap)`; 0 for none.
    pub cap: f32,
    /// Rows a query sees, itself among them; 0 for its whole document.
    pub window: usize,
}

impl Shape {
    fn params(&self) -> Params {
        Params {
            n: self.n as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            d: self.d as u32,
            scale: self.scale,
            cap: self.cap,
            window: self.window(),
            pad: 0,
        }
    }

    /// Floats of a row of q, k and v.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.d
    }

    /// The window as the shaders have it.
    pub fn window(&self) -> u32 {
        if self.window == 0 { u32::MAX } else { self.window as u32 }
    }

    /// The constants prepended to the shader.
    pub fn consts(&self) -> Vec<(&'static str, u32)> {
        vec![("HEAD_DIM_4", self.d as u32 / 4)]
    }

    /// What every step over pairs of rows sets.
    pub fn finish(&self, step: &mut Step, label: &str) {
        step.consts = self.consts();
        step.work *= (self.d * self.n.min(512)) as u64;
        step.label = label.into();
    }
}

/// `o = softmax(cap(scale·q·kᵀ))·v`; `stats`:[N,H,2] keeps (log-sum-exp, δ), δ to be filled in by the backward pass.
pub fn forward(plan: &mut Plan, label: &str, s: Shape, spans: Buf, qk: Buf, v: Buf, o: Buf, stats: Buf) {
    let step = plan.push(&FORWARD, s.params(), &[spans, qk, v, o, stats], [s.n as u32, s.heads as u32, 1]);
    s.finish(step, label);
}

pub struct Backward {
    pub spans: Buf,
    pub qk: Buf,
    pub v: Buf,
    pub o: Buf,
    pub stats: Buf,
    pub d_o: Buf,
    pub dqkv: Buf,
}

/// dq, dk, dv from d_o.
pub fn backward(plan: &mut Plan, label: &str, s: Shape, b: &Backward) {
    let rows = s.n as u32;
    let step = plan.push(&DELTA, s.params(), &[b.o, b.d_o, b.stats], [rows * s.heads as u32, 1, 1]);
    step.label = label.into();
    step.consts = s.consts();
    let bufs = [b.spans, b.qk, b.v, b.stats, b.d_o, b.dqkv];
    let step = plan.push(&BACKWARD_Q, s.params(), &bufs, [rows, s.heads as u32, 1]);
    s.finish(step, label);
    let step = plan.push(&BACKWARD_KV, s.params(), &bufs, [rows, s.kv_heads as u32, 1]);
    s.finish(step, label);
}

/// Rows of a twin's block.
const BLOCK: usize = 64;

/// What the twins' blocks share: shape, inputs, and the probabilities of a block recomputed.
struct Block<'a, F> {
    p: Params,
    spans: &'a [u32],
    qk: &'a [F],
    v: &'a [F],
}

impl<'a, F: Float> Block<'a, F> {
    fn new(call: &Call<'a, F>) -> Self {
        Block { p: call.params(), spans: call.w(0), qk: call.f(1), v: call.f(2) }
    }

    /// Floats of a row of o, and of q, k and v together.
    fn widths(&self) -> (usize, usize) {
        let p = &self.p;
        ((p.heads * p.d) as usize, ((p.heads + 2 * p.kv_heads) * p.d) as usize)
    }

    /// Where the query head, its key head and its value head begin in a row.
    fn columns(&self, head: usize) -> [usize; 3] {
        let (heads, kv_heads, d) = (self.p.heads as usize, self.p.kv_heads as usize, self.p.d as usize);
        let kv_head = head / (heads / kv_heads);
        [head, heads + kv_head, heads + kv_heads + kv_head].map(|head| head * d)
    }

    /// The rows from `row` on of q, k and v for a query head.
    fn q(&self, head: usize, row: usize) -> par::Mat<'a, F> {
        let (_, ld) = self.widths();
        par::Mat::new(&self.qk[row * ld + self.columns(head)[0]..], ld)
    }

    fn k(&self, head: usize, row: usize) -> par::Mat<'a, F> {
        let (_, ld) = self.widths();
        par::Mat::new(&self.qk[row * ld + self.columns(head)[1]..], ld)
    }

    fn v(&self, head: usize, row: usize) -> par::Mat<'a, F> {
        let (_, ld) = self.widths();
        par::Mat::new(&self.v[row * ld + self.columns(head)[2]..], ld)
    }

    /// The first key that query `row` sees.
    fn first(&self, row: usize) -> usize {
        (self.spans[2 * row] as usize).max((row + 1).saturating_sub(self.p.window as usize))
    }

    /// One past the last query that sees key `row`.
    fn end(&self, row: usize) -> usize {
        (self.spans[2 * row + 1] as usize).min(row.saturating_add(self.p.window as usize))
    }

    /// Scaled and capped scores of query rows `rows` against key rows `keys` for `head`: [rows, keys].
    fn scores(&self, head: usize, rows: (usize, usize), keys: (usize, usize), out: &mut [F]) {
        let (m, n, d) = (rows.1 - rows.0, keys.1 - keys.0, self.p.d as usize);
        let (q, k) = (self.q(head, rows.0), self.k(head, keys.0).turned());
        par::Rect::new(out, (m, n), n).product(false, d, q, k, F::of32(self.p.scale));
        if self.p.cap != 0.0 {
            simd::soft_cap(&mut out[..m * n], F::of32(self.p.cap));
        }
    }

    /// Multiplies `ds` by the cap's slope at the capped scores, which `scores` holds anew.
    fn through_cap(&self, head: usize, rows: (usize, usize), keys: (usize, usize), scores: &mut [F], ds: &mut [F]) {
        if self.p.cap != 0.0 {
            self.scores(head, rows, keys, scores);
            simd::soft_cap_slope(ds, scores, F::of32(self.p.cap));
        }
    }

    /// Turns scores into probabilities with the saved log-sum-exp; zero where the mask hides the key.
    fn probabilities(&self, rows: (usize, usize), keys: (usize, usize), lse: impl Fn(usize) -> F, s: &mut [F]) {
        for (row, s) in (rows.0..rows.1).zip(s.chunks_exact_mut(keys.1 - keys.0)) {
            let lse = lse(row);
            let (lo, hi) = (self.first(row).clamp(keys.0, keys.1) - keys.0, (row + 1).clamp(keys.0, keys.1) - keys.0);
            let hi = hi.max(lo);
            s[..lo].fill(F::ZERO);
            s[hi..].fill(F::ZERO);
            simd::exp_in_place(&mut s[lo..hi], lse, F::ONE);
        }
    }
}

/// `ds = p ∘ (dp − delta)`, in place of dp.
fn score_gradient<F: Float>(p: &[F], dp: &mut [F], keys: usize, delta: impl Fn(usize) -> F) {
    for (row, (p, dp)) in p.chunks_exact(keys).zip(dp.chunks_exact_mut(keys)).enumerate() {
        weigh(dp, p, delta(row));
    }
}

simd! {
    fn weigh<F: Float>(dp: &mut [F], p: &[F], delta: F) {
        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = *p * (*dp - delta));
    }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, heads, d) = (p.n as usize, p.heads as usize, p.d as usize);
    let block = Block::new(call);
    let (wq, _) = block.widths();
    let (o, stats, scratch) = (call.f_mut(3), call.f_mut(4), call.scratch);
    par::rows2(&mut o[..n * wq], BLOCK * wq, &mut stats[..n * heads * 2], BLOCK * heads * 2, n, |b, o, stats| {
        let rows = (b * BLOCK, b * BLOCK + stats.len() / heads / 2);
        let keys = ((rows.0..rows.1).map(|r| block.first(r)).min().unwrap_or(0), rows.1);
        let width = keys.1 - keys.0;
        scratch.with((rows.1 - rows.0) * width, |s| {
            for head in 0..heads {
                block.scores(head, rows, keys, s);
                for (i, s) in s.chunks_exact_mut(width).enumerate() {
                    let (first, end) = (block.first(rows.0 + i) - keys.0, rows.0 + i + 1 - keys.0);
                    s[..first].fill(F::ZERO);
                    s[end..].fill(F::ZERO);
                    let seen = &mut s[first..end];
                    let max = simd::max(seen);
                    let sum = simd::exp_and_sum(seen, max);
                    simd::scale(seen, F::ONE / sum);
                    stats[(i * heads + head) * 2] = max + sum.ln();
                }
                let v = block.v(head, keys.0);
                let shape = (rows.1 - rows.0, d);
                par::Rect::new(&mut o[head * d..], shape, wq).product(false, width, par::Mat::new(s, width), v, F::ONE);
            }
        });
    });
}

fn delta_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let d = p.d as usize;
    let (o, d_o) = (call.f(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..(p.n * p.heads) as usize * 2], 2, d, |i, stats| {
        stats[1] = simd::dot(&o[i * d..][..d], &d_o[i * d..][..d]);
    });
}

fn backward_q_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, heads, d) = (p.n as usize, p.heads as usize, p.d as usize);
    let block = Block::new(call);
    let (wq, ld) = block.widths();
    let (stats, d_o, scratch) = (call.f(3), call.f(4), call.scratch);
    par::rows(&mut call.f_mut(5)[..n * ld], BLOCK * ld, n, |b, dqkv| {
        let rows = (b * BLOCK, b * BLOCK + dqkv.len() / ld);
        let keys = ((rows.0..rows.1).map(|r| block.first(r)).min().unwrap_or(0), rows.1);
        let (m, width) = (rows.1 - rows.0, keys.1 - keys.0);
        scratch.with(2 * m * width, |both| {
            for head in 0..heads {
                let (s, dp) = both.split_at_mut(m * width);
                block.scores(head, rows, keys, s);
                block.probabilities(rows, keys, |row| stats[(row * heads + head) * 2], s);
                let d_o = par::Mat::new(&d_o[rows.0 * wq + head * d..], wq);
                let v = block.v(head, keys.0).turned();
                par::Rect::new(dp, (m, width), width).product(false, d, d_o, v, F::ONE);
                score_gradient(s, dp, width, |i| stats[((rows.0 + i) * heads + head) * 2 + 1]);
                block.through_cap(head, rows, keys, s, dp);
                let (ds, k, dq) = (par::Mat::new(dp, width), block.k(head, keys.0), &mut dqkv[head * d..]);
                par::Rect::new(dq, (m, d), ld).product(false, width, ds, k, F::of32(p.scale));
            }
        });
    });
}

fn backward_kv_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, heads, d) = (p.n as usize, p.heads as usize, p.d as usize);
    let group = heads / p.kv_heads as usize;
    let block = Block::new(call);
    let (wq, ld) = block.widths();
    let (stats, d_o, scratch) = (call.f(3), call.f(4), call.scratch);
    par::rows(&mut call.f_mut(5)[..n * ld], BLOCK * ld, n, |b, dqkv| {
        let keys = (b * BLOCK, b * BLOCK + dqkv.len() / ld);
        let rows = (keys.0, (keys.0..keys.1).map(|r| block.end(r)).max().unwrap_or(keys.1));
        let (m, width) = (rows.1 - rows.0, keys.1 - keys.0);
        scratch.with(2 * m * width, |both| {
            for head in 0..heads {
                let (s, dp) = both.split_at_mut(m * width);
                let ([_, k_col, v_col], first) = (block.columns(head), head % group == 0);
                block.scores(head, rows, keys, s);
                block.probabilities(rows, keys, |row| stats[(row * heads + head) * 2], s);
                let d_o = par::Mat::new(&d_o[rows.0 * wq + head * d..], wq);
                let v = block.v(head, keys.0).turned();
                par::Rect::new(dp, (m, width), width).product(false, d, d_o, v, F::ONE);
                let dv = &mut dqkv[v_col..];
                par::Rect::new(dv, (width, d), ld).product(!first, m, par::Mat::t(s, width), d_o, F::ONE);
                score_gradient(s, dp, width, |i| stats[((rows.0 + i) * heads + head) * 2 + 1]);
                block.through_cap(head, rows, keys, s, dp);
                let (q, dk) = (block.q(head, rows.0), &mut dqkv[k_col..]);
                par::Rect::new(dk, (width, d), ld).product(!first, m, par::Mat::t(dp, width), q, F::of32(p.scale));
            }
        });
    });
}
