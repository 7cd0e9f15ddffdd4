//! Causal attention over packed documents, with grouped kv heads. Contract: `shaders/parts/attention.wgsl`.
//!
//! `spans[n]` = (first, end) are the rows of n's document, so a query sees the keys `first..=n`, or the nearest
//! `window` of them, and cost follows the documents' lengths, not T². The forward pass is an online softmax that keeps
//! the log-sum-exp (Dao 2023, FlashAttention-2); the backward pass recomputes the probabilities from it. On a GPU one
//! dispatch has workgroups for dq, by queries, and others for dk and dv, by keys: no atomics, and scores never exist as
//! a whole. The twins work in blocks of rows, with products by GEMM, and compute the probabilities of a block once for
//! all three gradients.
//!
//! q, k and v of a row lie side by side, as the product that makes them leaves them: [N, (H + 2G)·D]. Where heads are
//! normed, q and k come from a buffer of their own in the same places, so there are two inputs: `qk` and `v`, often one
//! buffer. The gradients of all three go to one buffer of that layout.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan, Scratch, Step};
use crate::simd::{self, simd};

params!(Params { n: u32, heads: u32, kv_heads: u32, d: u32, scale: f32, cap: f32, window: u32, pad: u32 });

kernel!(FORWARD, "attention", "forward", [Read, Read, Read, Write, Write], Params,
    [Tiled "attention_tiled" [32, 1, 32], Software "attention_direct" [64, 1, WHOLE]], forward_twin);
kernel!(DELTA, "attention", "delta", [Read, Read, Read, Read, Write], Params,
    [Tiled "attention_tiled" [64, 1, 1], Software "attention_direct" [64, 1, 1]], delta_twin);
kernel!(BACKWARD, "attention", "backward", [Read, Read, Read, Read, Write], Params,
    [Tiled "attention_tiled" [32, 1, 32], Software "attention_direct" [64, 1, WHOLE]], backward_twin);

/// A direct invocation has a head's whole width, whatever it is.
const WHOLE: u32 = u32::MAX;

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

    /// The constants prepended to the shader. PER rows of a head belong to a direct invocation: one where heads are
    /// wide, since what is unrolled over them then compiles for a minute.
    pub fn consts(&self) -> Vec<(&'static str, u32)> {
        vec![("HEAD_DIM_4", self.d as u32 / 4), ("PER", if self.d > 64 { 1 } else { 2 })]
    }

    /// q and k lie in one buffer, and v beside them or elsewhere.
    fn touch(&self, step: &mut Step) {
        step.touch(1, self.n * (self.heads + self.kv_heads) * self.d).touch(2, self.n * self.kv_heads * self.d);
    }

    /// What every step over pairs of rows sets, each of which sees about `seen`.
    pub fn finish(&self, step: &mut Step, label: &str, seen: usize) {
        step.consts = self.consts();
        step.work = self.n as u64 * step.grid[1].max(self.heads as u32) as u64 * (self.d * seen) as u64;
        step.label = label.into();
    }
}

/// `o = softmax(cap(scale·q·kᵀ))·v`; `lse`:[N,H] keeps the log-sum-exp of the scores for the backward pass.
pub fn forward(plan: &mut Plan, label: &str, s: Shape, spans: Buf, qk: Buf, v: Buf, o: Buf, lse: Buf) {
    let grid = [s.n as u32, s.heads as u32, s.d as u32 / 4];
    let step = plan.push(&FORWARD, s.params(), &[spans, qk, v, o, lse], grid);
    s.touch(step);
    s.finish(step, label, s.n.min(512));
}

pub struct Backward {
    pub spans: Buf,
    pub qk: Buf,
    pub v: Buf,
    pub o: Buf,
    pub lse: Buf,
    pub d_o: Buf,
    pub dqkv: Buf,
}

/// dq, dk, dv from d_o.
pub fn backward(plan: &mut Plan, label: &str, s: Shape, b: &Backward) {
    let (n, heads, all) = (s.n as u32, s.heads as u32, (s.heads + s.kv_heads) as u32);
    let facts = plan.temp("attention facts", s.n * s.heads * FACTS);
    let step = plan.push(&DELTA, s.params(), &[b.spans, b.o, b.d_o, b.lse, facts], [n * heads, 1, 1]);
    step.label = label.into();
    step.consts = s.consts();
    let bufs = [facts, b.qk, b.v, b.d_o, b.dqkv];
    let step = plan.push(&BACKWARD, s.params(), &bufs, [n, all, s.d as u32 / 4]);
    s.touch(step);
    s.finish(step, label, s.n.min(512));
}

/// Floats that the backward pass wants to know of a row and head: log-sum-exp, δ, the first row that this one sees, and
/// one past the last row that sees it.
const FACTS: usize = 4;

/// Rows of a twin's block.
const BLOCK: usize = 64;

/// Keys of a strip of the backward pass: two strips and their keys and values fit the second cache.
const STRIP: usize = 512;

type Range = std::ops::Range<usize>;

/// What the blocks of a twin share: shape, queries, keys and values.
struct Block<'a, F> {
    p: Params,
    qk: &'a [F],
    v: &'a [F],
}

impl<'a, F: Float> Block<'a, F> {
    fn new(call: &Call<'a, F>) -> Self {
        Block { p: call.params(), qk: call.f(1), v: call.f(2) }
    }

    /// Floats of a row of o, and of q, k and v together.
    fn widths(&self) -> (usize, usize) {
        let p = &self.p;
        ((p.heads * p.d) as usize, ((p.heads + 2 * p.kv_heads) * p.d) as usize)
    }

    /// Where a query head, a key head and a value head begin in a row.
    fn q_column(&self, head: usize) -> usize {
        head * self.p.d as usize
    }

    fn k_column(&self, kv_head: usize) -> usize {
        (self.p.heads as usize + kv_head) * self.p.d as usize
    }

    fn v_column(&self, kv_head: usize) -> usize {
        ((self.p.heads + self.p.kv_heads) as usize + kv_head) * self.p.d as usize
    }

    /// The rows from `row` on of a head's queries, keys, values.
    fn q(&self, head: usize, row: usize) -> par::Mat<'a, F> {
        let (_, ld) = self.widths();
        par::Mat::new(&self.qk[row * ld + self.q_column(head)..], ld)
    }

    fn k(&self, kv_head: usize, row: usize) -> par::Mat<'a, F> {
        let (_, ld) = self.widths();
        par::Mat::new(&self.qk[row * ld + self.k_column(kv_head)..], ld)
    }

    fn v(&self, kv_head: usize, row: usize) -> par::Mat<'a, F> {
        let (_, ld) = self.widths();
        par::Mat::new(&self.v[row * ld + self.v_column(kv_head)..], ld)
    }

    /// The query heads of a kv head.
    fn group(&self, kv_head: usize) -> Range {
        let group = (self.p.heads / self.p.kv_heads) as usize;
        kv_head * group..(kv_head + 1) * group
    }

    /// Scaled and capped scores of the queries `rows` against the keys `keys` for `head` of `kv_head`: rows are
    /// [`padded`].
    fn scores(&self, (head, kv_head): (usize, usize), rows: &Range, keys: &Range, out: &mut [F], scratch: &Scratch<F>) {
        let (q, k) = (self.q(head, rows.start), self.k(kv_head, keys.start).turned());
        let (shape, ld) = ((rows.len(), keys.len()), padded(keys));
        par::Rect::new(out, shape, ld).product(false, self.p.d as usize, q, k, F::of32(self.p.scale), scratch);
        if self.p.cap != 0.0 {
            simd::soft_cap(&mut out[..rows.len() * ld], F::of32(self.p.cap));
        }
    }
}

/// Multiply-adds of the twins' smallest part, by which work is spread over threads.
fn work(p: &Params) -> usize {
    8 * (p.n * p.heads * p.d) as usize * BLOCK
}

/// Floats from row to row of scores: whole vectors, since what is left of one takes as long as many.
fn padded(keys: &Range) -> usize {
    keys.len().next_multiple_of(simd::LANES)
}

/// The whole vectors of a row of scores that hold what the mask shows: −∞ where it does not, zeros in the other
/// vectors.
fn seen<'a, F: Float>(scores: &'a mut [F], keys: &Range, first: usize, row: usize) -> &'a mut [F] {
    let lo = first.clamp(keys.start, keys.end) - keys.start;
    let hi = (row + 1).clamp(keys.start + lo, keys.end) - keys.start;
    let (begin, end) = (lo / simd::LANES * simd::LANES, hi.next_multiple_of(simd::LANES));
    scores[..begin].fill(F::ZERO);
    scores[begin..lo].fill(F::of(f64::NEG_INFINITY));
    scores[hi..end].fill(F::of(f64::NEG_INFINITY));
    scores[end..].fill(F::ZERO);
    &mut scores[begin..end]
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, heads, kv_heads, d) = (p.n as usize, p.heads as usize, p.kv_heads as usize, p.d as usize);
    let (spans, scratch, block) = (call.w(0), call.scratch, Block::new(call));
    let (wq, _) = block.widths();
    let first = |row: usize| (spans[2 * row] as usize).max((row + 1).saturating_sub(p.window as usize));
    let (o, lse) = (par::Sheet::new(call.f_mut(3), wq), par::Sheet::new(call.f_mut(4), heads));
    par::tasks(n.div_ceil(BLOCK) * kv_heads, work(&p), |task| {
        let (start, kv_head) = (task / kv_heads * BLOCK, task % kv_heads);
        let rows = start..n.min(start + BLOCK);
        let keys = first(start)..rows.end;
        let ld = padded(&keys);
        scratch.with(rows.len() * ld, |s| {
            for head in block.group(kv_head) {
                block.scores((head, kv_head), &rows, &keys, s, scratch);
                // SAFETY: no other task has these rows of this head.
                let (mut o, mut lse) =
                    unsafe { (o.rect((start, head * d), (rows.len(), d)), lse.rect((start, head), (rows.len(), 1))) };
                for (i, s) in s.chunks_exact_mut(ld).enumerate() {
                    let seen = seen(s, &keys, first(start + i), start + i);
                    let max = simd::max(seen);
                    let sum = simd::exp_and_sum(seen, max);
                    simd::scale(seen, F::ONE / sum);
                    lse.row(i)[0] = max + sum.ln();
                }
                let v = block.v(kv_head, keys.start);
                o.product(false, keys.len(), par::Mat::new(s, ld), v, F::ONE, scratch);
            }
        });
    });
}

fn delta_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, heads, d, window) = (p.n as usize, p.heads as usize, p.d as usize, p.window as usize);
    let (spans, o, d_o, lse) = (call.w(0), call.f(1), call.f(2), call.f(3));
    par::rows(&mut call.f_mut(4)[..n * heads * FACTS], heads * FACTS, d / FACTS, |row, facts| {
        let first = (spans[2 * row] as usize).max((row + 1).saturating_sub(window));
        let end = (spans[2 * row + 1] as usize).min(row.saturating_add(window));
        for (i, facts) in (row * heads..).zip(facts.chunks_exact_mut(FACTS)) {
            let delta = simd::dot(&o[i * d..][..d], &d_o[i * d..][..d]);
            facts.copy_from_slice(&[lse[i], delta, F::of(first as f64), F::of(end as f64)]);
        }
    });
}

/// Queries are cut into at most this many chunks, each a task for each kv head.
const CHUNKS: usize = 8;

/// The backward pass of all queries of a chunk, for one kv head. They give dq outright, and to dk and dv of the keys
/// they see a part, which is summed up when all chunks are done.
struct Chunk<'a, F> {
    block: Block<'a, F>,
    facts: &'a [F],
    d_o: &'a [F],
    scratch: &'a Scratch<F>,
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, kv_heads, d) = (p.n as usize, p.kv_heads as usize, p.d as usize);
    let chunk = Chunk { block: Block::new(call), facts: call.f(0), d_o: call.f(3), scratch: call.scratch };
    let ((_, ld), wk) = (chunk.block.widths(), kv_heads * d);
    let (k_column, v_column) = (chunk.block.k_column(0), chunk.block.v_column(0));
    let dqkv = call.f_mut(4);
    // By the shape alone, so that sums are the same for any number of threads.
    let len = n.div_ceil(CHUNKS).next_multiple_of(BLOCK).max(2 * BLOCK);
    let rows = |c: usize| c * len..n.min((c + 1) * len);
    let mut at = [0; CHUNKS + 1]; // where the keys of each chunk begin in the parts
    for c in 0..n.div_ceil(len) {
        at[c + 1] = at[c] + rows(c).end - chunk.first(rows(c).start);
    }
    let chunks = n.div_ceil(len);
    call.scratch.with(2 * at[chunks] * wk, |parts| {
        let (part_k, part_v) = parts.split_at_mut(at[chunks] * wk);
        {
            let dq = par::Sheet::new(dqkv, ld);
            let sheets = [par::Sheet::new(part_k, wk), par::Sheet::new(part_v, wk)];
            par::tasks(chunks * kv_heads, work(&p), |task| {
                let (c, kv_head) = (chunks - 1 - task / kv_heads, task % kv_heads);
                // SAFETY: no other task has this chunk of this kv head.
                let parts = sheets.each_ref().map(|s| unsafe { s.rect((at[c], kv_head * d), (at[c + 1] - at[c], d)) });
                call.scratch.with(2 * BLOCK * STRIP, |strips| chunk.backward(rows(c), kv_head, &dq, parts, strips));
            });
        }
        par::rows(&mut dqkv[..n * ld], ld, CHUNKS, |row, dqkv| {
            let (dk, dv) = dqkv[k_column..].split_at_mut(v_column - k_column);
            dk.fill(F::ZERO);
            dv.fill(F::ZERO);
            for c in row / len..chunks {
                let first = chunk.first(rows(c).start);
                if first <= row {
                    let at = (at[c] + row - first) * wk;
                    simd::add_scaled(dk, &part_k[at..][..wk], F::ONE);
                    simd::add_scaled(dv, &part_v[at..][..wk], F::ONE);
                }
            }
        });
    });
}

impl<F: Float> Chunk<'_, F> {
    fn fact(&self, row: usize, head: usize, fact: usize) -> F {
        self.facts[(row * self.block.p.heads as usize + head) * FACTS + fact]
    }

    /// The first row that `row` sees. It never falls from row to row.
    fn first(&self, row: usize) -> usize {
        self.fact(row, 0, 2).to64() as usize
    }

    fn backward(
        &self,
        rows: Range,
        kv_head: usize,
        dq: &par::Sheet<F>,
        mut parts: [par::Rect<F>; 2],
        strips: &mut [F],
    ) {
        let (d, begin) = (self.block.p.d as usize, self.first(rows.start));
        for part in &mut parts {
            (0..part.rows).for_each(|row| part.row(row).fill(F::ZERO));
        }
        for start in rows.clone().step_by(BLOCK) {
            let (block, first) = (start..rows.end.min(start + BLOCK), self.first(start));
            for from in (first..block.end).step_by(STRIP) {
                let keys = from..block.end.min(from + STRIP);
                for head in self.block.group(kv_head) {
                    // SAFETY: no other task has these rows of this head.
                    let dq = unsafe { dq.rect((start, head * d), (block.len(), d)) };
                    let parts = parts.each_mut().map(|part| part.part((keys.start - begin, 0), (keys.len(), d)));
                    self.strip((head, kv_head), &block, &keys, (from > first, dq), parts, strips);
                }
            }
        }
    }

    /// The part of the queries `rows` and the keys `keys` in all three gradients.
    fn strip(
        &self,
        (head, kv_head): (usize, usize),
        rows: &Range,
        keys: &Range,
        (keep, mut dq): (bool, par::Rect<F>),
        [mut dk, mut dv]: [par::Rect<F>; 2],
        strips: &mut [F],
    ) {
        let (block, d, width, scratch) = (&self.block, self.block.p.d as usize, keys.len(), self.scratch);
        let ((wq, _), cap) = (block.widths(), F::of32(block.p.cap));
        let (p, ds) = strips.split_at_mut(BLOCK * STRIP);
        let ld = padded(keys);
        let (p, ds) = (&mut p[..rows.len() * ld], &mut ds[..rows.len() * ld]);
        let d_o = par::Mat::new(&self.d_o[rows.start * wq + head * d..], wq);
        let (k, v) = (block.k(kv_head, keys.start), block.v(kv_head, keys.start));
        block.scores((head, kv_head), rows, keys, p, scratch);
        par::Rect::new(ds, (rows.len(), width), ld).product(false, d, d_o, v.turned(), F::ONE, scratch);
        for (row, (p, ds)) in rows.clone().zip(p.chunks_exact_mut(ld).zip(ds.chunks_exact_mut(ld))) {
            let delta = self.fact(row, head, 1);
            if cap == F::ZERO {
                simd::exp_in_place(seen(p, keys, self.first(row), row), self.fact(row, head, 0), F::ONE);
                weigh(ds, p, delta);
            } else {
                // Times the cap's slope at the scores, before these become probabilities.
                ds.iter_mut().for_each(|ds| *ds -= delta);
                simd::soft_cap_slope(ds, p, cap);
                simd::exp_in_place(seen(p, keys, self.first(row), row), self.fact(row, head, 0), F::ONE);
                weigh(ds, p, F::ZERO);
            }
        }
        dv.product(true, rows.len(), par::Mat::t(p, ld), d_o, F::ONE, scratch);
        let scale = F::of32(block.p.scale);
        dq.product(keep, width, par::Mat::new(ds, ld), k, scale, scratch);
        dk.product(true, rows.len(), par::Mat::t(ds, ld), block.q(head, rows.start), scale, scratch);
    }
}

simd! {
    /// `ds = p ∘ (ds − delta)`
    fn weigh<F: Float>(ds: &mut [F], p: &[F], delta: F) {
        ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = *p * (*ds - delta));
    }
}
