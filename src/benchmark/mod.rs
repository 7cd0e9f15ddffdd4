//! How fast a device is: at what training mostly does, at single kernels, and at most.

mod limits;
mod rows;

pub use limits::{Limits, limits};
pub use rows::{Bench, Row, Timing};

use crate::clock::Instant;
use crate::device::Device;
use crate::error::Result;
use crate::format::WeightFormat;
use crate::ops::low_rank::{self, Factor, Narrow, Pair};
use crate::ops::matmul::{self, Epilogue, Matrix};
use crate::ops::{Columns, attention};
use crate::plan::{Buf, Plan, SequenceId};
use serde::Serialize;

/// The gate of SmolLM2-135M for two rows of 256 tokens: [N, I] · [I, O].
const N: usize = 512;
const I: usize = 576;
const O: usize = 1536;
const MILLISECONDS: f64 = 1500.0;

/// Additions and multiplications a second of the forward product, in units of 10⁹; takes about two seconds.
pub async fn gflops(device: &mut Device) -> Result<f64> {
    let mut bench = Bench::default();
    product(&mut bench, WeightFormat::BF16);
    bench.prepare(device).await?;
    let row = &bench.rows[0];
    let ms = fastest(device, &bench.plan, row.sequence, bench.probe(row), MILLISECONDS).await?;
    Ok(row.flops / ms / 1e6)
}

/// Rounds at least: on a busy machine one or two say nothing.
const LEAST_ROUNDS: usize = 5;

/// Milliseconds of a run, in the fastest of the rounds that fit into so much time. `any` is a buffer to wait for.
async fn fastest(device: &mut Device, plan: &Plan, sequence: SequenceId, any: Buf, total_ms: f64) -> Result<f64> {
    // The first run compiles and touches memory for the first time.
    device.run(plan, sequence, u32::MAX)?;
    device.read(any, 0, 4).await?;
    let (mut runs, mut rounds, mut best) = (1, 0, f64::INFINITY);
    let start = Instant::now();
    while rounds < LEAST_ROUNDS || start.elapsed_ms() < total_ms {
        rounds += 1;
        let round = Instant::now();
        for _ in 0..runs {
            device.run(plan, sequence, u32::MAX)?;
        }
        device.read(any, 0, 4).await?;
        let ms = round.elapsed_ms().max(1.0);
        best = best.min(ms / runs as f64);
        // Rounds of about an eighth of it all: long against a clock of milliseconds and the wait for a read.
        runs = ((runs as f64 * total_ms / 8.0 / ms) as usize).clamp(1, 8 * runs);
    }
    Ok(best)
}

/// A kernel as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub kernel: String,
    pub shape: String,
    /// Of the fastest sample.
    pub ms: f64,
    pub gflops: f64,
    pub gbytes: f64,
    /// Share of what the device can do at most.
    pub of_limit: f64,
}

/// The kernels that a step of SmolLM2-135M spends its time in; takes some seconds. `benches/kernels.rs` has them all.
pub async fn kernels(mut device: Device, limits: &Limits) -> Result<Vec<Figure>> {
    let mut bench = Bench::default();
    [WeightFormat::BF16, WeightFormat::Q8_0, WeightFormat::Q4_0].into_iter().for_each(|f| product(&mut bench, f));
    backward(&mut bench);
    gradient(&mut bench);
    attended(&mut bench);
    let device = &mut device;
    bench.prepare(device).await?;
    let mut figures = Vec::new();
    for row in &bench.rows {
        let ms = bench.time(device, row, 5, 20.0).await?.best_ms;
        let bytes = bench.bytes(row);
        figures.push(Figure {
            kernel: row.name.clone(),
            shape: row.shape.clone(),
            ms,
            gflops: row.flops / ms / 1e6,
            gbytes: bytes / ms / 1e6,
            of_limit: limits.ideal_ms(row.flops, bytes) / ms,
        });
    }
    Ok(figures)
}

fn product(b: &mut Bench, format: WeightFormat) {
    b.row("matmul.forward", format!("{} {N}x{I}x{O}", format.name()), 2 * N * I * O, |b| {
        let (x, w, none, y) = (b.floats(N * I), b.matrix(format, O, I), b.floats(4), b.floats(N * O));
        matmul::forward(&mut b.plan, "", N, x, &w, 1.0, Epilogue::default(), none, y);
    });
}

fn backward(b: &mut Bench) {
    b.row("matmul.backward", format!("bf16 {N}x{O}x{I}"), 2 * N * I * O, |b| {
        let w: Matrix = b.matrix(WeightFormat::BF16, O, I);
        let (dy, none, dx) = (b.floats(N * O), b.floats(4), b.floats(N * I));
        matmul::backward(&mut b.plan, "", N, dy, &w, None, false, none, dx);
    });
}

fn gradient(b: &mut Bench) {
    const R: usize = 16;
    b.row("low_rank.gradient", format!("{N}x{R}x{O}"), 2 * N * R * O, |b| {
        let t = Narrow { buf: b.floats(N * R), width: R };
        let (x, grads) = (Columns { buf: b.floats(N * O), ld: O, col: 0 }, b.floats(R * O));
        let factor = Factor { rank: R as u32, width: O as u32, scale: 1.0, ..Default::default() };
        let factors = [factor, Factor::default(), Factor::default()];
        low_rank::gradient(&mut b.plan, "", N, Pair { t, x, factors }, None, grads);
    });
}

fn attended(b: &mut Bench) {
    let s = attention::Shape { n: N, heads: 9, kv_heads: 3, d: 64, scale: 0.125, ..Default::default() };
    // Two products over the causal half.
    b.row("attention.forward", format!("{N}x9/3x64"), 2 * N * N * s.heads * s.d, |b| {
        let spans = b.words((0..N).flat_map(|_| [0, N as u32]).collect());
        let (qkv, o, lse) = (b.floats(N * s.width()), b.floats(N * s.heads * s.d), b.floats(N * s.heads));
        attention::forward(&mut b.plan, "", s, spans, qkv, qkv, o, lse);
    });
}
