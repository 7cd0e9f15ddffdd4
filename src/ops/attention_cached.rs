//! Attention over a KV cache, for generation. Contract: `shaders/parts/attention_cached.wgsl`;
//! `attention_cached_tiled.wgsl` shares the positions of a row and head out over a workgroup, so that a GPU has work
//! for its lanes also where one sequence is decoded.
//!
//! Each row n is a token of sequence `slots[2n]` at position `slots[2n+1]`; a row whose sequence is NONE is idle. Rows
//! append their k and v to the cache first, so one kernel serves a chunk of prompt and a step of decoding alike.

use super::attention::Shape;
use super::gather::NONE;
use super::product::add_dots;
use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd;

params!(Params { n: u32, heads: u32, kv_heads: u32, d: u32, scale: f32, capacity: u32, cap: f32, window: u32 });

kernel!(APPEND, "attention_cached", "append", [Read, Read, Read, ReadWrite, ReadWrite], Params, [Direct "attention_cached" [64, 1, 1]], append_twin);
kernel!(FORWARD, "attention_cached", "forward", [Read, Read, Read, Read, Write], Params, [Tiled "attention_cached_tiled" [1, 1, 1], Software "attention_cached" [64, 1, 1]], forward_twin);

fn params(s: Shape, capacity: usize) -> Params {
    Params {
        n: s.n as u32,
        heads: s.heads as u32,
        kv_heads: s.kv_heads as u32,
        d: s.d as u32,
        scale: s.scale,
        capacity: capacity as u32,
        cap: s.cap,
        window: s.window(),
    }
}

/// `K[sequence, position, :] = k[n, :]` and the same with v, of rows as [`super::attention`] has them;
/// caches:[sequences, capacity, G·D].
pub fn append(
    plan: &mut Plan,
    label: &str,
    s: Shape,
    capacity: usize,
    slots: Buf,
    [qk, v]: [Buf; 2],
    caches: [Buf; 2],
) {
    let grid = [(s.n * s.kv_heads * s.d / 4) as u32, 1, 1];
    let step = plan.push(&APPEND, params(s, capacity), &[slots, qk, v, caches[0], caches[1]], grid);
    let (all, part) = (s.n * (s.heads + s.kv_heads) * s.d, s.n * s.kv_heads * s.d);
    step.touch(1, all).touch(2, part).touch(3, part).touch(4, part).label = label.into();
    step.consts = s.consts();
}

/// `o[n] = softmax(cap(scale·q[n]·Kᵀ))·V` over positions `0..=position` of the row's sequence, the nearest `window`.
pub fn forward(plan: &mut Plan, label: &str, s: Shape, capacity: usize, slots: Buf, qk: Buf, k: Buf, v: Buf, o: Buf) {
    let step = plan.push(&FORWARD, params(s, capacity), &[slots, qk, k, v, o], [(s.n * s.heads) as u32, 1, 1]);
    step.touch(1, s.n * s.heads * s.d);
    s.finish(step, label, capacity);
}

fn append_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (wide, width) = ((p.heads * p.d) as usize, (p.kv_heads * p.d) as usize);
    let (slots, qk, v) = (call.w(0), call.f(1), call.f(2));
    let (keys, values) = (call.f_mut(3), call.f_mut(4));
    for row in (0..p.n as usize).filter(|row| slots[2 * row] != NONE) {
        let at = (slots[2 * row] as usize * p.capacity as usize + slots[2 * row + 1] as usize) * width;
        let from = row * (wide + 2 * width) + wide;
        keys[at..at + width].copy_from_slice(&qk[from..][..width]);
        values[at..at + width].copy_from_slice(&v[from + width..][..width]);
    }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (heads, d, width) = (p.heads as usize, p.d as usize, (p.kv_heads * p.d) as usize);
    let group = heads / p.kv_heads as usize;
    let (slots, q, k, v) = (call.w(0), call.f(1), call.f(2), call.f(3));
    let scratch = call.scratch;
    par::rows(&mut call.f_mut(4)[..p.n as usize * heads * d], d, 64, |i, o| {
        let (row, head) = (i / heads, i % heads);
        if slots[2 * row] == NONE {
            return o.fill(F::ZERO);
        }
        let end = slots[2 * row + 1] as usize + 1;
        let first = end.saturating_sub(p.window as usize);
        let seen = end - first;
        let at = (slots[2 * row] as usize * p.capacity as usize + first) * width + head / group * d;
        let (k, v) = (&k[at..][..(seen - 1) * width + d], &v[at..][..(seen - 1) * width + d]);
        let q = &q[row * (heads * d + 2 * width) + head * d..][..d];
        scratch.with(seen, |scores| {
            scores.fill(F::ZERO);
            add_dots(&mut par::Rect::new(scores, (1, seen), seen), d, q, k, [d, width], F::of32(p.scale));
            softmax(scores, p.cap);
            let (scores, v) = (par::Mat::new(scores, seen), par::Mat::new(v, width));
            par::Rect::new(o, (1, d), d).product(false, seen, scores, v, F::ONE, scratch);
        });
    });
}

fn softmax<F: Float>(scores: &mut [F], cap: f32) {
    if cap != 0.0 {
        simd::soft_cap(scores, F::of32(cap));
    }
    let max = simd::max(scores);
    let sum = simd::exp_and_sum(scores, max);
    simd::scale(scores, F::ONE / sum);
}
