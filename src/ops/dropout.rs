//! Dropout on the input of LoRA's A (Srivastava et al. 2014), from a counter: the mask of an element is a hash of
//! (seed of the micro-batch, site, index), so forward, backward and a resumed run agree without storing it.
//! Contract: `shaders/dropout.wgsl`.

use super::control::SEED;
use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};

params!(Params { len: u32, site: u32, p: f32, pad: u32 });

kernel!(FORWARD, "dropout", "forward", [Read, Read, Write], Params, [Direct "dropout" [64, 1, 1]], forward_twin);
kernel!(BACKWARD, "dropout", "backward", [Read, Read, ReadWrite], Params, [Direct "dropout" [64, 1, 1]], backward_twin);

const CHUNK: usize = 512;

/// `y = x ∘ mask / (1 − p)`.
pub fn forward(plan: &mut Plan, label: &str, len: usize, site: u32, p: f32, control: Buf, x: Buf, y: Buf) {
    let params = Params { len: len as u32, site, p, pad: 0 };
    plan.push(&FORWARD, params, &[control, x, y], [len as u32, 1, 1]).label = label.into();
}

/// `dx += dy ∘ mask / (1 − p)`.
pub fn backward(plan: &mut Plan, label: &str, len: usize, site: u32, p: f32, control: Buf, dy: Buf, dx: Buf) {
    let params = Params { len: len as u32, site, p, pad: 0 };
    plan.push(&BACKWARD, params, &[control, dy, dx], [len as u32, 1, 1]).label = label.into();
}

/// The pcg-rxs-m-xs 32-bit mix (O'Neill 2014), as in the shader.
pub fn hash(x: u32) -> u32 {
    let s = x.wrapping_mul(747796405).wrapping_add(2891336453);
    let w = ((s >> ((s >> 28) + 4)) ^ s).wrapping_mul(277803737);
    (w >> 22) ^ w
}

/// The factor of element `index`: 0 or 1/(1 − p).
fn factor<F: Float>(p: &Params, seed: u32, index: u32) -> F {
    let uniform = (hash(hash(seed ^ p.site.wrapping_mul(0x9e37_79b9)) ^ index) >> 8) as f32 / 16777216.0;
    if uniform < p.p { F::ZERO } else { F::ONE / (F::ONE - F::of32(p.p)) }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (seed, x) = (call.w(0)[SEED], call.f(1));
    par::rows(&mut call.f_mut(2)[..p.len as usize], CHUNK, 4, |k, y| {
        for (i, y) in y.iter_mut().enumerate() {
            *y = x[k * CHUNK + i] * factor(&p, seed, (k * CHUNK + i) as u32);
        }
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (seed, dy) = (call.w(0)[SEED], call.f(1));
    par::rows(&mut call.f_mut(2)[..p.len as usize], CHUNK, 4, |k, dx| {
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx += dy[k * CHUNK + i] * factor(&p, seed, (k * CHUNK + i) as u32);
        }
    });
}
