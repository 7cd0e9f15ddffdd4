//! Rotary position embedding (Su et al. 2021), half-split pairs (i, i + D/2), in place. Contract: `shaders/rope.wgsl`.
//!
//! Angles come from a table of (cos, sin) made on the host in f64: sines of large angles are coarse on many GPUs, and
//! every kind of frequency scaling stays out of the kernel.

use super::{Columns, kernel, par, params};
use crate::num::Float;
use crate::plan::{Buf, Call, Kernel, Plan};

params!(Params { n: u32, heads: u32, d: u32, first: u32, ld: u32 });

kernel!(FORWARD, "rope", "forward", [Read, Read, ReadWrite], Params, [Direct "rope" [64, 1, 1]], forward_twin);
kernel!(BACKWARD, "rope", "backward", [Read, Read, ReadWrite], Params, [Direct "rope" [64, 1, 1]], backward_twin);

/// Which angle a row is rotated by.
#[derive(Clone, Copy, Debug)]
pub struct Angles {
    pub positions: Buf,
    /// [·, D/2, (cos, sin)]: one table, or one after the other where layers differ in their frequencies.
    pub table: Buf,
    /// The table's row of position 0.
    pub first: usize,
}

/// Rotates x:[N, heads, D] in place; of rows that are wider only these first heads.
pub fn forward(plan: &mut Plan, label: &str, size: (usize, usize, usize), angles: Angles, x: impl Into<Columns>) {
    push(plan, &FORWARD, label, size, angles, x.into());
}

/// Rotates back: the transpose of a rotation is its inverse.
pub fn backward(plan: &mut Plan, label: &str, size: (usize, usize, usize), angles: Angles, dx: impl Into<Columns>) {
    push(plan, &BACKWARD, label, size, angles, dx.into());
}

fn push(
    plan: &mut Plan,
    kernel: &'static Kernel,
    label: &str,
    (n, heads, d): (usize, usize, usize),
    angles: Angles,
    x: Columns,
) {
    let [ld, _] = x.place(heads * d);
    let params = Params { n: n as u32, heads: heads as u32, d: d as u32, first: angles.first as u32, ld };
    let bufs = [angles.positions, angles.table, x.buf];
    let step = plan.push(kernel, params, &bufs, [(n * heads * d / 2) as u32, 1, 1]);
    step.touch(1, n * d).touch(2, n * heads * d).label = label.into();
}

fn rotate<F: Float>(call: &mut Call<F>, sign: F) {
    let p: Params = call.params();
    let (d, width, ld) = (p.d as usize, (p.heads * p.d) as usize, p.ld as usize);
    let (positions, table) = (call.w(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..p.n as usize * ld], ld, 1, |row, x| {
        let angles = &table[(p.first + positions[row]) as usize * d..][..d];
        for head in x[..width].chunks_exact_mut(d) {
            let (a, b) = head.split_at_mut(d / 2);
            for ((a, b), cs) in a.iter_mut().zip(b).zip(angles.chunks_exact(2)) {
                let (cos, sin) = (cs[0], sign * cs[1]);
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    rotate(call, F::ONE);
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    rotate(call, -F::ONE);
}
