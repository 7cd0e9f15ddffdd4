//! Token embedding: rows of the (packed) embedding matrix. Contract: `shaders/embedding.wgsl`.

use super::matmul::Matrix;
use super::{kernel, par, params};
use crate::format::unpack;
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};

params!(Params { n: u32, c: u32, row0: u32, rows: u32 });

kernel!(FORWARD, "embedding", "forward", [Read, Read, Write], Params, [Direct "embedding" [64, 1, 1]], twin);

/// `x[n,:] = W[ids[n],:]`; one step a shard, each writing the rows whose id it holds.
pub fn forward(plan: &mut Plan, label: &str, n: usize, ids: Buf, w: &Matrix, x: Buf) {
    for shard in &w.shards {
        assert_eq!(shard.offset, 0, "an embedding starts its buffer");
        let params = Params { n: n as u32, c: w.cols as u32, row0: shard.row0 as u32, rows: shard.rows as u32 };
        let step = plan.push(&FORWARD, params, &[ids, shard.buf, x], [(n * w.cols / 4) as u32, 1, 1]);
        step.format = Some(w.format);
        step.label = label.into();
    }
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let c = p.c as usize;
    let format = call.format.expect("a weight has a format");
    let (ids, words) = (call.w(0), call.w(1));
    let stride = format.words(c);
    par::rows(&mut call.f_mut(2)[..p.n as usize * c], c, 1, |row, x| {
        if let Some(at) = ids[row].checked_sub(p.row0).filter(|at| *at < p.rows) {
            unpack(format, &words[at as usize * stride..][..stride], x);
        }
    });
}
