//! Rows by index: forward picks the supervised rows for the head, a chunk at a time; backward spreads their gradients
//! over all rows with the inverse index. Contract: `shaders/gather.wgsl`.

use super::{kernel, par, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};

/// "No row": also the target of a token that is not supervised.
pub const NONE: u32 = u32::MAX;

params!(Params { n: u32, c: u32, first: u32, m: u32 });

kernel!(FORWARD, "gather", "forward", [Read, Read, Write], Params, [Direct "gather" [64, 1, 1]], forward_twin);
kernel!(BACKWARD, "gather", "backward", [Read, Read, ReadWrite], Params, [Direct "gather" [64, 1, 1]], backward_twin);

/// `y[m,:] = x[index[first + m],:]` for the m < M rows of a chunk; zeros where the index is [`NONE`].
pub fn forward(plan: &mut Plan, (m, first): (usize, usize), c: usize, index: Buf, x: Buf, y: Buf) {
    let params = Params { n: 0, c: c as u32, first: first as u32, m: m as u32 };
    plan.push(&FORWARD, params, &[index, x, y], [(m * c / 4) as u32, 1, 1]).touch(1, m * c);
}

/// `dx[n,:] = dy[inverse[n] − first,:]` for the N rows whose supervised row lies in the chunk; of the others, the
/// chunk that starts at 0 zeroes all and later ones leave them alone.
pub fn backward(plan: &mut Plan, n: usize, (m, first): (usize, usize), c: usize, inverse: Buf, dy: Buf, dx: Buf) {
    let params = Params { n: n as u32, c: c as u32, first: first as u32, m: m as u32 };
    let step = plan.push(&BACKWARD, params, &[inverse, dy, dx], [(n * c / 4) as u32, 1, 1]);
    if first == 0 {
        step.access[2] = Access::Write;
    }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let (index, x) = (call.w(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..p.m as usize * c], c, 1, |row, y| match index[p.first as usize + row] {
        NONE => y.fill(F::ZERO),
        at => y.copy_from_slice(&x[at as usize * c..][..c]),
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let (inverse, dy) = (call.w(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..p.n as usize * c], c, 1, |row, dx| {
        match inverse[row].checked_sub(p.first).filter(|m| *m < p.m) {
            Some(m) => dx.copy_from_slice(&dy[m as usize * c..][..c]),
            None if p.first == 0 => dx.fill(F::ZERO),
            None => {}
        }
    });
}
