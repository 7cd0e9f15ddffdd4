//! Rows of a trained table put in by index: virtual tokens before the embedding, prefixes in keys and values, trained
//! embeddings. Contract: `shaders/rows.wgsl`.

use super::gain::Vector;
use super::gather::NONE;
use super::{Columns, kernel, par, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan, Step};
use crate::simd;

params!(Params { n: u32, c: u32, off: u32, flags: u32, scale: f32, ld: u32, col: u32 });

const CLEAR: u32 = 1;
const ADD: u32 = 2;

kernel!(FORWARD, "rows", "forward", [Read, Read, ReadWrite], Params, [Direct "rows" [256, 1, 1]], forward_twin);
kernel!(BACKWARD, "rows", "backward", [Read, ReadWrite, ReadWrite], Params, [Direct "rows" [256, 1, 1]], backward_twin);

/// `x[n,:] = scale·table[index[n],:]` where the index is not [`NONE`], or added to what is there.
pub fn forward(
    plan: &mut Plan,
    label: &str,
    size: (usize, usize),
    index: Buf,
    table: Vector,
    scale: f32,
    add: bool,
    x: impl Into<Columns>,
) {
    push_forward(plan, label, size, index, table, scale, add as u32 * ADD, x.into());
}

fn push_forward<'a>(
    plan: &'a mut Plan,
    label: &str,
    (n, c): (usize, usize),
    index: Buf,
    table: Vector,
    scale: f32,
    flags: u32,
    x: Columns,
) -> &'a mut Step {
    let [ld, col] = x.place(c);
    let params = Params { n: n as u32, c: c as u32, off: table.off as u32, flags, scale, ld, col };
    let step = plan.push(&FORWARD, params, &[index, table.buf, x.buf], [(n * c) as u32, 1, 1]);
    step.touch(1, n * c).touch(2, n * c).label = label.into();
    step
}

/// `y = table[0..len]`: a part of a buffer as one of its own, or as a part of one. `zero` holds at least one word, 0.
pub fn copy(plan: &mut Plan, label: &str, len: usize, zero: Buf, table: Vector, y: impl Into<Columns>) {
    push_forward(plan, label, (1, len), zero, table, 1.0, 0, y.into()).access[2] = Access::Write;
}

/// `grads[v,:] += scale·Σ dx[n,:]` over the rows whose index is v; `clear` zeroes these rows of dx afterwards.
pub fn backward(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    index: Buf,
    grads: Vector,
    scale: f32,
    dx: impl Into<Columns>,
    clear: bool,
) {
    let dx = dx.into();
    let [ld, col] = dx.place(c);
    let flags = clear as u32 * CLEAR;
    let params = Params { n: n as u32, c: c as u32, off: grads.off as u32, flags, scale, ld, col };
    let step = plan.push(&BACKWARD, params, &[index, grads.buf, dx.buf], [(n * c) as u32, 1, 1]);
    step.touch(1, n * c).touch(2, n * c).label = label.into();
    step.work *= n as u64 / 2 + 1; // each row looks for its like
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (c, off, ld, col) = (p.c as usize, p.off as usize, p.ld as usize, p.col as usize);
    let (index, table) = (call.w(0), call.f(1));
    par::rows(&mut call.f_mut(2)[..(p.n as usize - 1) * ld + col + c], ld, 1, |row, x| {
        let x = &mut x[col..col + c];
        if index[row] != NONE {
            if p.flags & ADD == 0 {
                x.fill(F::ZERO);
            }
            simd::add_scaled(x, &table[off + index[row] as usize * c..][..c], F::of32(p.scale));
        }
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (c, off, ld, col) = (p.c as usize, p.off as usize, p.ld as usize, p.col as usize);
    let index = call.w(0);
    let (grads, dx) = (call.f_mut(1), call.f_mut(2));
    for (row, v) in index[..p.n as usize].iter().enumerate().filter(|(_, v)| **v != NONE) {
        let dx = &mut dx[row * ld + col..][..c];
        simd::add_scaled(&mut grads[off + *v as usize * c..][..c], dx, F::of32(p.scale));
        if p.flags & CLEAR != 0 {
            dx.fill(F::ZERO);
        }
    }
}
