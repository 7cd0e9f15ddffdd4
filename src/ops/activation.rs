//! The MLP's activation, with a gate (SwiGLU and GeGLU, Shazeer 2020: `y = f(gate) ∘ up`) or without (`y = f(x)`).
//! Contract: `shaders/activation.wgsl`.
//!
//! SiLU and the tanh form of GELU are one function, `f(x) = x·σ(a·(x + b·x³))`, because (1 + tanh z) / 2 = σ(2z).
//!
//! The input is the widest thing that a block keeps from forward to backward. It may be kept as bf16, in half the room:
//! y is computed from what was not rounded, so that the loss is what it was; gradients follow from gate and up rounded
//! to 2⁻⁹.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd::simd;
use half::bf16;

params!(Params { n: u32, f: u32, gated: u32, a: f32, b: f32 });

kernel!(FORWARD, "activation", "forward", [Read, Write], Params, [Direct "activation" [64, 1, 1]], forward_twin);
kernel!(FORWARD_PACKING, "activation", "forward_packing", [Read, Write, Write], Params,
    [Direct "activation" [64, 1, 1]], forward_packing_twin);
kernel!(BACKWARD, "activation", "backward", [ReadWrite, ReadWrite], Params, [Direct "activation" [64, 1, 1]], backward_twin);
kernel!(BACKWARD_PACKED, "activation", "backward_packed", [ReadWrite, Write, Read], Params,
    [Direct "activation" [64, 1, 1]], backward_packed_twin);

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

/// One item for four columns of y.
fn grid((n, f): (usize, usize)) -> [u32; 3] {
    [(n * f / 4) as u32, 1, 1]
}

/// `y = f(gate) ∘ up` for x:[N, gate | up], or `f(x)` where nothing is gated; y:[N,F].
pub fn forward(plan: &mut Plan, label: &str, f: Activation, size: (usize, usize), gated: bool, x: Buf, y: Buf) {
    plan.push(&FORWARD, f.params(size, gated), &[x, y], grid(size)).label = label.into();
}

/// [`forward`], which also leaves x as bf16 for [`backward_packed`], in [`packed_words`].
pub fn forward_packing(
    plan: &mut Plan,
    label: &str,
    f: Activation,
    size: (usize, usize),
    gated: bool,
    x: Buf,
    y: Buf,
    packed: Buf,
) {
    plan.push(&FORWARD_PACKING, f.params(size, gated), &[x, y, packed], grid(size)).label = label.into();
}

/// Words that x takes as bf16.
pub fn packed_words((n, f): (usize, usize), gated: bool) -> usize {
    ((n * f) << gated as usize) / 2
}

/// Turns x, in place, into its gradient, and dy into y: whoever comes after needs forward's output again, not dy.
pub fn backward(plan: &mut Plan, label: &str, f: Activation, size: (usize, usize), gated: bool, dy: Buf, x: Buf) {
    plan.push(&BACKWARD, f.params(size, gated), &[dy, x], grid(size)).label = label.into();
}

/// [`backward`] where x was packed; its gradient goes to dx.
pub fn backward_packed(
    plan: &mut Plan,
    label: &str,
    f: Activation,
    size: (usize, usize),
    gated: bool,
    dy: Buf,
    packed: Buf,
    dx: Buf,
) {
    plan.push(&BACKWARD_PACKED, f.params(size, gated), &[dy, dx, packed], grid(size)).label = label.into();
}

#[inline(always)]
fn sigmoid<F: Float>(x: F, a: F, b: F) -> F {
    F::ONE / (F::ONE + (-a * (x + b * x * x * x)).exp())
}

#[inline(always)]
fn slope<F: Float>(x: F, s: F, a: F, b: F) -> F {
    s + x * s * (F::ONE - s) * a * (F::ONE + F::of(3.0) * b * x * x)
}

/// A row of y.
fn activate<F: Float>(p: &Params, y: &mut [F], x: &[F]) {
    let (a, b, (gate, up)) = (F::of32(p.a), F::of32(p.b), x.split_at(p.f as usize));
    if p.gated == 1 { gated(y, gate, up, a, b) } else { plain(y, gate, a, b) }
}

/// A row of x becomes its gradient, one of dy becomes y.
fn gradient<F: Float>(p: &Params, dy: &mut [F], x: &mut [F]) {
    let (a, b, (gate, up)) = (F::of32(p.a), F::of32(p.b), x.split_at_mut(p.f as usize));
    if p.gated == 1 { gated_gradient(gate, up, dy, a, b) } else { plain_gradient(gate, dy, a, b) }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (x, f, ld) = (call.f(0), p.f as usize, (p.f << p.gated) as usize);
    par::rows(&mut call.f_mut(1)[..p.n as usize * f], f, 8, |row, y| activate(&p, y, &x[row * ld..][..ld]));
}

fn forward_packing_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (x, n, f, ld) = (call.f(0), p.n as usize, p.f as usize, (p.f << p.gated) as usize);
    let (y, packed) = (call.f_mut(1), call.w_mut(2));
    par::rows2(&mut y[..n * f], f, &mut packed[..n * ld / 2], ld / 2, 8, |row, y, packed| {
        let x = &x[row * ld..][..ld];
        activate(&p, y, x);
        pack(packed, x);
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, f, ld) = (p.n as usize, p.f as usize, (p.f << p.gated) as usize);
    let (dy, x) = (call.f_mut(0), call.f_mut(1));
    par::rows2(&mut dy[..n * f], f, &mut x[..n * ld], ld, 8, |_, dy, x| gradient(&p, dy, x));
}

fn backward_packed_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, f, ld) = (p.n as usize, p.f as usize, (p.f << p.gated) as usize);
    let (dy, dx, packed) = (call.f_mut(0), call.f_mut(1), call.w(2));
    par::rows2(&mut dy[..n * f], f, &mut dx[..n * ld], ld, 8, |row, dy, x| {
        unpack(x, &packed[row * ld / 2..][..ld / 2]);
        gradient(&p, dy, x);
    });
}

simd! {
    fn pack<F: Float>(words: &mut [u32], x: &[F]) {
        let bits = |x: F| bf16::from_f32(x.to32()).to_bits() as u32;
        words.iter_mut().zip(x.chunks_exact(2)).for_each(|(word, x)| *word = bits(x[0]) | bits(x[1]) << 16);
    }
}

simd! {
    fn unpack<F: Float>(x: &mut [F], words: &[u32]) {
        for (x, word) in x.chunks_exact_mut(2).zip(words) {
            (x[0], x[1]) = (F::of32(f32::from_bits(word << 16)), F::of32(f32::from_bits(word & 0xffff_0000)));
        }
    }
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
