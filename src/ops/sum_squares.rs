//! The global gradient norm and the clip factor, in two stages; stops the run where a number is not finite.
//! Contract: `shaders/sum_squares.wgsl`.

use super::control::{REPORT, RING};
use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd;

params!(Params { len: u32, partials: u32, max_norm: f32, pad: u32 });

kernel!(PARTIAL, "sum_squares", "partial", [Read, Write], Params, [Direct "sum_squares" [1, 1, 1]], partial_twin);
kernel!(FINISH, "sum_squares", "finish", [Read, Read, ReadWrite, ReadWrite], Params, [Direct "sum_squares" [1, 1, 1]], finish_twin);

/// Elements one partial sum covers.
pub const CHUNK: usize = 4096;

/// Writes norm and applied into the report ring, and `clip`:[2] = (factor, halted). `halted` stays 1 once set: from
/// the first non-finite loss or norm on, the factor is 0 and AdamW leaves the last good state alone.
pub fn norm_and_clip(plan: &mut Plan, len: usize, max_norm: f32, grads: Buf, control: Buf, ring: Buf, clip: Buf) {
    let partials = len.div_ceil(CHUNK);
    let params = Params { len: len as u32, partials: partials as u32, max_norm, pad: 0 };
    let partial = plan.temp("partial sums of squares", partials);
    plan.push(&PARTIAL, params, &[grads, partial], [partials as u32, 1, 1]);
    plan.push(&FINISH, params, &[control, partial, ring, clip], [1, 1, 1]);
}

fn partial_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let grads = &call.f(0)[..p.len as usize];
    par::rows(&mut call.f_mut(1)[..p.partials as usize], 1, CHUNK, |i, out| {
        let chunk = &grads[i * CHUNK..grads.len().min((i + 1) * CHUNK)];
        out[0] = simd::dot(chunk, chunk);
    });
}

fn finish_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (control, partial) = (call.w(0), call.f(1));
    let (ring, clip) = (call.f_mut(2), call.f_mut(3));
    let report = &mut ring[control[RING] as usize * REPORT..][..REPORT];
    let norm = partial[..p.partials as usize].iter().copied().sum::<F>().sqrt();
    if !(norm.finite() && report[0].finite()) {
        clip[1] = F::ONE;
    }
    let halted = clip[1] == F::ONE;
    let factor = F::of32(p.max_norm) / (norm + F::of(1e-6));
    clip[0] = match () {
        _ if halted => F::ZERO,
        _ if p.max_norm > 0.0 && factor < F::ONE => factor,
        _ => F::ONE,
    };
    report[2] = norm;
    report[3] = if halted { F::ZERO } else { F::ONE };
}
