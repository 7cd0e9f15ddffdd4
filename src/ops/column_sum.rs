//! Sums over rows: the gradients of gains and biases. Contract: `shaders/column_sum.wgsl`.

use super::gain::Vector;
use super::matmul::ACCUMULATE as ADD;
use super::{Columns, Heads, kernel, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd::simd;

params!(Params { n: u32, c: u32, off: u32, flags: u32, heads: u32, ld: u32, col: u32, q_ld: u32, q_col: u32 });

/// `flags`, beside the product's `ACCUMULATE`.
const PRODUCT: u32 = 1;

kernel!(ACCUMULATE, "column_sum", "accumulate", [Read, Read, ReadWrite], Params, [Direct "column_sum" [64, 1, 1]], twin);

/// `out (+)= Σ_n p[n,:]∘q[n,:]`, or `Σ_n p[n,:]` without q; p, q:[N,C], or C columns of wider rows.
pub fn accumulate(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    p: impl Into<Columns>,
    q: Option<Columns>,
    out: Vector,
    onto: bool,
) {
    push(plan, label, (n, 1, c), p.into(), q, out, onto);
}

/// [`accumulate`] over all heads that lie side by side in a row of p and in one of q.
pub fn heads(plan: &mut Plan, label: &str, at: Heads, c: usize, p: Buf, q: Option<Buf>, out: Vector) {
    let within = |buf| Columns { buf, ld: at.ld, col: at.col };
    push(plan, label, (at.n, at.heads, c), within(p), q.map(within), out, true);
}

fn push(
    plan: &mut Plan,
    label: &str,
    (n, heads, c): (usize, usize, usize),
    p: Columns,
    q: Option<Columns>,
    out: Vector,
    onto: bool,
) {
    let flags = q.map_or(0, |_| PRODUCT) | (onto as u32 * ADD);
    let ([ld, col], [q_ld, q_col]) = (p.place(c), q.unwrap_or(p).place(c));
    let (n, heads, c, off) = (n as u32, heads as u32, c as u32, out.off as u32);
    let params = Params { n, c, off, flags, heads, ld, col, q_ld, q_col };
    let step = plan.push(&ACCUMULATE, params, &[p.buf, q.unwrap_or(p).buf, out.buf], [c, 1, 1]);
    let elements = (n * heads * c) as usize;
    step.touch(0, elements).touch(1, if q.is_some() { elements } else { 0 }).touch(2, c as usize).label = label.into();
    step.work *= (n * heads) as u64;
    if !onto {
        step.access[2] = Access::Write;
    }
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, c, off) = (p.n as usize, p.c as usize, p.off as usize);
    let (a, q) = (call.f(0), call.f(1));
    let out = &mut call.f_mut(2)[off..off + c];
    if p.flags & ADD == 0 {
        out.fill(F::ZERO);
    }
    let product = p.flags & PRODUCT != 0;
    for row in 0..n {
        for head in 0..p.heads as usize {
            let a = &a[row * p.ld as usize + p.col as usize + head * c..][..c];
            let q = &q[row * p.q_ld as usize + p.q_col as usize + head * c..][..c];
            add(out, a, q, product);
        }
    }
}

simd! {
    fn add<F: Float>(out: &mut [F], a: &[F], q: &[F], product: bool) {
        match product {
            true => out.iter_mut().zip(a).zip(q).for_each(|((s, a), q)| *s += *a * *q),
            false => out.iter_mut().zip(a).for_each(|(s, a)| *s += *a),
        }
    }
}
