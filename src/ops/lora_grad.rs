//! The gradient of a low-rank factor: `out[R, W] += scale · pᵀ[R, N] · q[N, W]`, straight into the flat gradient buffer.
//! dA = duᵀ·x and dBᵀ = s·uᵀ·dz are both of this form, since B is stored transposed.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};

params!(Params {
    n: u32,
    r: u32,
    w: u32,
    off: u32,
    scale: f32,
    /// Row length of p, of which the first R columns count.
    ld: u32
});

kernel!(ACCUMULATE, "lora_grad", "accumulate", [Read, Read, ReadWrite], Params, [Direct "lora_grad" [8, 128, 1]], twin);

/// `grads[off..] += scale · pᵀ·q` with q:[N,W] and p the first R columns of [N,ld].
pub fn accumulate(
    plan: &mut Plan,
    label: &str,
    n: usize,
    p: Buf,
    (r, ld): (usize, usize),
    q: Buf,
    w: usize,
    scale: f32,
    grads: Buf,
    off: usize,
) {
    let params = Params { n: n as u32, r: r as u32, w: w as u32, off: off as u32, scale, ld: ld as u32 };
    plan.push(&ACCUMULATE, params, &[p, q, grads], [r as u32, w as u32, 1]).label = label.into();
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (n, r, w, ld) = (p.n as usize, p.r as usize, p.w as usize, p.ld as usize);
    let (a, b) = (call.f(0), call.f(1));
    let out = &mut call.f_mut(2)[p.off as usize..];
    par::blocks(out, r, w, 0..w, 2 * n * r * w, |r0, c0, mut out| {
        out.product(true, n, par::Mat::t(&a[r0..], ld), par::Mat::new(&b[c0..], w), F::of32(p.scale));
    });
}
