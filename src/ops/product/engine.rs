//! Which unit of the processor multiplies, and what it wants of its operands.

use super::dots::Dots;
#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(not(target_arch = "aarch64"))]
use super::plain;
use super::tile::Tile;
#[cfg(target_arch = "wasm32")]
use super::wasm;
#[cfg(target_arch = "x86_64")]
use super::{Mat, amx, x86};
use crate::num::Float;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};
use std::any::Any;

/// Multiply-adds from which on packing A for AMX is worth its time.
#[cfg(target_arch = "x86_64")]
const WORTH_PACKING: usize = 1 << 21;

/// What multiplies.
#[derive(Clone, Copy)]
pub(super) enum Engine<F: 'static> {
    Tile(&'static Tile<F>),
    /// With so many parts to a number of B.
    #[cfg(target_arch = "x86_64")]
    Amx(usize),
}

impl<F: Float> Engine<F> {
    /// For a product of so many rows, columns and terms, whose B is made of so many bf16.
    pub fn choose((_rows, cols, _k): (usize, usize, usize), _parts: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let worth = _rows >= amx::WIDE && cols >= 2 * amx::SIDE && _rows * cols * _k >= WORTH_PACKING;
            if is_f32::<F>() && worth && amx::available() {
                return Engine::Amx(_parts);
            }
        }
        Engine::Tile(tile(cols))
    }

    /// Elements that k rows of a panel's neighbouring columns take: of B, and of a factor.
    pub fn room(self, k: usize, rank: usize) -> [usize; 2] {
        match self {
            Engine::Tile(tile) => [k * tile.cols, rank * tile.cols],
            #[cfg(target_arch = "x86_64")]
            Engine::Amx(parts) => [amx::room(k, parts), amx::room(rank, amx::ALL)],
        }
    }

    /// Columns that are neighbours in a panel.
    pub fn group(self) -> usize {
        match self {
            Engine::Tile(tile) => tile.cols,
            #[cfg(target_arch = "x86_64")]
            Engine::Amx(_) => amx::WIDE,
        }
    }

    /// Rows of B come in multiples of this, or leave a gap.
    pub fn granule(self) -> usize {
        match self {
            Engine::Tile(_) => 1,
            #[cfg(target_arch = "x86_64")]
            Engine::Amx(_) => amx::DEEP,
        }
    }

    /// Columns of the result that are summed side by side.
    pub fn width(self) -> usize {
        match self {
            Engine::Tile(tile) => tile.cols,
            #[cfg(target_arch = "x86_64")]
            Engine::Amx(_) => amx::SIDE,
        }
    }
}

/// The tile for products of `cols` columns on this machine.
pub(super) fn tile<F: Float>(cols: usize) -> &'static Tile<F> {
    let tile = candidates(cols).into_iter().find_map(|tile| tile.downcast_ref());
    tile.expect("floats are f32 and f64")
}

#[cfg(target_arch = "x86_64")]
fn candidates(cols: usize) -> [&'static dyn Any; 2] {
    match level() {
        Level::Avx512 if cols <= x86::AVX512_NARROW.cols => [&x86::AVX512_NARROW, &x86::AVX512_64],
        // By time: the pair is somewhat slower for its width, and wastes less of 64 or 128 columns.
        Level::Avx512 if 17 * cols.div_ceil(x86::AVX512_PAIR.cols) < 24 * cols.div_ceil(x86::AVX512.cols) => {
            [&x86::AVX512_PAIR, &x86::AVX512_64]
        }
        Level::Avx512 => [&x86::AVX512, &x86::AVX512_64],
        Level::Avx2 if cols <= x86::AVX2_NARROW.cols => [&x86::AVX2_NARROW, &x86::AVX2_64],
        Level::Avx2 => [&x86::AVX2, &x86::AVX2_64],
        Level::Baseline => [&plain::PLAIN, &plain::PLAIN_64],
    }
}

#[cfg(target_arch = "aarch64")]
fn candidates(_cols: usize) -> [&'static dyn Any; 2] {
    [&neon::NEON, &neon::NEON_64]
}

#[cfg(target_arch = "wasm32")]
fn candidates(_cols: usize) -> [&'static dyn Any; 2] {
    [&wasm::SIMD128, &plain::PLAIN_64]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "wasm32")))]
fn candidates(_cols: usize) -> [&'static dyn Any; 2] {
    [&plain::PLAIN, &plain::PLAIN_64]
}

/// The kernels for products of a few rows on this machine.
pub(super) fn dots<F: Float>() -> &'static Dots<F> {
    #[cfg(target_arch = "x86_64")]
    let all: [&'static dyn Any; 2] = match level() {
        Level::Avx512 => [&x86::DOTS_512, &x86::DOTS_512_64],
        Level::Avx2 => [&x86::DOTS_256, &x86::DOTS_256_64],
        Level::Baseline => [&plain::DOTS, &plain::DOTS_64],
    };
    #[cfg(target_arch = "aarch64")]
    let all: [&'static dyn Any; 2] = [&neon::DOTS, &neon::DOTS_64];
    #[cfg(target_arch = "wasm32")]
    let all: [&'static dyn Any; 2] = [&wasm::DOTS, &plain::DOTS_64];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "wasm32")))]
    let all: [&'static dyn Any; 2] = [&plain::DOTS, &plain::DOTS_64];
    all.into_iter().find_map(|dots| dots.downcast_ref()).expect("floats are f32 and f64")
}

#[cfg(target_arch = "x86_64")]
pub(super) fn is_f32<F: 'static>() -> bool {
    std::any::TypeId::of::<F>() == std::any::TypeId::of::<f32>()
}

#[cfg(target_arch = "x86_64")]
pub(super) fn as_f32<'a, F: 'static>(mat: Mat<'a, F>) -> Mat<'a, f32> {
    Mat { data: as_f32_slice(mat.data), ld: mat.ld, transposed: mat.transposed }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn as_f32_slice<F: 'static>(data: &[F]) -> &[f32] {
    assert!(is_f32::<F>());
    // SAFETY: the same type.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn as_f32_mut<F: 'static>(data: &mut [F]) -> &mut [f32] {
    assert!(is_f32::<F>());
    // SAFETY: the same type.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len()) }
}
