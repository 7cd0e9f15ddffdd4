//! How fast a device is at what training mostly does: products with a frozen matrix.

use crate::clock::Instant;
use crate::device::Device;
use crate::error::Result;
use crate::format::{self, WeightFormat};
use crate::ops::matmul::{self, Epilogue, Matrix};
use crate::plan::{Elem, Plan};

/// The gate of SmolLM2-135M for two rows of 256 tokens: [N, I] · [I, O].
const N: usize = 512;
const I: usize = 576;
const O: usize = 1536;
const MILLISECONDS: f64 = 1500.0;

/// Additions and multiplications a second of the forward product, in units of 10⁹; takes about two seconds.
pub async fn gflops(device: &mut Device) -> Result<f64> {
    let mut plan = Plan::default();
    let format = WeightFormat::BF16;
    let buf = plan.persistent("weight", Elem::Word, O * format.words(I));
    let w = Matrix::at(buf, 0, format, O, I);
    let [x, y, none] =
        [("x", N * I), ("y", N * O), ("none", 4)].map(|(name, len)| plan.persistent(name, Elem::Float, len));
    let sequence = plan.begin("benchmark");
    matmul::forward(&mut plan, "product", N, x, &w, 1.0, Epilogue::default(), none, y);
    device.prepare(&plan).await?;
    let values: Vec<f32> = (0..O.max(N) * I).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
    device.write(buf, 0, &format::pack(format, &values[..O * I]));
    device.write_floats(x, 0, &values[..N * I]);
    // The first run compiles, warms up and shows how many fit.
    let (mut runs, mut fastest) = (1, 0f64);
    let start = Instant::now();
    while start.elapsed_ms() < MILLISECONDS {
        let round = Instant::now();
        for _ in 0..runs {
            device.run(&plan, sequence, 0)?;
        }
        device.read(y, 0, 4).await?;
        let seconds = (round.elapsed_ms() / 1e3).max(1e-3);
        fastest = fastest.max((runs * 2 * N * I * O) as f64 / seconds / 1e9);
        // Rounds of about a fifth of a second: long against a clock of milliseconds and the wait for a read.
        runs = ((runs as f64 * 0.2 / seconds) as usize).clamp(1, 8 * runs);
    }
    Ok(fastest)
}
