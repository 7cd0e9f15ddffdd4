//! How a file stores a tensor's values, and their way into `format`'s words.
//!
//! Block layouts are ggml's (`ggml-common.h`). Types that a shader reads (`format.rs`) are kept as they are, their
//! bits moved to word boundaries; the others are decoded and packed again when they are loaded.

use crate::format::{self, WeightFormat};
use half::{bf16, f16};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum StoredType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q6_K,
}

impl StoredType {
    pub const ALL: [StoredType; 10] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q6_K,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Values in a block.
    pub fn block_values(self) -> u64 {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_K | Self::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    /// The format in which these values lose nothing or, where no shader reads the blocks, next to nothing.
    pub fn default_format(self) -> WeightFormat {
        self.kept_as().unwrap_or(WeightFormat::BF16)
    }

    /// The format that holds the very same numbers.
    fn kept_as(self) -> Option<WeightFormat> {
        match self {
            Self::F32 => Some(WeightFormat::F32),
            Self::F16 => Some(WeightFormat::F16),
            Self::BF16 => Some(WeightFormat::BF16),
            Self::Q8_0 => Some(WeightFormat::Q8_0),
            Self::Q4_0 => Some(WeightFormat::Q4_0),
            Self::Q4_1 => Some(WeightFormat::Q4_1),
            Self::Q5_0 | Self::Q5_1 | Self::Q4_K | Self::Q6_K => None,
        }
    }

    /// Where the f16 numbers of a block lie.
    fn scales(self) -> &'static [usize] {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => &[],
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K => &[0, 2],
            Self::Q6_K => &[208],
        }
    }
}

/// Whole rows as words of `format`. Err: the value that has no place there, and why.
pub fn to_words(stored: StoredType, bytes: &[u8], format: WeightFormat) -> Result<Vec<u32>, (u64, String)> {
    check_finite(stored, bytes)?;
    if stored.kept_as() == Some(format) {
        return Ok(keep(stored, bytes));
    }
    let values = decode(stored, bytes);
    let top = largest(format);
    match first(&values, |v| v.abs() > top) {
        Some(i) => Err((i as u64, format!("{} is too large for {} (at most {top})", values[i], format.name()))),
        None => Ok(format::pack(format, &values)),
    }
}

/// All values as f32.
pub fn to_f32(stored: StoredType, bytes: &[u8]) -> Result<Vec<f32>, (u64, String)> {
    check_finite(stored, bytes)?;
    Ok(decode(stored, bytes))
}

/// File formats do not promise finite numbers; one NaN in a weight makes every output NaN.
fn check_finite(stored: StoredType, bytes: &[u8]) -> Result<(), (u64, String)> {
    let (words, halves) = (bytes.as_chunks().0, bytes.as_chunks().0);
    let bad = match stored {
        StoredType::F32 => first(words, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        StoredType::F16 => first(halves, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        StoredType::BF16 => first(halves, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        _ => {
            let bad = |b: &[u8]| stored.scales().iter().any(|&at| b[at + 1] & 0x7c == 0x7c);
            bytes.chunks_exact(stored.block_bytes() as usize).position(bad)
        }
    };
    match bad {
        Some(i) => Err((i as u64 * stored.block_values(), "NaN or infinite".into())),
        None => Ok(()),
    }
}

/// The first of `values` that is `bad`. A search that may end anywhere is no SIMD: each piece is looked at as a whole.
fn first<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<usize> {
    const PIECE: usize = 1024;
    let any = |piece: &[T]| piece.iter().fold(false, |any, v| any | bad(*v));
    let piece = PIECE * values.chunks(PIECE).position(any)?;
    values[piece..].iter().position(|v| bad(*v)).map(|at| piece + at)
}

/// Values as a file stores them, in a type that shaders read. Err: the value that has no place there, and why.
pub fn encode(stored: StoredType, values: &[f32]) -> Result<Vec<u8>, (u64, String)> {
    let format = stored.kept_as().expect("a type that is written");
    let top = largest(format);
    if let Some(i) = values.iter().position(|v| !v.is_finite() || v.abs() > top) {
        return Err((i as u64, format!("{} does not fit into {} (at most {top})", values[i], format.name())));
    }
    let words = match format {
        // Vectors may have odd lengths, which fill no pairs of halves.
        WeightFormat::F32 => return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        WeightFormat::F16 => return Ok(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        WeightFormat::BF16 => return Ok(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        _ => format::pack(format, values),
    };
    let block = format.words(format::BLOCK);
    // The words that hold a scale alone lose their empty half: the inverse of `keep`.
    let head = if format == WeightFormat::Q4_1 { 4 } else { 2 };
    let bytes = |b: &[u32]| {
        let (first, rest) = (b[0].to_le_bytes(), b[1..].iter().flat_map(|w| w.to_le_bytes()));
        first.into_iter().take(head).chain(rest).collect::<Vec<u8>>()
    };
    Ok(words.chunks_exact(block).flat_map(bytes).collect())
}

/// The largest magnitude that stays finite in `format`: an f16 number or scale must not overflow.
fn largest(format: WeightFormat) -> f32 {
    let f16_max = f16::MAX.to_f32();
    match format {
        WeightFormat::F32 => f32::MAX,
        WeightFormat::BF16 => bf16::MAX.to_f32(),
        WeightFormat::F16 | WeightFormat::Q4_1 => f16_max,
        WeightFormat::Q8_0 => f16_max * 127.0,
        WeightFormat::Q4_0 => f16_max * 8.0,
    }
}

/// The same bits, moved to word boundaries.
fn keep(stored: StoredType, bytes: &[u8]) -> Vec<u32> {
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    match stored {
        StoredType::Q8_0 | StoredType::Q4_0 => {
            let block = stored.block_bytes() as usize;
            let mut words = Vec::with_capacity(bytes.len() / block * (block + 2) / 4);
            for b in bytes.chunks_exact(block) {
                words.push(u16::from_le_bytes([b[0], b[1]]) as u32);
                words.extend(b[2..].chunks_exact(4).map(word));
            }
            words
        }
        _ => bytes.chunks_exact(4).map(word).collect(),
    }
}

fn decode(stored: StoredType, bytes: &[u8]) -> Vec<f32> {
    let (block, size) = (stored.block_values() as usize, stored.block_bytes() as usize);
    let mut out = vec![0f32; bytes.len() / size * block];
    for (y, b) in out.chunks_exact_mut(block).zip(bytes.chunks_exact(size)) {
        match stored {
            StoredType::F32 => y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            StoredType::F16 => y[0] = half_at(b, 0),
            StoredType::BF16 => y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            StoredType::Q8_0 => decode_q8_0(b, y),
            StoredType::Q4_0 => decode_nibbles(&b[2..], y, |q, _| half_at(b, 0) * (q as f32 - 8.0)),
            StoredType::Q4_1 => decode_nibbles(&b[4..], y, |q, _| half_at(b, 0) * q as f32 + half_at(b, 2)),
            StoredType::Q5_0 => decode_nibbles(&b[6..], y, |q, j| half_at(b, 0) * (fifth(b, 2, q, j) - 16.0)),
            StoredType::Q5_1 => decode_nibbles(&b[8..], y, |q, j| half_at(b, 0) * fifth(b, 4, q, j) + half_at(b, 2)),
            StoredType::Q4_K => decode_q4_k(b, y),
            StoredType::Q6_K => decode_q6_k(b, y),
        }
    }
    out
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn decode_q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = d * q as i8 as f32;
    }
}

/// The low nibble of byte j is value j, the high nibble value j + 16.
fn decode_nibbles(q: &[u8], y: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (j, &q) in q[..16].iter().enumerate() {
        y[j] = value(q & 15, j);
        y[j + 16] = value(q >> 4, j + 16);
    }
}

/// Value j of a 5-bit block: its nibble, and bit j of the u32 at `at` as the fifth bit.
fn fifth(b: &[u8], at: usize, nibble: u8, j: usize) -> f32 {
    let bit = b[at + j / 8] >> (j % 8) & 1;
    (nibble | bit << 4) as f32
}

fn decode_q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, q) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..]);
    for (i, (y, q)) in y.chunks_exact_mut(64).zip(q.chunks_exact(32)).enumerate() {
        let (lo, hi) = y.split_at_mut(32);
        for (y, shift, j) in [(lo, 0, 2 * i), (hi, 4, 2 * i + 1)] {
            let (scale, min) = scale_min(scales, j);
            let (d, m) = (d * scale as f32, dmin * min as f32);
            for (y, q) in y.iter_mut().zip(q) {
                *y = d * (q >> shift & 15) as f32 - m;
            }
        }
    }
}

/// The j-th of eight 6-bit (scale, minimum) pairs packed in 12 bytes.
fn scale_min(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

fn decode_q6_k(b: &[u8], y: &mut [f32]) {
    let (lo, hi, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, y) in y.chunks_exact_mut(128).enumerate() {
        let (lo, hi, scales) = (&lo[64 * i..], &hi[32 * i..], &scales[8 * i..]);
        for (j, y) in y.iter_mut().enumerate() {
            let low = lo[j % 64] >> (4 * (j / 64)) & 15;
            let high = hi[j % 32] >> (2 * (j / 32)) & 3;
            *y = d * scales[j / 16] as i8 as f32 * ((low | high << 4) as f32 - 32.0);
        }
    }
}
