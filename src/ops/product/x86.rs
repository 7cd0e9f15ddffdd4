//! Tiles for AVX-512 (32 registers of 16 floats) and AVX2 with FMA (16 of 8).

use super::dots::dots;
use super::tile::{tile, vector};
use std::arch::x86_64::*;

vector!(__m512: f32, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_mul_ps,
    c + a * b = _mm512_fmadd_ps(a, b, c));
vector!(__m512d: f64, 8, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_add_pd, _mm512_mul_pd,
    c + a * b = _mm512_fmadd_pd(a, b, c));
vector!(__m256: f32, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_mul_ps,
    c + a * b = _mm256_fmadd_ps(a, b, c));
vector!(__m256d: f64, 4, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd, _mm256_add_pd, _mm256_mul_pd,
    c + a * b = _mm256_fmadd_pd(a, b, c));

tile!(AVX512: f32, __m512, 3, [1 2 3 4 5 6 7 8], "avx512f");
tile!(AVX512_PAIR: f32, __m512, 2, [1 2 3 4 5 6 7 8], "avx512f");
tile!(AVX512_NARROW: f32, __m512, 1, [1 2 3 4 5 6 7 8], "avx512f");
tile!(AVX512_64: f64, __m512d, 3, [1 2 3 4 5 6 7 8], "avx512f");
tile!(AVX2: f32, __m256, 2, [1 2 3 4 5 6], "avx2,fma");
tile!(AVX2_NARROW: f32, __m256, 1, [1 2 3 4 5 6 7 8], "avx2,fma");
tile!(AVX2_64: f64, __m256d, 2, [1 2 3 4 5 6], "avx2,fma");

dots!(DOTS_512: f32, __m512, [1 2 3 4], "avx512f");
dots!(DOTS_512_64: f64, __m512d, [1 2 3 4], "avx512f");
dots!(DOTS_256: f32, __m256, [1 2], "avx2,fma");
dots!(DOTS_256_64: f64, __m256d, [1 2], "avx2,fma");

/// Lanes that a step of [`transpose`] takes from two rows `apart`, the upper's (those of the second row are 16 on).
const fn lanes(apart: usize, upper: bool) -> [i32; 16] {
    let mut lanes = [0; 16];
    let mut at = 0;
    while at < 16 {
        let own = at & apart == 0;
        lanes[at] = match (upper, own) {
            (true, true) => at,
            (true, false) => 16 + at - apart,
            (false, true) => at + apart,
            (false, false) => 16 + at,
        } as i32;
        at += 1;
    }
    lanes
}

/// Transposes 16 rows of 16 words: blocks of 8 × 8 change places, then those of 4 × 4 within them, and so on.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: &mut [__m512i; 16]) {
    const LANES: [[[i32; 16]; 2]; 4] = {
        let mut all = [[[0; 16]; 2]; 4];
        let mut step = 0;
        while step < 4 {
            all[step] = [lanes(8 >> step, true), lanes(8 >> step, false)];
            step += 1;
        }
        all
    };
    for (step, [upper, lower]) in LANES.iter().enumerate() {
        let apart = 8 >> step;
        // SAFETY: 16 words each.
        let (upper, lower) =
            unsafe { (_mm512_loadu_si512(upper.as_ptr().cast()), _mm512_loadu_si512(lower.as_ptr().cast())) };
        for row in (0..16).filter(|row| row & apart == 0) {
            let (a, b) = (rows[row], rows[row + apart]);
            rows[row] = _mm512_permutex2var_epi32(a, upper, b);
            rows[row + apart] = _mm512_permutex2var_epi32(a, lower, b);
        }
    }
}

/// Rows of up to 16 columns from `part`, columns of `k` floats one after the other, `ld` apart, into rows `width`
/// apart.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn lay_transposed(out: &mut [f32], width: usize, part: &[f32], ld: usize, k: usize, cols: usize) {
    assert!((1..=16).contains(&cols) && out.len() + width >= k * width + cols && part.len() >= (cols - 1) * ld + k);
    let lanes = |some: usize| u16::MAX >> (16 - some);
    for first in (0..k).step_by(16) {
        let deep = (k - first).min(16);
        let mut block = [_mm512_setzero_si512(); 16];
        for (col, x) in block.iter_mut().enumerate().take(cols) {
            // SAFETY: `deep` floats of each column, by the assertion; the others are masked.
            *x = unsafe { _mm512_maskz_loadu_epi32(lanes(deep), part.as_ptr().add(col * ld + first).cast()) };
        }
        transpose(&mut block);
        for (row, x) in block.into_iter().enumerate().take(deep) {
            // SAFETY: `cols` floats of each row.
            unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().add((first + row) * width).cast(), lanes(cols), x) };
        }
    }
}
