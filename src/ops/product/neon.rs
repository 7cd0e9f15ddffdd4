//! Tiles for NEON: 32 registers of 4 floats.

use super::dots::dots;
use super::tile::{tile, vector};
use std::arch::aarch64::*;

vector!(float32x4_t: f32, 4, vld1q_f32, vst1q_f32, vdupq_n_f32, vaddq_f32, vmulq_f32,
    c + a * b = vfmaq_f32(c, a, b));
vector!(float64x2_t: f64, 2, vld1q_f64, vst1q_f64, vdupq_n_f64, vaddq_f64, vmulq_f64,
    c + a * b = vfmaq_f64(c, a, b));

tile!(NEON: f32, float32x4_t, 3, [1 2 3 4 5 6 7 8]);
tile!(NEON_64: f64, float64x2_t, 3, [1 2 3 4 5 6 7 8]);

dots!(DOTS: f32, float32x4_t, [1 2 3 4]);
dots!(DOTS_64: f64, float64x2_t, [1 2 3 4]);
