//! Rows by index: `y[m,:] = x[index[m],:]`, zeros where the index is [`NONE`]. Forward it picks the supervised rows for
//! the head; backward, with the inverse index, it spreads their gradients. Contract: `shaders/gather.wgsl`.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};

/// "No row": also the target of a token that is not supervised.
pub const NONE: u32 = u32::MAX;

params!(Params { n: u32, c: u32, first: u32, pad: u32 });

kernel!(FORWARD, "gather", "forward", [Read, Read, Write], Params, [Direct "gather" [64, 1, 1]], twin);

/// `y[m,:] = x[index[first + m],:]` for m < n.
pub fn forward(plan: &mut Plan, label: &str, n: usize, c: usize, index: Buf, first: usize, x: Buf, y: Buf) {
    let params = Params { n: n as u32, c: c as u32, first: first as u32, pad: 0 };
    plan.push(&FORWARD, params, &[index, x, y], [(n * c / 4) as u32, 1, 1]).label = label.into();
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let (index, x) = (call.w(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..p.n as usize * c], c, 1, |row, y| match index[p.first as usize + row] {
        NONE => y.fill(F::ZERO),
        at => y.copy_from_slice(&x[at as usize * c..][..c]),
    });
}
