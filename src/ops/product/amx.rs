//! Products in f32 on AMX, the matrix unit of Intel's servers since Sapphire Rapids, which multiplies bf16 at sixteen
//! times the rate of AVX-512.
//!
//! A float is the sum of three bf16, exactly: a = a₀ + a₁ + a₂, each at most 2⁻⁸ of the one before. Of the nine
//! products of two floats' parts six are summed, in f32: a₂b₀ + a₁b₀ + a₁b₁ + a₀b₁ + a₀b₂ + a₀b₀. The others are below
//! 2⁻²³ of the term, so this is f32, at half again the rate of AVX-512. A weight in bf16 is b₀ alone, and one in f16 or
//! of four bits b₀ + b₁: then three or five products are all there are, at up to three times its rate.
//!
//! Operands are stored as the unit loads them, tile by tile: 16 rows of 16 words for each part of the numbers. A word
//! is two neighbours along k. A tile of A holds 16 rows and 32 columns, one of B 32 rows and 16 columns.

use super::Mat;
use super::x86::transpose;
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Columns of A, or rows of B, in a tile.
pub(super) const DEEP: usize = 32;
/// Rows of A, or columns of B, in a tile.
pub(super) const WIDE: usize = 16;
/// Words of one part of a tile.
const PART: usize = 256;
/// Parts of any float.
pub(super) const ALL: usize = 3;
/// Rows and columns of the result that are summed side by side, in four tiles.
pub(super) const SIDE: usize = 2 * WIDE;

/// Words that the tiles along k take.
pub(super) fn room(k: usize, parts: usize) -> usize {
    k.div_ceil(DEEP) * parts * PART
}

/// Whether the processor has AMX and the system lends it.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_unit() && lent())
}

fn has_unit() -> bool {
    use std::arch::is_x86_feature_detected as has;
    // AMX-BF16 and AMX-TILE, which std does not detect yet.
    let bits = __cpuid_count(7, 0).edx;
    bits >> 22 & bits >> 24 & 1 == 1 && has!("avx512f") && has!("avx512bw")
}

/// Linux lends the 8 KiB of state to processes that ask for it.
#[cfg(target_os = "linux")]
fn lent() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that changes rcx and r11 beside its result, and no memory.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA, out("rcx") _, out("r11") _)
    };
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn lent() -> bool {
    false
}

/// Up to 16 floats, 0 beyond.
#[target_feature(enable = "avx512f")]
fn load(values: &[f32]) -> __m512 {
    let mask = if values.len() >= 16 { u16::MAX } else { (1 << values.len()) - 1 };
    // SAFETY: lanes beyond the slice are masked.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn store(words: &mut [f32], x: __m512i) {
    assert!(words.len() >= 16);
    // SAFETY: 16 words.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), x) }
}

/// Splits off the next part of each float: its upper half, cut, or rounded where it is the last. The rest is exact.
#[target_feature(enable = "avx512f")]
fn next(x: &mut __m512, last: bool) -> __m512i {
    let bits = _mm512_castps_si512(*x);
    let bits = if last { _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)) } else { bits };
    let part = _mm512_and_si512(bits, _mm512_set1_epi32(!0xffff));
    *x = _mm512_sub_ps(*x, _mm512_castsi512_ps(part));
    part
}

/// The parts of 32 floats along k.
#[target_feature(enable = "avx512f,avx512bw")]
fn along<const PARTS: usize>(values: &[f32]) -> [__m512i; PARTS] {
    const UPPER: [i16; 32] = {
        let mut lanes = [0; 32];
        let mut at = 0;
        while at < 32 {
            lanes[at] = 2 * at as i16 + 1;
            at += 1;
        }
        lanes
    };
    // SAFETY: 32 lanes.
    let upper = unsafe { _mm512_loadu_si512(UPPER.as_ptr().cast()) };
    let (mut a, mut b) = (load(values), load(&values[values.len().min(16)..]));
    std::array::from_fn(|part| {
        let last = part + 1 == PARTS;
        _mm512_permutex2var_epi16(next(&mut a, last), upper, next(&mut b, last))
    })
}

/// The parts of two rows that are neighbours along k.
#[target_feature(enable = "avx512f")]
fn across<const PARTS: usize>(mut even: __m512, mut odd: __m512) -> [__m512i; PARTS] {
    std::array::from_fn(|part| {
        let last = part + 1 == PARTS;
        _mm512_or_si512(_mm512_srli_epi32::<16>(next(&mut even, last)), next(&mut odd, last))
    })
}

/// Stores `k` columns of up to 16 rows of A into their tiles, from column 0 on; zeros where there is nothing.
///
/// # Safety
/// [`available`]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn lay_rows(tiles: &mut [f32], a: Mat<f32>, rows: usize, k: usize) {
    for (tile, first) in tiles.chunks_exact_mut(ALL * PART).zip((0..k).step_by(DEEP)) {
        for row in 0..WIDE {
            let values = if row < rows { &a.data[row * a.ld + first..][..DEEP.min(k - first)] } else { &[] };
            for (part, words) in along::<ALL>(values).into_iter().zip(tile.chunks_exact_mut(PART)) {
                store(&mut words[row * 16..], part);
            }
        }
    }
}

/// Stores rows × cols (up to 16) of B, from row `k0` on, as tiles of so many parts. `k0` is even, and a multiple of 32
/// where `b` is transposed.
///
/// # Safety
/// [`available`]
pub(super) unsafe fn lay(tiles: &mut [f32], parts: usize, k0: usize, b: Mat<f32>, rows: usize, cols: usize) {
    // SAFETY: the caller's.
    unsafe {
        match (parts, b.transposed) {
            (1, false) => lay_rows_of_b::<1>(tiles, k0, b, rows, cols),
            (2, false) => lay_rows_of_b::<2>(tiles, k0, b, rows, cols),
            (_, false) => lay_rows_of_b::<ALL>(tiles, k0, b, rows, cols),
            (1, true) => lay_columns_of_b::<1>(tiles, k0, b, rows, cols),
            (2, true) => lay_columns_of_b::<2>(tiles, k0, b, rows, cols),
            (_, true) => lay_columns_of_b::<ALL>(tiles, k0, b, rows, cols),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn lay_rows_of_b<const PARTS: usize>(tiles: &mut [f32], k0: usize, b: Mat<f32>, rows: usize, cols: usize) {
    let row = |k: usize| load(if k < rows { &b.data[k * b.ld..][..cols] } else { &[] });
    for k in (0..rows).step_by(2) {
        let tile = &mut tiles[(k0 + k) / DEEP * PARTS * PART..][..PARTS * PART];
        for (part, words) in across::<PARTS>(row(k), row(k + 1)).into_iter().zip(tile.chunks_exact_mut(PART)) {
            store(&mut words[(k0 + k) % DEEP / 2 * 16..], part);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn lay_columns_of_b<const PARTS: usize>(tiles: &mut [f32], k0: usize, b: Mat<f32>, rows: usize, cols: usize) {
    for (tile, k) in tiles[room(k0, PARTS)..].chunks_exact_mut(PARTS * PART).zip((0..rows).step_by(DEEP)) {
        let mut parts = [[_mm512_setzero_si512(); 16]; PARTS];
        for col in 0..cols {
            let values = &b.data[col * b.ld + k..][..DEEP.min(rows - k)];
            along::<PARTS>(values).into_iter().zip(&mut parts).for_each(|(words, part)| part[col] = words);
        }
        for (part, words) in parts.iter_mut().zip(tile.chunks_exact_mut(PART)) {
            transpose(part);
            words.chunks_exact_mut(16).zip(part).for_each(|(words, x)| store(words, *x));
        }
    }
}

/// Begins work with tiles on this thread: all of them 16 rows of 64 bytes.
///
/// # Safety
/// [`available`]
pub(super) unsafe fn begin() {
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1; // the palette
    for tile in 0..8 {
        config.0[16 + 2 * tile] = 64; // bytes of a row
        config.0[48 + tile] = 16; // rows
    }
    // SAFETY: a valid configuration; the caller's that there are tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) }
}

/// Ends it, so that the system has less to keep at each switch.
///
/// # Safety
/// [`available`]
pub(super) unsafe fn end() {
    // SAFETY: the caller's.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// Loads of a part of two tiles of A or of B, and products of all four pairs of tiles.
macro_rules! step {
    (a 0) => { "tileloadd tmm4, [{a0} + {row}]\ntileloadd tmm5, [{a1} + {row}]\n" };
    (a 1) => { "tileloadd tmm4, [{a0} + {row} + 1024]\ntileloadd tmm5, [{a1} + {row} + 1024]\n" };
    (a 2) => { "tileloadd tmm4, [{a0} + {row} + 2048]\ntileloadd tmm5, [{a1} + {row} + 2048]\n" };
    (b 0) => { "tileloadd tmm6, [{b0} + {row}]\ntileloadd tmm7, [{b1} + {row}]\n" };
    (b 1) => { "tileloadd tmm6, [{b0} + {row} + 1024]\ntileloadd tmm7, [{b1} + {row} + 1024]\n" };
    (b 2) => { "tileloadd tmm6, [{b0} + {row} + 2048]\ntileloadd tmm7, [{b1} + {row} + 2048]\n" };
    (x) => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7\n"
    };
}

/// The loop along k; tiles of B are so many bytes.
macro_rules! add_product {
    ($tiles:expr, $a:expr, $b:expr, $sums:expr, $old:expr, $bytes:literal, $([$($step:tt)*])*) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {old:e}, {old:e}",
            "jz 2f",
            "tileloadd tmm0, [{sums} + {wide}]",
            "tileloadd tmm1, [{sums} + {wide} + 64]",
            "tileloadd tmm2, [{sums} + {wide} + 2048]",
            "tileloadd tmm3, [{sums} + {wide} + 2112]",
            "2:",
            concat!($(step!($($step)*)),*),
            "add {a0}, 3072",
            "add {a1}, 3072",
            concat!("add {b0}, ", $bytes),
            concat!("add {b1}, ", $bytes),
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {wide}], tmm0",
            "tilestored [{sums} + {wide} + 64], tmm1",
            "tilestored [{sums} + {wide} + 2048], tmm2",
            "tilestored [{sums} + {wide} + 2112], tmm3",
            tiles = inout(reg) $tiles => _,
            a0 = inout(reg) $a[0].as_ptr() => _,
            a1 = inout(reg) $a[1].as_ptr() => _,
            b0 = inout(reg) $b[0].as_ptr() => _,
            b1 = inout(reg) $b[1].as_ptr() => _,
            sums = in(reg) $sums.as_mut_ptr(),
            old = in(reg) $old as u32,
            row = in(reg) 64usize,
            wide = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// `sums[32][32] = old·sums + a · b` over `k` (not 0) for two strips of A and two of B with so many parts. Small
/// products first.
///
/// # Safety
/// After [`begin`].
pub(super) unsafe fn add_product(parts: usize, k: usize, a: [&[f32]; 2], b: [&[f32]; 2], sums: &mut [f32], old: bool) {
    let tiles = k.div_ceil(DEEP);
    assert!(tiles > 0 && sums.len() == SIDE * SIDE);
    assert!(a.iter().all(|a| a.len() >= room(k, ALL)) && b.iter().all(|b| b.len() >= room(k, parts)), "too few tiles");
    // SAFETY: what is read and written was checked; registers of tiles are this module's alone.
    unsafe {
        match parts {
            1 => add_product!(tiles, a, b, sums, old, 1024, [b 0] [a 2] [x] [a 1] [x] [a 0] [x]),
            2 => add_product!(tiles, a, b, sums, old, 2048, [b 0] [a 2] [x] [a 1] [x] [b 1] [x] [a 0] [x] [b 0] [x]),
            _ => {
                add_product!(tiles, a, b, sums, old, 3072, [b 0] [a 2] [x] [a 1] [x] [b 1] [x] [a 0] [x] [b 2] [x] [b 0] [x])
            }
        }
    }
}
