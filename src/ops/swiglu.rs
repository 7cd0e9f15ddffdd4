//! SwiGLU (Shazeer 2020): `y = silu(gate) ∘ up`. Contract: `shaders/swiglu.wgsl`.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd::simd;

params!(Params { len: u32, pad0: u32, pad1: u32, pad2: u32 });

kernel!(FORWARD, "swiglu", "forward", [Read, Read, Write], Params, [Direct "swiglu" [64, 1, 1]], forward_twin);
kernel!(BACKWARD, "swiglu", "backward", [Read, ReadWrite, ReadWrite], Params, [Direct "swiglu" [64, 1, 1]], backward_twin);

/// Elements a task of the twins covers.
const CHUNK: usize = 512;

pub fn forward(plan: &mut Plan, label: &str, len: usize, gate: Buf, up: Buf, y: Buf) {
    let params = Params { len: len as u32, ..Default::default() };
    plan.push(&FORWARD, params, &[gate, up, y], [len as u32 / 4, 1, 1]).label = label.into();
}

/// Turns gate and up, in place, into dgate and dup.
pub fn backward(plan: &mut Plan, label: &str, len: usize, dy: Buf, gate: Buf, up: Buf) {
    let params = Params { len: len as u32, ..Default::default() };
    plan.push(&BACKWARD, params, &[dy, gate, up], [len as u32 / 4, 1, 1]).label = label.into();
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (gate, up) = (call.f(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..p.len as usize], CHUNK, 8, |k, y| {
        silu_times(y, &gate[k * CHUNK..], &up[k * CHUNK..]);
    });
}

simd! {
    fn silu_times<F: Float>(y: &mut [F], gate: &[F], up: &[F]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *g / (F::ONE + (-*g).exp()) * *u;
        }
    }
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let len = p.len as usize;
    let dy = call.f(0);
    let (gate, up) = (call.f_mut(1), call.f_mut(2));
    par::rows2(&mut gate[..len], CHUNK, &mut up[..len], CHUNK, 8, |k, gate, up| {
        silu_gradient(gate, up, &dy[k * CHUNK..]);
    });
}

simd! {
    fn silu_gradient<F: Float>(gate: &mut [F], up: &mut [F], dy: &[F]) {
        for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
            let sigmoid = F::ONE / (F::ONE + (-*g).exp());
            let silu = *g * sigmoid;
            let dgate = *dy * *u * sigmoid * (F::ONE + *g * (F::ONE - sigmoid));
            (*g, *u) = (dgate, *dy * silu);
        }
    }
}
