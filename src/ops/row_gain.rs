//! The gain m/‖W + s·B·A‖ of each row. Contract: `shaders/row_gain.wgsl`.

use super::{kernel, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};

params!(Params { o: u32, r: u32, m_off: u32, b_off: u32, scale: f32, pad0: u32, pad1: u32, pad2: u32 });

kernel!(FORWARD, "row_gain", "forward", [Read, Read, Read, Read, Write, Write], Params, [Direct "row_gain" [64, 1, 1]], twin);

/// Where the magnitudes and the low-rank factor lie in the flat buffer, and what is known of W.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub params: Buf,
    pub magnitude: usize,
    pub b: usize,
    pub rank: usize,
    pub scale: f32,
    /// Σ_i W[o,i]²
    pub squares: Buf,
}

/// `gain[o] = m[o]/n[o]` and `inv[o] = 1/n[o]` with `aw = A·Wᵀ` and `aa = A·Aᵀ`.
pub fn forward(plan: &mut Plan, label: &str, o: usize, rows: Rows, aw: Buf, aa: Buf, inv: Buf, gain: Buf) {
    let params = Params {
        o: o as u32,
        r: rows.rank as u32,
        m_off: rows.magnitude as u32,
        b_off: rows.b as u32,
        scale: rows.scale,
        ..Default::default()
    };
    let step = plan.push(&FORWARD, params, &[rows.params, aw, aa, rows.squares, inv, gain], [o as u32, 1, 1]);
    step.touch(0, (rows.rank + 1) * o).label = label.into();
    step.work *= (rows.rank * rows.rank) as u64;
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (o, r) = (p.o as usize, p.r as usize);
    let (params, aw, aa, squares) = (call.f(0), call.f(1), call.f(2), call.f(3));
    let (m, b) = (&params[p.m_off as usize..][..o], &params[p.b_off as usize..][..r * o]);
    let (inv, gain) = (call.f_mut(4), call.f_mut(5));
    let (scale, two) = (F::of32(p.scale), F::of(2.0));
    for o_ in 0..o {
        let mut n2 = squares[o_];
        for k in 0..r {
            let cross: F = (0..r).map(|q| b[q * o + o_] * aa[k * r + q]).sum();
            n2 += scale * b[k * o + o_] * (two * aw[k * o + o_] + scale * cross);
        }
        let n = n2.sqrt();
        inv[o_] = F::ONE / n;
        gain[o_] = m[o_] / n;
    }
}
