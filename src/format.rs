//! How frozen weights are stored in buffers: packed in u32 words, row by row, the same bits on GPU and CPU.
//!
//! | format | a row of `cols` values | value |
//! |---|---|---|
//! | F32 | `cols` words | the bits |
//! | F16, BF16 | `cols / 2` words, low half first | IEEE half; upper half of an f32 |
//! | Q8_0 | blocks of 32: `[d, q×8]` (9 words) | `d · i8` |
//! | Q4_0 | blocks of 32: `[d, q×4]` (5 words) | `d · (nibble − 8)` |
//! | Q4_1 | blocks of 32: `[d \| m << 16, q×4]` (5 words) | `d · nibble + m` |
//!
//! The quantised blocks are ggml's (`ggml-common.h`) moved to word boundaries: the f16 scale `d` gets a word of its
//! own (Q4_1's block is 20 bytes already). In a block of 4-bit values the low nibble of byte j is value j, the high
//! nibble value j + 16. Words are little-endian, as on every machine there is a GPU for. `shaders/load_w/NAME.wgsl`
//! reads the same layout; a test compares the two.

use crate::num::Float;
use crate::simd::simd;
use half::{bf16, f16};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum WeightFormat {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
}

/// Values in a quantised block.
pub const BLOCK: usize = 32;

impl WeightFormat {
    pub const ALL: [WeightFormat; 6] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_1];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
        }
    }

    /// `cols` of every matrix in this format is a multiple of this.
    pub fn granule(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 4,
            _ => BLOCK,
        }
    }

    /// u32 words in a row of `cols` values.
    pub fn words(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.granule()), "{} columns in {}", cols, self.name());
        match self {
            Self::F32 => cols,
            Self::F16 | Self::BF16 => cols / 2,
            Self::Q8_0 => cols / BLOCK * 9,
            Self::Q4_0 | Self::Q4_1 => cols / BLOCK * 5,
        }
    }
}

/// An f16 as f32, in arithmetic that compilers turn into SIMD; the conversion of `half` is a call.
#[inline(always)]
fn half_of(bits: u16) -> f32 {
    let (sign, size) = ((bits as u32 & 0x8000) << 16, bits as u32 & 0x7fff);
    let size = match size {
        0..0x400 => size as i32 as f32 / (1 << 24) as f32, // no exponent: so many of the smallest
        0x400..0x7c00 => f32::from_bits((size << 13) + ((127 - 15) << 23)),
        _ => f32::from_bits(size << 13 | 0x7f80_0000), // infinite, or NaN
    };
    f32::from_bits(size.to_bits() | sign)
}

simd! {
/// Unpacks whole rows: `out.len()` values from as many words as they need.
pub fn unpack<F: Float>(format: WeightFormat, words: &[u32], out: &mut [F]) {
    match format {
        WeightFormat::F32 => {
            for (o, &w) in out.iter_mut().zip(words) {
                *o = F::of32(f32::from_bits(w));
            }
        }
        WeightFormat::BF16 => {
            for (o, &h) in out.iter_mut().zip(bytemuck::cast_slice::<u32, u16>(words)) {
                *o = F::of32(f32::from_bits((h as u32) << 16));
            }
        }
        WeightFormat::F16 => {
            for (o, &h) in out.iter_mut().zip(bytemuck::cast_slice::<u32, u16>(words)) {
                *o = F::of32(half_of(h));
            }
        }
        WeightFormat::Q8_0 => {
            for (o, b) in out.chunks_exact_mut(BLOCK).zip(words.chunks_exact(9)) {
                let d = half_of(b[0] as u16);
                let bytes: &[i8] = bytemuck::cast_slice(&b[1..]);
                for (o, q) in o.iter_mut().zip(bytes) {
                    *o = F::of32(d * *q as f32);
                }
            }
        }
        WeightFormat::Q4_0 | WeightFormat::Q4_1 => {
            for (o, b) in out.chunks_exact_mut(BLOCK).zip(words.chunks_exact(5)) {
                // Hidden, or compilers make vectors of the values of several blocks, which they then gather one by one.
                let d = std::hint::black_box(half_of(b[0] as u16));
                let m = if format == WeightFormat::Q4_0 { -8.0 * d } else { half_of((b[0] >> 16) as u16) };
                let q: [u8; 16] = bytemuck::cast([b[1], b[2], b[3], b[4]]);
                let (lo, hi) = o.split_at_mut(BLOCK / 2);
                lo.iter_mut().zip(q).for_each(|(o, q)| *o = F::of32(d * (q & 15) as f32 + m));
                hi.iter_mut().zip(q).for_each(|(o, q)| *o = F::of32(d * (q >> 4) as f32 + m));
            }
        }
    }
}
}

/// Packs values (whole rows) into `format`, rounding to nearest; quantised formats as ggml's reference encoders do.
pub fn pack(format: WeightFormat, values: &[f32]) -> Vec<u32> {
    match format {
        WeightFormat::F32 => values.iter().map(|v| v.to_bits()).collect(),
        WeightFormat::F16 => pairs(values, |v| f16::from_f32(v).to_bits()),
        WeightFormat::BF16 => pairs(values, |v| bf16::from_f32(v).to_bits()),
        WeightFormat::Q8_0 => values.chunks_exact(BLOCK).flat_map(pack_q8_0).collect(),
        WeightFormat::Q4_0 => values.chunks_exact(BLOCK).flat_map(pack_q4_0).collect(),
        WeightFormat::Q4_1 => values.chunks_exact(BLOCK).flat_map(pack_q4_1).collect(),
    }
}

fn pairs(values: &[f32], bits: impl Fn(f32) -> u16) -> Vec<u32> {
    values.chunks_exact(2).map(|p| bits(p[0]) as u32 | (bits(p[1]) as u32) << 16).collect()
}

fn pack_q8_0(v: &[f32]) -> Vec<u32> {
    let amax = v.iter().fold(0f32, |a, x| a.max(x.abs()));
    let d = amax / 127.0;
    let id = if d > 0.0 { 1.0 / d } else { 0.0 };
    let q: Vec<u8> = v.iter().map(|x| (x * id).round() as i8 as u8).collect();
    let mut words = vec![f16::from_f32(d).to_bits() as u32];
    words.extend(q.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())));
    words
}

fn nibbles(q: &[u8]) -> impl Iterator<Item = u32> + '_ {
    (0..4).map(|w| (0..4).fold(0, |acc, i| acc | ((q[4 * w + i] | q[4 * w + i + 16] << 4) as u32) << (8 * i)))
}

fn pack_q4_0(v: &[f32]) -> Vec<u32> {
    let peak = v.iter().fold(0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
    let d = peak / -8.0;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let q: Vec<u8> = v.iter().map(|x| (x * id + 8.5).clamp(0.0, 15.0) as u8).collect();
    let mut words = vec![f16::from_f32(d).to_bits() as u32];
    words.extend(nibbles(&q));
    words
}

fn pack_q4_1(v: &[f32]) -> Vec<u32> {
    let (lo, hi) = v.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    let d = (hi - lo) / 15.0;
    let id = if d > 0.0 { 1.0 / d } else { 0.0 };
    let q: Vec<u8> = v.iter().map(|x| ((x - lo) * id + 0.5).clamp(0.0, 15.0) as u8).collect();
    let mut words = vec![f16::from_f32(d).to_bits() as u32 | (f16::from_f32(lo).to_bits() as u32) << 16];
    words.extend(nibbles(&q));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_those_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_of(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{bits:04x}: {ours}, {theirs}"
            );
        }
    }

    #[test]
    fn packed_values_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0).collect();
        for (format, step) in [
            (WeightFormat::F32, 0.0),
            (WeightFormat::F16, 0.004),
            (WeightFormat::BF16, 0.016),
            (WeightFormat::Q8_0, 0.032),
            (WeightFormat::Q4_0, 0.5),
            (WeightFormat::Q4_1, 0.28),
        ] {
            let words = pack(format, &values);
            assert_eq!(words.len(), format.words(values.len()));
            let mut back = vec![0f32; values.len()];
            unpack(format, &words, &mut back);
            for (a, b) in values.iter().zip(&back) {
                assert!((a - b).abs() <= step, "{}: {a} came back as {b}", format.name());
            }
        }
    }
}
