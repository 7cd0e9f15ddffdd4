//! LayerNorm (Ba et al. 2016) with a frozen weight and bias. Contract: `shaders/layernorm.wgsl`.

use super::rmsnorm::{ADD, NORMED};
use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd::{self, simd};

params!(Params { n: u32, c: u32, eps: f32, flags: u32 });

kernel!(FORWARD, "layernorm", "forward", [Read, Read, Read, Write], Params, [Direct "layernorm" [1, 1, 1]], forward_twin);
kernel!(BACKWARD, "layernorm", "backward", [Read, Read, Read, ReadWrite, ReadWrite], Params, [Direct "layernorm" [1, 1, 1]], backward_twin);

/// `y = (x − mean)·rstd·w + b` by rows of C.
pub fn forward(plan: &mut Plan, label: &str, (n, c): (usize, usize), eps: f32, x: Buf, w: Buf, b: Buf, y: Buf) {
    let params = Params { n: n as u32, c: c as u32, eps, flags: 0 };
    let step = plan.push(&FORWARD, params, &[x, w, b, y], [n as u32, 1, 1]);
    step.touch(1, c).touch(2, c).label = label.into();
}

/// `dx (+)= rstd·(g − mean g − x̂·mean(g∘x̂))` for g = w∘dy and x̂ = (x − mean)·rstd; where `normed`, dy is
/// turned into forward's output.
pub fn backward(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    eps: f32,
    x: Buf,
    w: Buf,
    b: Buf,
    dy: Buf,
    dx: Buf,
    accumulate: bool,
    normed: bool,
) {
    let flags = accumulate as u32 * ADD + normed as u32 * NORMED;
    let params = Params { n: n as u32, c: c as u32, eps, flags };
    let step = plan.push(&BACKWARD, params, &[x, w, b, dy, dx], [n as u32, 1, 1]);
    step.touch(1, c).touch(2, c).label = label.into();
    if !accumulate {
        step.access[4] = Access::Write;
    }
}

fn mean<F: Float>(x: &[F]) -> F {
    simd::sum(x) / F::of(x.len() as f64)
}

/// The row's (x − mean)·rstd, and rstd.
fn normed<F: Float>(x: &[F], eps: f32, out: &mut [F]) -> F {
    shifted(out, x, mean(x));
    let rstd = F::ONE / (simd::dot(out, out) / F::of(x.len() as f64) + F::of32(eps)).sqrt();
    simd::scale(out, rstd);
    rstd
}

simd! {
    fn shifted<F: Float>(out: &mut [F], x: &[F], mean: F) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = *x - mean);
    }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let (x, w, b) = (call.f(0), call.f(1), call.f(2));
    par::rows(&mut call.f_mut(3)[..p.n as usize * c], c, 1, |row, y| {
        normed(&x[row * c..][..c], p.eps, y);
        affine(y, w, b);
    });
}

simd! {
    fn affine<F: Float>(y: &mut [F], w: &[F], b: &[F]) {
        for ((y, w), b) in y.iter_mut().zip(w).zip(b) {
            *y = *y * *w + *b;
        }
    }
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, c) = (p.n as usize, p.c as usize);
    let (x, w, b, scratch) = (call.f(0), &call.f(1)[..c], call.f(2), call.scratch);
    let (dy, dx) = (call.f_mut(3), call.f_mut(4));
    par::rows2(&mut dy[..n * c], c, &mut dx[..n * c], c, 1, |row, dy, dx| {
        if p.flags & ADD == 0 {
            dx.fill(F::ZERO);
        }
        scratch.with(c, |hat| {
            let rstd = normed(&x[row * c..][..c], p.eps, hat);
            let along = simd::dot3(hat, dy, w) / F::of(c as f64);
            let mean = simd::dot(dy, w) / F::of(c as f64);
            add_gradient(dx, hat, dy, w, rstd, mean, along);
            if p.flags & NORMED != 0 {
                dy.copy_from_slice(hat);
                affine(dy, w, b);
            }
        });
    });
}

simd! {
    fn add_gradient<F: Float>(dx: &mut [F], hat: &[F], dy: &[F], w: &[F], rstd: F, mean: F, along: F) {
        for (((dx, hat), dy), w) in dx.iter_mut().zip(hat).zip(dy).zip(w) {
            *dx += rstd * (*w * *dy - mean - *hat * along);
        }
    }
}
