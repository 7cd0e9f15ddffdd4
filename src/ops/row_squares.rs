//! The squared norm of each row of a packed matrix. Contract: `shaders/row_squares.wgsl`.

use super::matmul::Matrix;
use super::{kernel, par, params};
use crate::format::unpack;
use crate::num::Float;
use crate::plan::{Buf, Call, Plan, Slot};
use crate::simd;

params!(Params { rows: u32, i: u32, row0: u32, w_off: u32 });

kernel!(FORWARD, "row_squares", "forward", [Write, Read], Params, [Direct "row_squares" [64, 1, 1]], twin);

/// `out[o] = Σ_i W[o,i]²`; one step a shard, each writing its rows.
pub fn forward(plan: &mut Plan, label: &str, w: &Matrix, out: Buf) {
    for shard in &w.shards {
        let params =
            Params { rows: shard.rows as u32, i: w.cols as u32, row0: shard.row0 as u32, w_off: shard.offset as u32 };
        let step = plan.push(&FORWARD, params, &[out, shard.buf], [shard.rows as u32, 1, 1]);
        step.format = Some(w.format);
        step.touch(0, shard.rows).touch(1, w.format.words(w.cols) * shard.rows).label = label.into();
        step.work *= w.cols as u64;
    }
}

fn twin<F: Float>(call: &mut Call<F>) {
    let p: Params = call.params();
    let (rows, i, off) = (p.rows as usize, p.i as usize, p.w_off as usize);
    let format = call.format.expect("a weight has a format");
    let out = &mut call.f_mut(0)[p.row0 as usize..][..rows];
    let (slots, scratch) = (&call.slots, call.scratch);
    par::rows(out, 1, i, |row, out| {
        out[0] = match &slots[1] {
            Slot::F(w) => simd::dot(&w[off + row * i..][..i], &w[off + row * i..][..i]),
            Slot::W(words) => {
                let stride = format.words(i);
                scratch.with(i, |w| {
                    unpack(format, &words[off + row * stride..][..stride], w);
                    simd::dot(w, w)
                })
            }
            _ => panic!("weights are bound for reading"),
        };
    });
}
