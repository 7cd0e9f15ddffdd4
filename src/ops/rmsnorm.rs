//! RMSNorm (Zhang & Sennrich 2019) with a frozen weight. Contract: `shaders/parts/rmsnorm.wgsl`.

use super::{Heads, kernel, par, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd::{self, simd};

params!(Params { n: u32, c: u32, eps: f32, flags: u32, heads: u32, ld: u32, col: u32 });

/// `flags`: forward adds the residual, backward to dx.
pub const ADD: u32 = 1;
/// Backward leaves forward's output in place of dy.
pub const NORMED: u32 = 2;

kernel!(FORWARD, "rmsnorm", "forward", [Read, Read, Read, Write], Params, [Direct "rmsnorm_direct" [32, 1, 1], Tiled "rmsnorm_tiled" [1, 1, 1]], forward_twin);
kernel!(BACKWARD, "rmsnorm", "backward", [Read, Read, ReadWrite, ReadWrite], Params, [Direct "rmsnorm_direct" [32, 1, 1], Tiled "rmsnorm_tiled" [1, 1, 1]], backward_twin);
kernel!(IN_PLACE, "rmsnorm", "backward_in_place", [Read, Read, ReadWrite], Params, [Direct "rmsnorm_direct" [32, 1, 1], Tiled "rmsnorm_tiled" [1, 1, 1]], in_place_twin);

fn params(at: Heads, c: usize, eps: f32, flags: u32) -> Params {
    let rows = (at.n * at.heads) as u32;
    Params { n: rows, c: c as u32, eps, flags, heads: at.heads as u32, ld: at.ld as u32, col: at.col as u32 }
}

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
    let params = params(Heads::rows(n, c), c, eps, residual.map_or(0, |_| ADD));
    // Where there is no residual w stands in for it, unread.
    let step = plan.push(&FORWARD, params, &[x, w, residual.unwrap_or(w), y], [n as u32, 1, 1]);
    step.touch(1, c).touch(2, if residual.is_some() { n * c } else { 0 }).label = label.into();
}

/// The same for heads within wider rows, which lie alike in x and y.
pub fn forward_heads(plan: &mut Plan, label: &str, at: Heads, c: usize, eps: f32, x: Buf, w: Buf, y: Buf) {
    let params = params(at, c, eps, 0);
    let (step, elements) = (plan.push(&FORWARD, params, &[x, w, w, y], [params.n, 1, 1]), params.n as usize * c);
    step.touch(0, elements).touch(1, c).touch(2, 0).touch(3, elements).label = label.into();
}

/// `dx (+)= rstd · (w∘dy − x · rstd² · ⟨w∘dy, x⟩ / C)`; where `normed`, dy is turned into forward's output.
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
    normed: bool,
) {
    let params = params(Heads::rows(n, c), c, eps, accumulate as u32 * ADD + normed as u32 * NORMED);
    let step = plan.push(&BACKWARD, params, &[x, w, dy, dx], [n as u32, 1, 1]);
    step.touch(1, c).label = label.into();
    if !accumulate {
        step.access[3] = Access::Write;
    }
}

/// Turns dy into dx for heads within wider rows, which lie alike in x and dy.
pub fn backward_heads(plan: &mut Plan, label: &str, at: Heads, c: usize, eps: f32, x: Buf, w: Buf, dy: Buf) {
    let params = params(at, c, eps, 0);
    let (step, elements) = (plan.push(&IN_PLACE, params, &[x, w, dy], [params.n, 1, 1]), params.n as usize * c);
    step.touch(0, elements).touch(1, c).touch(2, elements).label = label.into();
}

/// Where the heads of a wider row lie in it.
fn pieces(p: &Params) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let (c, col) = (p.c as usize, p.col as usize);
    (0..p.heads as usize).map(move |head| col + head * c..col + (head + 1) * c)
}

/// Floats of the buffers that heads lie in, up to the last head's end.
fn extent(p: &Params) -> usize {
    let (rows, ld) = ((p.n / p.heads) as usize, p.ld as usize);
    (rows - 1) * ld + (p.col + p.heads * p.c) as usize
}

fn rstd<F: Float>(x: &[F], eps: f32) -> F {
    let squares = simd::dot(x, x);
    F::ONE / (squares / F::of(x.len() as f64) + F::of32(eps)).sqrt()
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let ld = p.ld as usize;
    let (x, w, residual) = (call.f(0), call.f(1), call.f(2));
    par::rows(&mut call.f_mut(3)[..extent(&p)], ld, 1, |row, y| {
        for at in pieces(&p) {
            let (x, y) = (&x[row * ld..][at.clone()], &mut y[at.clone()]);
            normed(y, x, w, rstd(x, p.eps));
            if p.flags & ADD != 0 {
                simd::add_scaled(y, &residual[row * ld..][at], F::ONE);
            }
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
    let (n, c) = (p.n as usize, p.c as usize);
    let (x, w, dy, dx) = (call.f(0), call.f(1), call.f_mut(2), call.f_mut(3));
    par::rows2(&mut dy[..n * c], c, &mut dx[..n * c], c, 1, |row, dy, dx| {
        let x = &x[row * c..][..c];
        let (rstd, pull) = slopes(x, dy, w, p.eps);
        if p.flags & ADD == 0 {
            dx.fill(F::ZERO);
        }
        add_gradient(dx, x, dy, w, rstd, pull);
        if p.flags & NORMED != 0 {
            normed(dy, x, w, rstd);
        }
    });
}

fn in_place_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let ld = p.ld as usize;
    let (x, w) = (call.f(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..extent(&p)], ld, 2, |row, dy| {
        for at in pieces(&p) {
            let (x, dy) = (&x[row * ld..][at.clone()], &mut dy[at]);
            let (rstd, pull) = slopes(x, dy, w, p.eps);
            to_gradient(dy, x, w, rstd, pull);
        }
    });
}

/// rstd, and how much of x the gradient loses.
fn slopes<F: Float>(x: &[F], dy: &[F], w: &[F], eps: f32) -> (F, F) {
    let rstd = rstd(x, eps);
    (rstd, rstd * rstd * simd::dot3(x, dy, w) / F::of(x.len() as f64))
}

simd! {
    fn add_gradient<F: Float>(dx: &mut [F], x: &[F], dy: &[F], w: &[F], rstd: F, pull: F) {
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
            *dx += rstd * (*w * *dy - *x * pull);
        }
    }
}

simd! {
    fn to_gradient<F: Float>(dy: &mut [F], x: &[F], w: &[F], rstd: F, pull: F) {
        for ((dy, x), w) in dy.iter_mut().zip(x).zip(w) {
            *dy = rstd * (*w * *dy - *x * pull);
        }
    }
}
