//! The MLP's activation, with a gate (SwiGLU and GeGLU, Shazeer 2020: `y = f(gate) ∘ up`) or without (`y = f(x)`).
//! Contract: `shaders/activation.wgsl`.
//!
//! SiLU and the tanh form of GELU are one function, `f(x) = x·σ(a·(x + b·x³))`, because (1 + tanh z) / 2 = σ(2z).

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd::simd;

params!(Params { n: u32, f: u32, gated: u32, a: f32, b: f32 });

kernel!(FORWARD, "activation", "forward", [Read, Write], Params, [Direct "activation" [64, 1, 1]], forward_twin);
kernel!(BACKWARD, "activation", "backward", [ReadWrite, ReadWrite], Params, [Direct "activation" [64, 1, 1]], backward_twin);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
}

impl Activation {
    fn params(self, (n, f): (usize, usize), gated: bool) -> Params {
        let (a, b) = match self {
            Activation::Silu => (1.0, 0.0),
            Activation::GeluTanh => (2.0 * (2.0 / std::f64::consts::PI).sqrt(), 0.044715),
        };
        Params { n: n as u32, f: f as u32, gated: gated as u32, a: a as f32, b: b as f32 }
    }
}

/// `y = f(gate) ∘ up` for x:[N, gate | up], or `f(x)` where nothing is gated; y:[N,F].
pub fn forward(plan: &mut Plan, label: &str, f: Activation, size: (usize, usize), gated: bool, x: Buf, y: Buf) {
    let grid = [(size.0 * size.1 / 4) as u32, 1, 1];
    plan.push(&FORWARD, f.params(size, gated), &[x, y], grid).label = label.into();
}

/// Turns x, in place, into its gradient, and dy into y: whoever comes after needs forward's output again, not dy.
pub fn backward(plan: &mut Plan, label: &str, f: Activation, size: (usize, usize), gated: bool, dy: Buf, x: Buf) {
    let grid = [(size.0 * size.1 / 4) as u32, 1, 1];
    plan.push(&BACKWARD, f.params(size, gated), &[dy, x], grid).label = label.into();
}

#[inline(always)]
fn sigmoid<F: Float>(x: F, a: F, b: F) -> F {
    F::ONE / (F::ONE + (-a * (x + b * x * x * x)).exp())
}

#[inline(always)]
fn slope<F: Float>(x: F, s: F, a: F, b: F) -> F {
    s + x * s * (F::ONE - s) * a * (F::ONE + F::of(3.0) * b * x * x)
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (f, a, b) = (p.f as usize, F::of32(p.a), F::of32(p.b));
    let (x, ld) = (call.f(0), f << p.gated);
    par::rows(&mut call.f_mut(1)[..p.n as usize * f], f, 8, |row, y| {
        let (gate, up) = x[row * ld..][..ld].split_at(f);
        if p.gated == 1 { gated(y, gate, up, a, b) } else { plain(y, gate, a, b) }
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, f, a, b) = (p.n as usize, p.f as usize, F::of32(p.a), F::of32(p.b));
    let (dy, x, ld) = (call.f_mut(0), call.f_mut(1), f << p.gated);
    par::rows2(&mut dy[..n * f], f, &mut x[..n * ld], ld, 8, |_, dy, x| {
        let (gate, up) = x.split_at_mut(f);
        if p.gated == 1 { gated_gradient(gate, up, dy, a, b) } else { plain_gradient(gate, dy, a, b) }
    });
}

simd! {
    fn gated<F: Float>(y: &mut [F], gate: &[F], up: &[F], a: F, b: F) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *g * sigmoid(*g, a, b) * *u;
        }
    }
}

simd! {
    fn gated_gradient<F: Float>(gate: &mut [F], up: &mut [F], dy: &mut [F], a: F, b: F) {
        for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
            let s = sigmoid(*g, a, b);
            let (dgate, dup, y) = (*dy * *u * slope(*g, s, a, b), *dy * *g * s, *g * s * *u);
            (*g, *u, *dy) = (dgate, dup, y);
        }
    }
}

simd! {
    fn plain<F: Float>(y: &mut [F], x: &[F], a: F, b: F) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * sigmoid(*x, a, b));
    }
}

simd! {
    fn plain_gradient<F: Float>(x: &mut [F], dy: &mut [F], a: F, b: F) {
        for (x, dy) in x.iter_mut().zip(dy) {
            let s = sigmoid(*x, a, b);
            (*x, *dy) = (*dy * slope(*x, s, a, b), *x * s);
        }
    }
}
