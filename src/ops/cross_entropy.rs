//! Cross-entropy over chunks of supervised rows. Contract: `shaders/cross_entropy.wgsl`.
//!
//! The head's logits exist for one chunk of rows at a time: forward reads them, backward turns them into their
//! gradient in place, and the product with the head's matrix follows before the next chunk overwrites them.

use super::control::{FIRST, INV_TOKENS, REPORT as REPORT_FLOATS, RING, ROWS};
use super::gather::NONE;
use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd;

params!(
    /// `v` words of the vocabulary in rows of `ld` (a multiple of 4; the padding beyond v gets no gradient).
    Params { m: u32, v: u32, first: u32, ld: u32, cap: f32, pad0: u32, pad1: u32, pad2: u32 }
);

/// One chunk of supervised rows: `m` rows from row `first` of the micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    pub m: usize,
    pub first: usize,
    pub v: usize,
    pub ld: usize,
    /// The soft cap that the logits went through; 0 for none.
    pub cap: f32,
}

impl Chunk {
    fn params(&self) -> Params {
        let (m, v, first, ld) = (self.m as u32, self.v as u32, self.first as u32, self.ld as u32);
        Params { m, v, first, ld, cap: self.cap, ..Default::default() }
    }
}

kernel!(FORWARD, "cross_entropy", "forward", [Read, Read, ReadWrite], Params, [Direct "cross_entropy" [1, 1, 1] {THREADS: 64}, Software "cross_entropy" [1, 1, 1] {THREADS: 8}], forward_twin);
kernel!(BACKWARD, "cross_entropy", "backward", [Read, Read, Read, ReadWrite], Params, [Direct "cross_entropy" [1, 1, 1] {THREADS: 64}, Software "cross_entropy" [1, 1, 1] {THREADS: 8}], backward_twin);
kernel!(REPORT, "cross_entropy", "report", [Read, Read, ReadWrite], Params, [Direct "cross_entropy" [1, 1, 1] {THREADS: 64}, Software "cross_entropy" [1, 1, 1] {THREADS: 8}], report_twin);

/// Floats a row of `rows` keeps: loss, 1 if the best logit is the target, log-sum-exp, unused.
pub const ROW: usize = 4;

/// For chunk rows m < M (row `first + m` of the micro-batch): `rows[first + m] = (loss, hit, lse, 0)` from
/// logits:[M,V].
pub fn forward(plan: &mut Plan, c: Chunk, targets: Buf, logits: Buf, rows: Buf) {
    let step = plan.push(&FORWARD, c.params(), &[targets, logits, rows], [c.m as u32, 1, 1]);
    step.work *= c.v as u64;
}

/// `logits = (softmax(logits) − onehot(target)) / tokens`, through the cap; zero for rows without a target.
pub fn backward(plan: &mut Plan, c: Chunk, control: Buf, targets: Buf, rows: Buf, logits: Buf) {
    let step = plan.push(&BACKWARD, c.params(), &[control, targets, rows, logits], [c.m as u32, 1, 1]);
    step.work *= c.v as u64;
}

/// Adds the sums of loss and hits over the micro-batch's rows to the report ring.
pub fn report(plan: &mut Plan, control: Buf, rows: Buf, ring: Buf) {
    plan.push(&REPORT, Params::default(), &[control, rows, ring], [1, 1, 1]);
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (v, first, ld) = (p.v as usize, p.first as usize, p.ld as usize);
    let (targets, logits) = (call.w(0), call.f(1));
    par::rows(&mut call.f_mut(2)[first * ROW..][..p.m as usize * ROW], ROW, v, |m, out| {
        out.fill(F::ZERO);
        let target = targets[first + m];
        if target == NONE {
            return;
        }
        let x = &logits[m * ld..][..v];
        let max = simd::max(x);
        let best = x.iter().position(|x| *x == max);
        let lse = max + simd::sum_exp(x, max).ln();
        out[0] = lse - x[target as usize];
        out[1] = if best == Some(target as usize) { F::ONE } else { F::ZERO };
        out[2] = lse;
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (v, first, ld) = (p.v as usize, p.first as usize, p.ld as usize);
    let (control, targets, rows) = (call.w(0), call.w(1), call.f(2));
    let inv = F::of32(f32::from_bits(control[INV_TOKENS]));
    let (cap, scratch) = (F::of32(p.cap), call.scratch);
    par::rows(&mut call.f_mut(3)[..p.m as usize * ld], ld, 8, |m, x| match targets[first + m] {
        NONE => x.fill(F::ZERO),
        target => scratch.with(if p.cap == 0.0 { 0 } else { v }, |capped| {
            let lse = rows[(first + m) * ROW + 2];
            capped.copy_from_slice(&x[..capped.len()]);
            simd::exp_in_place(&mut x[..v], lse, inv);
            x[v..].fill(F::ZERO);
            x[target as usize] -= inv;
            simd::soft_cap_slope(x, capped, cap);
        }),
    });
}

fn report_twin<F: Float>(call: &mut Call<F>) {
    let (control, rows) = (call.w(0), call.f(1));
    let ring = &mut call.f_mut(2)[control[RING] as usize * REPORT_FLOATS..][..2];
    let rows = &rows[..control[ROWS] as usize * ROW];
    for (k, out) in ring.iter_mut().enumerate() {
        let sum: F = rows.chunks_exact(ROW).map(|row| row[k]).sum();
        *out = if control[FIRST] == 1 { sum } else { *out + sum };
    }
}
