//! AdamW whose moments are kept in 8 bits by blocks (Dettmers, Lewis, Shleifer & Zettlemoyer 2021, "8-bit Optimizers
//! via Block-wise Quantization"), with the blocks and the values of bitsandbytes. Contract: `shaders/adamw_8bit.wgsl`.
//!
//! A moment takes 65 words for 256 floats: codes, and the largest magnitude. The step itself is `adamw`'s, on moments
//! that are unpacked for it alone. Two things differ from bitsandbytes: blocks run over the whole flat buffer, where it
//! begins anew in each tensor and leaves those below 4096 numbers, and embeddings, in f32; and a second moment above 0
//! never becomes 0, as it does there below 1.6e-7 of its block's largest. It would live in a block with larger ones
//! here, and a step by a first moment that is left over a second one that is not would be enormous.

use super::adamw::{AdamW, Params, Rule, State};
use super::{kernel, par};
use crate::num::Float;
use crate::plan::{Buf, Call, Plan};
use crate::simd::{self, simd};

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
    let [m_map, v_map] = [0, CODES].map(|at| call.f(7)[at..].first_chunk().expect("both maps"));
    let (m_nearest, v_nearest) = (Nearest::of(m_map), Nearest::of(v_map));
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
                pack(&m_values, m, &m_nearest, false);
                pack(&v_values, v, &v_nearest, true);
            }
        }
    });
}

/// The values of a block.
fn unpack<F: Float>(words: &[u32], map: &[F; CODES]) -> [F; BLOCK] {
    let largest = F::of32(f32::from_bits(words[BLOCK / 4]));
    std::array::from_fn(|i| map[(words[i / 4] >> (8 * (i % 4))) as usize % CODES] * largest)
}

simd! {
    /// A block of these values; where asked, none above 0 gets the code of 0, the lowest.
    fn pack<F: Float>(values: &[F; BLOCK], words: &mut [u32], nearest: &Nearest<F>, keep_above: bool) {
        let largest = simd::largest(values).to32();
        let scale = if largest < SMALLEST { F::ZERO } else { F::ONE / F::of32(largest) };
        let mut codes = [0; BLOCK];
        for (code, x) in codes.iter_mut().zip(values) {
            *code = nearest.code(*x * scale).max(u32::from(keep_above && *x > F::ZERO));
        }
        for (word, codes) in words.iter_mut().zip(codes.chunks_exact(4)) {
            *word = codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
        }
        words[BLOCK / 4] = largest.to_bits();
    }
}

/// Finds the nearest of ascending values without a branch: the upper bits of a float say between which middles of two
/// values it lies, but for one, and that one says the rest.
struct Nearest<F> {
    /// For each cell, the lowest code of its floats; the highest is at most one more. Words, since processors gather
    /// those.
    starts: [u32; 2 * CELLS],
    /// From a value to the next; behind the last there is none.
    middles: [F; CODES],
}

/// Floats of one sign from 2⁻²⁴ to 2 by their exponents and seven bits more, narrower than values lie apart; the first
/// cell goes on down to 0.
const CELLS: usize = 25 << 7;
const CELL_SHIFT: u32 = 23 - 7;
const FIRST_CELL: u32 = (127 - 24) << 7;

impl<F: Float> Nearest<F> {
    fn of(map: &[F; CODES]) -> Self {
        let middle = |i: usize| (map[i] + map[i + 1]) * F::of(0.5);
        let middles = std::array::from_fn(|i| if i + 1 < CODES { middle(i) } else { F::of(f64::INFINITY) });
        let mut code = 0;
        let starts = std::array::from_fn(|cell| {
            // What is rounded to a float of the cell may lie a little below it.
            let lowest = lowest(cell);
            while middles[code] < F::of32(lowest - lowest.abs() * 1e-6) {
                code += 1;
            }
            code as u32
        });
        Nearest { starts, middles }
    }

    /// Of two as near, the lower.
    #[inline(always)]
    fn code(&self, x: F) -> u32 {
        let start = self.starts[cell(x.to32())];
        start + u32::from(x > self.middles[start as usize % CODES])
    }
}

#[inline(always)]
fn cell(x: f32) -> usize {
    let size = (x.abs().to_bits() >> CELL_SHIFT).clamp(FIRST_CELL, FIRST_CELL + CELLS as u32 - 1) - FIRST_CELL;
    if x < 0.0 { CELLS - 1 - size as usize } else { CELLS + size as usize }
}

/// The lowest float of a cell.
fn lowest(cell: usize) -> f32 {
    let start = |size: usize| f32::from_bits((FIRST_CELL + size as u32) << CELL_SHIFT);
    match cell {
        CELLS => 0.0,
        above if above > CELLS => start(above - CELLS),
        below => -start(CELLS - below),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At every middle and beside it, and at what lies between: as by looking at each value.
    #[test]
    fn the_nearest_is_the_nearest() {
        let all = maps();
        for map in [&all[..CODES], &all[CODES..]] {
            let doubles: [f64; CODES] = std::array::from_fn(|i| map[i] as f64);
            let nearest = Nearest::of(&doubles);
            let near = |middle: f64| [-1e-6, -1e-9, 1e-9, 1e-6, 0.01].map(|off| middle + off * middle.abs());
            let beside = doubles.windows(2).flat_map(|pair| near((pair[0] + pair[1]) / 2.0));
            let others = (0..20_000).map(|i| (i as f64 / 1e4 - 1.0).powi(1 + 2 * (i % 5)));
            for x in beside.chain(others).chain([0.0, -0.0, 1.0 + 1e-7, -1.0 - 1e-7, 1e-40]) {
                let off = |code: usize| (doubles[code] - x).abs();
                let want = (0..CODES).min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap();
                assert_eq!(nearest.code(x) as usize, want, "{x:e}");
            }
        }
    }
}
