//! Sums over rows: the gradients of gains and biases. Contract: `shaders/column_sum.wgsl`.

use super::gain::Vector;
use super::matmul::ACCUMULATE as ADD;
use super::{kernel, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd::simd;

params!(Params { n: u32, c: u32, off: u32, flags: u32 });

/// `flags`, beside the product's `ACCUMULATE`.
const PRODUCT: u32 = 1;

kernel!(ACCUMULATE, "column_sum", "accumulate", [Read, Read, ReadWrite], Params, [Direct "column_sum" [64, 1, 1]], twin);

/// `out (+)= Σ_n p[n,:]∘q[n,:]`, or `Σ_n p[n,:]` without q; p, q:[N,C].
pub fn accumulate(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    p: Buf,
    q: Option<Buf>,
    out: Vector,
    onto: bool,
) {
    let flags = q.map_or(0, |_| PRODUCT) | (onto as u32 * ADD);
    let params = Params { n: n as u32, c: c as u32, off: out.off as u32, flags };
    let step = plan.push(&ACCUMULATE, params, &[p, q.unwrap_or(p), out.buf], [c as u32, 1, 1]);
    step.label = label.into();
    step.work *= n as u64;
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
    sums(out, &a[..n * c], &q[..n * c], product);
}

simd! {
    fn sums<F: Float>(out: &mut [F], a: &[F], q: &[F], product: bool) {
        let c = out.len();
        for (a, q) in a.chunks_exact(c).zip(q.chunks_exact(c)) {
            match product {
                true => out.iter_mut().zip(a).zip(q).for_each(|((s, a), q)| *s += *a * *q),
                false => out.iter_mut().zip(a).for_each(|(s, a)| *s += *a),
            }
        }
    }
}
