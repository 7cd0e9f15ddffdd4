//! AdamW whose moments are kept in 8 bits by blocks (Dettmers, Lewis, Shleifer & Zettlemoyer 2021, "8-bit Optimizers via
//! Block-wise Quantization"), with the blocks and the values of bitsandbytes. Contract: `shaders/adamw_8bit.wgsl`.
//!
//! A moment takes 65 words for 256 floats: codes, and the largest magnitude. The step itself is [`adamw`](super::adamw)'s, on
//! moments that are unpacked for it alone; blocks run over the whole flat buffer, not anew in each tensor.

use super::adamw::{AdamW, Params, Rule, State};
use super::{kernel, par};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd;

kernel!(ADAMW_8BIT, "adamw_8bit", "forward", [Read, Read, ReadWrite, ReadWrite, ReadWrite, ReadWrite, Read, Read], Params, [Direct "adamw_8bit" [256, 1, 1]], twin);

/// Floats that share a largest magnitude.
pub const BLOCK: usize = 256;
/// Words of a block: four codes each, and the bits of the largest magnitude.
pub const BLOCK_WORDS: usize = BLOCK / 4 + 1;
/// Values a code can stand for.
const CODES: usize = 256;
/// Below this a block counts as zeros: its reciprocal may be infinite, and GPUs may take it for zero.
const SMALLEST: f32 = f32::MIN_POSITIVE;
/// Multiply-adds that a float of the step stands for: two searches of eight steps.
const WORK: u64 = 20;

/// Words of a moment of `len` floats.
pub fn words(len: usize) -> usize {
    len.div_ceil(BLOCK) * BLOCK_WORDS
}

/// What codes stand for, as parts of the largest magnitude, ascending: those of m, then those of v.
pub fn maps() -> Vec<f32> {
    [map(true), map(false)].concat()
}

/// The dynamic map: 0, 1, and seven decades below 1, each cut into twice as many equal parts as the one below it, and a
/// part's value is its middle. With signs a decade has half as many parts, and each its negative.
fn map(signed: bool) -> Vec<f32> {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7 {
        let parts = 1 << (decade + !signed as usize);
        for part in 0..parts {
            let middle = 0.1 + 0.9 * (part as f64 + 0.5) / parts as f64;
            let value = (10f64.powi(decade as i32 - 6) * middle) as f32;
            values.extend([value, -value].iter().take(1 + signed as usize));
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

/// The moments of `s` hold blocks, `maps` what [`maps`] says.
pub fn step(plan: &mut Plan, a: AdamW, control: Buf, clip: Buf, s: &State, maps: Buf) {
    let step = plan.push(
        &ADAMW_8BIT,
        Params::of(a, s),
        &[control, clip, s.params, s.grads, s.m, s.v, s.rates.unwrap_or(clip), maps],
        [s.len as u32, 1, 1],
    );
    step.work *= WORK;
}

/// Blocks that one task steps: enough to be worth handing out.
const TOGETHER: usize = 32;

fn twin<F: Float>(call: &mut Call<F>) {
    let (len, rule) = (call.params::<Params>().len as usize, Rule::of(call));
    let (m_map, v_map) = call.f(7)[..2 * CODES].split_at(CODES);
    let [params, grads] = [2, 3].map(|i| &mut call.f_mut(i)[..len]);
    let [m, v] = [4, 5].map(|i| &mut call.w_mut(i)[..words(len)]);
    let Some(rule) = rule else { return grads.fill(F::ZERO) };
    let floats = params.chunks_mut(TOGETHER * BLOCK).zip(grads.chunks_mut(TOGETHER * BLOCK));
    let moments = m.chunks_mut(TOGETHER * BLOCK_WORDS).zip(v.chunks_mut(TOGETHER * BLOCK_WORDS));
    let mut tasks: Vec<_> = floats.zip(moments).collect();
    par::rows(&mut tasks, 1, TOGETHER * BLOCK, |task, parts| {
        for ((params, grads), (m, v)) in parts {
            let floats = params.chunks_mut(BLOCK).zip(grads.chunks_mut(BLOCK));
            let moments = m.chunks_mut(BLOCK_WORDS).zip(v.chunks_mut(BLOCK_WORDS));
            for (i, ((params, grads), (m, v))) in floats.zip(moments).enumerate() {
                let (mut m_values, mut v_values) = (unpack(m, m_map), unpack(v, v_map));
                let first = (task * TOGETHER + i) * BLOCK;
                rule.update(first, params, grads, &mut m_values, &mut v_values);
                pack(&mut m_values, m, m_map);
                pack(&mut v_values, v, v_map);
            }
        }
    });
}

/// The values of a block.
fn unpack<F: Float>(words: &[u32], map: &[F]) -> [F; BLOCK] {
    let (codes, largest) = words.split_at(BLOCK / 4);
    let largest = F::of32(f32::from_bits(largest[0]));
    std::array::from_fn(|i| map[(codes[i / 4] >> (8 * (i % 4))) as usize % CODES] * largest)
}

/// A block of these values, each by the nearest that has a code.
fn pack<F: Float>(values: &mut [F; BLOCK], words: &mut [u32], map: &[F]) {
    let largest = simd::largest(values).to32();
    let scale = if largest < SMALLEST { F::ZERO } else { F::ONE / F::of32(largest) };
    for (word, values) in words.iter_mut().zip(values.chunks_exact(4)) {
        *word = values.iter().rev().fold(0, |word, x| word << 8 | code(*x * scale, map));
    }
    words[BLOCK / 4] = largest.to_bits();
}

/// The code whose value is nearest to x; of two as near, the lower.
fn code<F: Float>(x: F, map: &[F]) -> u32 {
    let mut at = 0;
    for step in [128, 64, 32, 16, 8, 4, 2, 1] {
        if map[at + step] <= x {
            at += step;
        }
    }
    let nearer = at + 1 < CODES && x > (map[at] + map[at + 1]) * F::of(0.5);
    (at + nearer as usize) as u32
}
