//! Embedding: rows of a (packed) matrix, by token or by position. Contract: `shaders/embedding.wgsl`.

use super::matmul::Matrix;
use super::{kernel, par, params};
use crate::format::unpack;
use crate::num::Float;
use crate::plan::{Access, Buf, Call, Plan};
use crate::simd;

params!(Params { n: u32, c: u32, row0: u32, rows: u32, scale: f32, accumulate: u32, pad0: u32, pad1: u32 });

kernel!(FORWARD, "embedding", "forward", [Read, Read, ReadWrite], Params, [Direct "embedding" [64, 1, 1]], twin);

/// `x[n,:] (+)= scale·W[ids[n],:]`; one step a shard, each writing the rows whose id it holds.
pub fn forward(plan: &mut Plan, label: &str, n: usize, ids: Buf, w: &Matrix, scale: f32, accumulate: bool, x: Buf) {
    for shard in &w.shards {
        assert_eq!(shard.offset, 0, "an embedding starts its buffer");
        let params = Params {
            n: n as u32,
            c: w.cols as u32,
            row0: shard.row0 as u32,
            rows: shard.rows as u32,
            scale,
            accumulate: accumulate as u32,
            ..Default::default()
        };
        let step = plan.push(&FORWARD, params, &[ids, shard.buf, x], [(n * w.cols / 4) as u32, 1, 1]);
        if !accumulate {
            step.access[2] = Access::Write;
        }
        step.format = Some(w.format);
        step.touch(1, n * w.format.words(w.cols));
        step.label = label.into();
    }
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let format = call.format.expect("a weight has a format");
    let (ids, words) = (call.w(0), call.w(1));
    let stride = format.words(c);
    let (scale, scratch) = (F::of32(p.scale), call.scratch);
    par::rows(&mut call.f_mut(2)[..p.n as usize * c], c, 1, |row, x| {
        let Some(at) = ids[row].checked_sub(p.row0).filter(|at| *at < p.rows) else { return };
        scratch.with(c, |values| {
            unpack(format, &words[at as usize * stride..][..stride], values);
            if p.accumulate == 0 {
                x.fill(F::ZERO);
            }
            simd::add_scaled(x, values, scale);
        });
    });
}
