//! A learned gain for each column, with bias and residual. Contract: `shaders/gain.wgsl`.

use super::matmul::{ACCUMULATE, BIAS, RESIDUAL};
use super::{Columns, kernel, par, params};
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd::{self, simd};

params!(Params { n: u32, c: u32, off: u32, flags: u32, bias_off: u32, ld: u32, col: u32 });

kernel!(FORWARD, "gain", "forward", [Read, Read, Read, Read, Write], Params, [Direct "gain" [256, 1, 1]], forward_twin);
kernel!(BACKWARD, "gain", "backward", [Read, Read, ReadWrite], Params, [Direct "gain" [256, 1, 1]], backward_twin);

/// A row of floats: a buffer of its own, or a part of one.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    pub buf: Buf,
    pub off: usize,
}

/// `y = g∘x + bias + residual`; the residual lies as y does. `none` is bound where nothing is read.
pub fn forward(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    x: Buf,
    g: Vector,
    bias: Option<Vector>,
    residual: Option<Buf>,
    none: Buf,
    y: impl Into<Columns>,
) {
    let y = y.into();
    let [ld, col] = y.place(c);
    let flags = bias.map_or(0, |_| BIAS) | residual.map_or(0, |_| RESIDUAL);
    let bias_off = bias.map_or(0, |b| b.off as u32);
    let params = Params { n: n as u32, c: c as u32, off: g.off as u32, flags, bias_off, ld, col };
    let bufs = [x, g.buf, bias.map_or(none, |b| b.buf), residual.unwrap_or(none), y.buf];
    let step = plan.push(&FORWARD, params, &bufs, [(n * c) as u32, 1, 1]);
    step.touch(0, n * c).touch(1, c).touch(2, c).touch(3, n * c).touch(4, n * c).label = label.into();
}

/// `dx (+)= g∘dy`
pub fn backward(
    plan: &mut Plan,
    label: &str,
    (n, c): (usize, usize),
    dy: impl Into<Columns>,
    g: Vector,
    dx: Buf,
    accumulate: bool,
) {
    let (dy, flags) = (dy.into(), accumulate as u32 * ACCUMULATE);
    let [ld, col] = dy.place(c);
    let params = Params { n: n as u32, c: c as u32, off: g.off as u32, flags, bias_off: 0, ld, col };
    let step = plan.push(&BACKWARD, params, &[dy.buf, g.buf, dx], [(n * c) as u32, 1, 1]);
    step.touch(0, n * c).touch(1, c).label = label.into();
    if !accumulate {
        step.access[2] = Access::Write;
    }
}

simd! {
    fn add_product<F: Float>(y: &mut [F], a: &[F], b: &[F]) {
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y += *a * *b);
    }
}

fn forward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (c, off, ld, col) = (p.c as usize, p.off as usize, p.ld as usize, p.col as usize);
    let (x, g, bias, residual) = (call.f(0), &call.f(1)[off..off + c], call.f(2), call.f(3));
    par::rows(&mut call.f_mut(4)[..(p.n as usize - 1) * ld + col + c], ld, 1, |row, y| {
        let y = &mut y[col..col + c];
        y.fill(F::ZERO);
        add_product(y, g, &x[row * c..]);
        if p.flags & BIAS != 0 {
            simd::add_scaled(y, &bias[p.bias_off as usize..], F::ONE);
        }
        if p.flags & RESIDUAL != 0 {
            simd::add_scaled(y, &residual[row * ld + col..], F::ONE);
        }
    });
}

fn backward_twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (c, off, ld, col) = (p.c as usize, p.off as usize, p.ld as usize, p.col as usize);
    let (dy, g) = (call.f(0), &call.f(1)[off..off + c]);
    par::rows(&mut call.f_mut(2)[..p.n as usize * c], c, 1, |row, dx| {
        if p.flags & ACCUMULATE == 0 {
            dx.fill(F::ZERO);
        }
        add_product(dx, g, &dy[row * ld + col..]);
    });
}
