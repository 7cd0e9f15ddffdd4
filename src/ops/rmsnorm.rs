//! RMSNorm (Zhang & Sennrich 2019) with a frozen weight. Contract: `shaders/rmsnorm_direct.wgsl`; `rmsnorm_tiled.wgsl`
//! keeps the same one.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd::{self, simd};

params!(Params { n: u32, c: u32, eps: f32, accumulate: u32 });

kernel!(FORWARD, "rmsnorm", "forward", [Read, Read, Read, Write], Params, [Direct "rmsnorm_direct" [32, 1, 1], Tiled "rmsnorm_tiled" [1, 1, 1]], forward_twin);
kernel!(BACKWARD, "rmsnorm", "backward", [Read, Read, Read, ReadWrite], Params, [Direct "rmsnorm_direct" [32, 1, 1], Tiled "rmsnorm_tiled" [1, 1, 1]], backward_twin);

/// `y = x · rstd · w (+ residual)` by rows of C.
pub fn forward(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    eps: f32,
    x: Buf,
    w: Buf,
    residual: Option<Buf>,
    y: Buf,
) {
    let params = Params { n: n as u32, c: c as u32, eps, accumulate: residual.is_some() as u32 };
    // Where there is no residual w stands in for it, unread.
    plan.push(&FORWARD, params, &[x, w, residual.unwrap_or(w), y], [n as u32, 1, 1]).label = label.into();
}

/// `dx (+)= rstd · (w∘dy − x · rstd² · ⟨w∘dy, x⟩ / C)`.
pub fn backward(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    eps: f32,
    x: Buf,
    w: Buf,
    dy: Buf,
    dx: Buf,
    accumulate: bool,
) {
    let params = Params { n: n as u32, c: c as u32, eps, accumulate: accumulate as u32 };
    let step = plan.push(&BACKWARD, params, &[x, w, dy, dx], [n as u32, 1, 1]);
    step.label = label.into();
    if !accumulate {
        step.access[3] = Access::Write;
    }
}

fn rstd<F: Float>(x: &[F], eps: f32) -> F {
    let squares = simd::dot(x, x);
    F::ONE / (squares / F::of(x.len() as f64) + F::of32(eps)).sqrt()
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let (x, w, residual) = (call.f(0), call.f(1), call.f(2));
    par::rows(&mut call.f_mut(3)[..p.n as usize * c], c, 1, |row, y| {
        let x = &x[row * c..][..c];
        normed(y, x, w, rstd(x, p.eps));
        if p.accumulate == 1 {
            simd::add_scaled(y, &residual[row * c..][..c], F::ONE);
        }
    });
}

simd! {
    fn normed<F: Float>(y: &mut [F], x: &[F], w: &[F], rstd: F) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = *x * rstd * *w;
        }
    }
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let (x, w, dy) = (call.f(0), call.f(1), call.f(2));
    par::rows(&mut call.f_mut(3)[..p.n as usize * c], c, 1, |row, dx| {
        let (x, dy) = (&x[row * c..][..c], &dy[row * c..][..c]);
        let rstd = rstd(x, p.eps);
        if p.accumulate == 0 {
            dx.fill(F::ZERO);
        }
        let pull = rstd * rstd * simd::dot3(x, dy, w) / F::of(c as f64);
        add_gradient(dx, x, dy, w, rstd, pull);
    });
}

simd! {
    fn add_gradient<F: Float>(dx: &mut [F], x: &[F], dy: &[F], w: &[F], rstd: F, pull: F) {
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
            *dx += rstd * (*w * *dy - *x * pull);
        }
    }
}
