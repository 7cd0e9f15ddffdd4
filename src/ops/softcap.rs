//! Soft cap of the final logits (Gemma 2), in place. Contract: `shaders/softcap.wgsl`.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd;

params!(Params { len: u32, cap: f32, pad0: u32, pad1: u32 });

kernel!(FORWARD, "softcap", "forward", [ReadWrite], Params, [Direct "softcap" [64, 1, 1]], forward_twin);

/// `z = cap·tanh(z/cap)`
pub fn forward(plan: &mut Plan, label: &str, len: usize, cap: f32, z: Buf) {
    let params = Params { len: len as u32, cap, ..Default::default() };
    plan.push(&FORWARD, params, &[z], [len as u32, 1, 1]).label = label.into();
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let cap = F::of32(p.cap);
    par::rows(&mut call.f_mut(0)[..p.len as usize], 512, 8, |_, z| simd::soft_cap(z, cap));
}
