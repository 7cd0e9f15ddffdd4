//! A bench of kernels: a plan with a sequence a row, buffers filled with random numbers, and the time a row takes.

use crate::clock::Instant;
use crate::device::Device;
use crate::error::Result;
use crate::format::{self, WeightFormat};
use crate::num::uniform;
use crate::ops::control::Control;
use crate::ops::matmul::Matrix;
use crate::plan::{Buf, Elem, Plan, SequenceId};

/// One kernel on one shape.
pub struct Row {
    pub name: String,
    pub shape: String,
    /// Additions and multiplications.
    pub flops: f64,
    pub sequence: SequenceId,
}

impl Row {
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.shape)
    }
}

/// Milliseconds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub median_ms: f64,
    /// Of the sample that other load on the machine disturbed least.
    pub best_ms: f64,
    /// CPU time of all threads; not a number where it cannot be asked.
    pub core_ms: f64,
}

#[derive(Default)]
pub struct Bench {
    pub plan: Plan,
    pub rows: Vec<Row>,
    /// Titles of the rows that are made; all where there are none.
    only: Option<Vec<String>>,
    /// Rows get their names, and nothing to run.
    dry: bool,
    /// What each buffer holds before a sample.
    fills: Vec<(Buf, Vec<u32>)>,
}

impl Bench {
    /// For the rows' names alone.
    pub fn dry() -> Bench {
        Bench { dry: true, ..Default::default() }
    }

    /// For rows of these titles.
    pub fn only(titles: &[String]) -> Bench {
        Bench { only: Some(titles.to_vec()), ..Default::default() }
    }

    /// Begins a row, unless it is not asked for.
    pub fn row(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<String>,
        flops: usize,
        build: impl FnOnce(&mut Bench),
    ) {
        let (name, shape) = (name.into(), shape.into());
        let row = Row { name, shape, flops: flops as f64, sequence: self.plan.sequences.len() };
        if self.only.as_ref().is_none_or(|titles| titles.contains(&row.title())) {
            self.plan.begin(&row.name);
            self.rows.push(row);
            if !self.dry {
                build(self);
            }
        }
    }

    pub fn words(&mut self, words: Vec<u32>) -> Buf {
        self.fill(Elem::Word, words)
    }

    pub fn floats(&mut self, len: usize) -> Buf {
        let words = (0..len).map(|i| (uniform(1, 2, i as u64) as f32 - 0.5).to_bits()).collect();
        self.fill(Elem::Float, words)
    }

    fn fill(&mut self, elem: Elem, words: Vec<u32>) -> Buf {
        let buf = self.plan.persistent("", elem, words.len());
        self.fills.push((buf, words));
        buf
    }

    pub fn control(&mut self) -> Buf {
        let c = Control { rows: 64, inv_tokens: 0.01, lr: 1e-4, bias1: 0.5, bias2: 0.5, ..Default::default() };
        self.words(c.words().to_vec())
    }

    pub fn matrix(&mut self, format: WeightFormat, rows: usize, cols: usize) -> Matrix {
        let values: Vec<f32> = (0..rows * cols).map(|i| uniform(3, 4, i as u64) as f32 - 0.5).collect();
        let buf = self.words(format::pack(format, &values));
        Matrix::at(buf, 0, format, rows, cols)
    }

    /// Bytes that the row's steps read and write at least.
    pub fn bytes(&self, row: &Row) -> f64 {
        self.plan.sequences[row.sequence].steps.iter().map(|step| step.bytes() as f64).sum()
    }

    /// Allocates, and fills all buffers.
    pub async fn prepare(&self, device: &mut Device) -> Result<()> {
        device.prepare(&self.plan).await?;
        self.fills.iter().for_each(|(buf, words)| device.write(*buf, 0, words));
        Ok(())
    }

    /// A float buffer of the row, to wait for.
    pub fn probe(&self, row: &Row) -> Buf {
        let mut used = self.plan.sequences[row.sequence].steps.iter().flat_map(|step| &step.bufs);
        *used.find(|buf| self.plan.decl(**buf).elem == Elem::Float).expect("a kernel has a float buffer")
    }

    /// Times a row by `samples` of up to 16 runs, each about `sample_ms` long.
    pub async fn time(&self, device: &mut Device, row: &Row, samples: usize, sample_ms: f64) -> Result<Timing> {
        self.sample(device, row, 1).await?;
        let (once, _) = self.sample(device, row, 1).await?;
        let repeats = (sample_ms / once).clamp(1.0, 16.0) as usize;
        let (mut walls, mut core_ms) = (Vec::new(), 0.0);
        for _ in 0..samples {
            let (wall, core) = self.sample(device, row, repeats).await?;
            walls.push(wall);
            core_ms += core / samples as f64;
        }
        walls.sort_by(f64::total_cmp);
        Ok(Timing { median_ms: walls[walls.len() / 2], best_ms: walls[0], core_ms })
    }

    /// Milliseconds and CPU milliseconds of one run, from `repeats` in a row. Kernels that work in place would
    /// otherwise run into denormals, so buffers are filled anew before.
    async fn sample(&self, device: &mut Device, row: &Row, repeats: usize) -> Result<(f64, f64)> {
        let used: Vec<Buf> = self.plan.sequences[row.sequence].steps.iter().flat_map(|s| s.bufs.clone()).collect();
        for (buf, words) in self.fills.iter().filter(|(buf, _)| used.contains(buf)) {
            device.write(*buf, 0, words);
        }
        let any = self.probe(row);
        device.read(any, 0, 1).await?;
        let (start, core) = (Instant::now(), core_ms());
        for _ in 0..repeats {
            device.run(&self.plan, row.sequence, u32::MAX)?;
        }
        device.read(any, 0, 1).await?;
        Ok((start.elapsed_ms() / repeats as f64, (core_ms() - core) / repeats as f64))
    }
}

/// CPU time of this process so far in ms, in ticks of 10: utime and stime of `/proc/self/stat`, which Linux has.
fn core_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name, in brackets, may hold blanks.
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    fields.get(11..13).map_or(f64::NAN, |times| times.iter().sum::<f64>() * 10.0)
}
