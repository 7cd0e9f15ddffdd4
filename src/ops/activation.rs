//! The MLP's activation, with a gate (SwiGLU and GeGLU, Shazeer 2020: `y = f(gate) ∘ up`) or without (`y = f(x)`).
//! Contract: `shaders/activation.wgsl`.
//!
//! SiLU and the tanh form of GELU are one function, `f(x) = x·σ(a·(x + b·x³))`, because (1 + tanh z) / 2 = σ(2z).

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd::simd;

params!(Params { len: u32, a: f32, b: f32, pad: u32 });

kernel!(FORWARD, "activation", "forward", [Read, Read, Write], Params, [Direct "activation" [64, 1, 1]], forward_twin);
kernel!(BACKWARD, "activation", "backward", [Read, ReadWrite, ReadWrite], Params, [Direct "activation" [64, 1, 1]], backward_twin);
kernel!(FORWARD_PLAIN, "activation", "forward_plain", [Read, Write], Params, [Direct "activation" [64, 1, 1]], forward_plain_twin);
kernel!(BACKWARD_PLAIN, "activation", "backward_plain", [Read, ReadWrite], Params, [Direct "activation" [64, 1, 1]], backward_plain_twin);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
}

impl Activation {
    fn params(self, len: usize) -> Params {
        let (a, b) = match self {
            Activation::Silu => (1.0, 0.0),
            Activation::GeluTanh => (2.0 * (2.0 / std::f64::consts::PI).sqrt(), 0.044715),
        };
        Params { len: len as u32, a: a as f32, b: b as f32, pad: 0 }
    }
}

/// Elements a task of the twins covers.
const CHUNK: usize = 512;

/// `y = f(gate) ∘ up`, or `f(gate)` where nothing is gated.
pub fn forward(plan: &mut Plan, label: &str, f: Activation, len: usize, gate: Buf, up: Option<Buf>, y: Buf) {
    let (params, grid) = (f.params(len), [len as u32 / 4, 1, 1]);
    let step = match up {
        Some(up) => plan.push(&FORWARD, params, &[gate, up, y], grid),
        None => plan.push(&FORWARD_PLAIN, params, &[gate, y], grid),
    };
    step.label = label.into();
}

/// Turns gate and up, in place, into dgate and dup.
pub fn backward(plan: &mut Plan, label: &str, f: Activation, len: usize, dy: Buf, gate: Buf, up: Option<Buf>) {
    let (params, grid) = (f.params(len), [len as u32 / 4, 1, 1]);
    let step = match up {
        Some(up) => plan.push(&BACKWARD, params, &[dy, gate, up], grid),
        None => plan.push(&BACKWARD_PLAIN, params, &[dy, gate], grid),
    };
    step.label = label.into();
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
    let (a, b) = (F::of32(p.a), F::of32(p.b));
    let (gate, up) = (call.f(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..p.len as usize], CHUNK, 8, |k, y| {
        gated(y, &gate[k * CHUNK..], &up[k * CHUNK..], a, b);
    });
}

simd! {
    fn gated<F: Float>(y: &mut [F], gate: &[F], up: &[F], a: F, b: F) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *g * sigmoid(*g, a, b) * *u;
        }
    }
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (len, a, b) = (p.len as usize, F::of32(p.a), F::of32(p.b));
    let dy = call.f(0);
    let (gate, up) = (call.f_mut(1), call.f_mut(2));
    par::rows2(&mut gate[..len], CHUNK, &mut up[..len], CHUNK, 8, |k, gate, up| {
        gated_gradient(gate, up, &dy[k * CHUNK..], a, b);
    });
}

simd! {
    fn gated_gradient<F: Float>(gate: &mut [F], up: &mut [F], dy: &[F], a: F, b: F) {
        for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
            let s = sigmoid(*g, a, b);
            let dgate = *dy * *u * slope(*g, s, a, b);
            (*g, *u) = (dgate, *dy * *g * s);
        }
    }
}

fn forward_plain_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (a, b) = (F::of32(p.a), F::of32(p.b));
    let gate = call.f(0);
    par::rows(&mut call.f_mut(1)[..p.len as usize], CHUNK, 8, |k, y| plain(y, &gate[k * CHUNK..], a, b));
}

simd! {
    fn plain<F: Float>(y: &mut [F], x: &[F], a: F, b: F) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * sigmoid(*x, a, b));
    }
}

fn backward_plain_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (a, b) = (F::of32(p.a), F::of32(p.b));
    let dy = call.f(0);
    par::rows(&mut call.f_mut(1)[..p.len as usize], CHUNK, 8, |k, x| plain_gradient(x, &dy[k * CHUNK..], a, b));
}

simd! {
    fn plain_gradient<F: Float>(x: &mut [F], dy: &[F], a: F, b: F) {
        for (x, dy) in x.iter_mut().zip(dy) {
            *x = *dy * slope(*x, sigmoid(*x, a, b), a, b);
        }
    }
}
