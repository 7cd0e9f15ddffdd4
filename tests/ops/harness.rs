//! Runs kernels on made-up buffers with every executor and compares.
//!
//! A [`Suite`] is one plan; each case is a sequence of it with its own buffers. Every buffer is followed by guard
//! words: NaN behind inputs, so that reading too far spoils the result, and a sentinel behind outputs, so that writing
//! too far shows. What a kernel must overwrite starts as NaN.

use crate::common::tolerance::{DIFFERENCES, EXACT, HALF, STEP, Tolerance};
use luthier::cpu::{Cpu, Twin};
use luthier::format::{WeightFormat, pack};
use luthier::gpu::Gpu;
use luthier::ops::adamw_8bit::BLOCK_WORDS;
use luthier::ops::matmul::{Matrix, Shard};
use luthier::plan::{Buf, Elem, Plan, Shader};
use std::collections::BTreeMap;

const GUARD: usize = 8;
const SENTINEL: f64 = -12345.0;
/// What words that must be overwritten start as: pairs of NaN as bf16 and f16.
const POISON: u32 = 0x7fff_7fff;

enum Data {
    Floats(Vec<f64>),
    Words(Vec<u32>),
    /// Blocks of an optimizer's moments.
    Blocks(Vec<u32>),
}

struct Tensor {
    label: String,
    buf: Buf,
    data: Data,
    /// Compared after the run; else it is an input, which must not change either.
    output: bool,
}

struct Case {
    label: String,
    tensors: Vec<Tensor>,
}

pub struct Suite {
    pub plan: Plan,
    cases: Vec<Case>,
    tolerance: Tolerance,
}

impl Suite {
    pub fn new(tolerance: Tolerance) -> Suite {
        Suite { plan: Plan::default(), cases: Vec::new(), tolerance }
    }

    /// Begins a case: buffers and steps from here on belong to it.
    pub fn case(&mut self, label: impl Into<String>) -> &mut Self {
        let label = label.into();
        self.plan.begin(&label);
        self.cases.push(Case { label, tensors: Vec::new() });
        self
    }

    fn add(&mut self, label: &str, data: Data, output: bool) -> Buf {
        let (elem, len) = match &data {
            Data::Floats(v) => (Elem::Float, v.len()),
            Data::Words(v) | Data::Blocks(v) => (Elem::Word, v.len()),
        };
        let buf = self.plan.persistent(label, elem, len + GUARD);
        let tensor = Tensor { label: label.into(), buf, data, output };
        self.cases.last_mut().expect("a case was begun").tensors.push(tensor);
        buf
    }

    pub fn floats(&mut self, label: &str, values: &[f64]) -> Buf {
        self.add(label, Data::Floats(values.to_vec()), false)
    }

    pub fn words(&mut self, label: &str, words: &[u32]) -> Buf {
        self.add(label, Data::Words(words.to_vec()), false)
    }

    /// An output that must be overwritten as a whole.
    pub fn output(&mut self, label: &str, len: usize) -> Buf {
        self.in_out(label, &vec![f64::NAN; len])
    }

    /// Words that must be overwritten as a whole, and are compared as they are.
    pub fn output_words(&mut self, label: &str, len: usize) -> Buf {
        self.add(label, Data::Words(vec![POISON; len]), true)
    }

    /// An output that holds something before.
    pub fn in_out(&mut self, label: &str, values: &[f64]) -> Buf {
        self.add(label, Data::Floats(values.to_vec()), true)
    }

    /// Words that hold something before and are written: its blocks of [`BLOCK_WORDS`].
    pub fn blocks(&mut self, label: &str, words: &[u32]) -> Buf {
        self.add(label, Data::Blocks(words.to_vec()), true)
    }

    /// An output that is added to `old` where there is one, else overwritten.
    pub fn onto(&mut self, label: &str, len: usize, old: Option<&[f64]>) -> Buf {
        match old {
            Some(old) => self.in_out(label, old),
            None => self.output(label, len),
        }
    }

    /// A weight matrix whose data start `offset` words into its buffer.
    pub fn matrix(
        &mut self,
        format: WeightFormat,
        (rows, cols): (usize, usize),
        offset: usize,
        values: &[f64],
    ) -> Matrix {
        let floats: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let mut words = vec![0x7fc0_7fc0; offset];
        words.extend(pack(format, &floats));
        let buf = self.words("W", &words);
        Matrix { format, rows, cols, shards: vec![Shard { buf, row0: 0, rows, offset }] }
    }

    /// Outputs of the first case, by each executor there is: the reference, the CPU in f32, the GPU.
    pub fn everywhere(&self) -> Vec<Vec<Vec<f64>>> {
        [Some(self.reference()), Some(self.run_cpu::<f32>().swap_remove(0)), self.on_gpu()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Outputs of the first case, by the reference.
    pub fn reference(&self) -> Vec<Vec<f64>> {
        self.run_cpu::<f64>().swap_remove(0)
    }

    /// Outputs of the first case on the GPU, where there is one.
    pub fn on_gpu(&self) -> Option<Vec<Vec<f64>>> {
        let mut gpu = crate::common::gpu()?;
        Some(pollster::block_on(self.run_gpu(&mut gpu)).unwrap().swap_remove(0))
    }

    /// The f32 twin and the GPU against the f64 twin, every output of every case.
    pub fn check(&self) {
        assert_eq!(self.plan.check(), Vec::<String>::new());
        let want = self.run_cpu::<f64>();
        self.compare_by(self.tolerance, "CPU f32", &self.run_cpu::<f32>(), &want);
        for shader in self.shaders() {
            let half = shader.constant("HALF") > 0;
            let Some(mut gpu) = crate::common::gpu_with(half) else { return };
            gpu.set_style(shader.style);
            if !gpu.has_use_for(&self.plan, &shader.to_string()) {
                crate::common::skipped(&format!("{shader}: fits no step here on {}", gpu.facts.name));
                continue;
            }
            gpu.set_shader(Some(&shader.to_string()));
            let tolerance = if half { HALF } else { self.tolerance };
            let got = pollster::block_on(self.run_gpu(&mut gpu)).unwrap();
            self.compare_by(tolerance, &format!("GPU {shader}"), &got, &want);
        }
    }

    /// The shaders that measuring chose, by step, on a GPU that measures; its outputs are compared as in
    /// [`Suite::check`].
    pub fn check_tuned(&self, halves: bool) -> BTreeMap<String, String> {
        let Some(mut gpu) = crate::common::gpu_with(halves) else { return BTreeMap::new() };
        let want = self.run_cpu::<f64>();
        let tolerance = if halves { HALF } else { self.tolerance };
        gpu.tune_with("");
        self.compare_by(tolerance, "GPU tuned", &pollster::block_on(self.run_gpu(&mut gpu)).unwrap(), &want);
        let kept = gpu.newly_tuned().expect("something was measured");
        assert!(gpu.newly_tuned().is_none(), "handed out twice");
        // What was kept is taken, and nothing is measured again.
        let mut again = crate::common::gpu_with(halves).expect("there was one before");
        again.tune_with(&kept);
        self.compare_by(tolerance, "GPU tuned before", &pollster::block_on(self.run_gpu(&mut again)).unwrap(), &want);
        assert!(again.newly_tuned().is_none() && again.tuned() == gpu.tuned());
        gpu.tuned().clone()
    }

    /// Every shader of the plan's kernels, one of each name; a step takes it where it fits.
    fn shaders(&self) -> Vec<&'static Shader> {
        let steps = self.plan.sequences.iter().flat_map(|s| &s.steps);
        let all: BTreeMap<_, _> = steps.flat_map(|s| s.kernel.shaders).map(|s| (s.to_string(), s)).collect();
        all.into_values().collect()
    }

    fn run_cpu<F: Twin>(&self) -> Vec<Vec<Vec<f64>>> {
        let mut cpu = Cpu::<F>::new();
        cpu.prepare(&self.plan).unwrap();
        self.cases.iter().enumerate().map(|(i, case)| case.run_cpu(&mut cpu, &self.plan, i)).collect()
    }

    async fn run_gpu(&self, gpu: &mut Gpu) -> luthier::Result<Vec<Vec<Vec<f64>>>> {
        gpu.prepare(&self.plan).await?;
        let mut all = Vec::new();
        for (i, case) in self.cases.iter().enumerate() {
            for t in &case.tensors {
                gpu.write(t.buf, 0, &t.start());
            }
            gpu.run(i, u32::MAX)?;
            let mut outputs = Vec::new();
            for t in &case.tensors {
                let words = gpu.read(t.buf, 0, t.start().len()).await?;
                outputs.extend(match t.data {
                    Data::Floats(_) => t.finish(&case.label, &words, |w| f32::from_bits(w) as f64),
                    _ => t.finish_words(&case.label, &words),
                });
            }
            all.push(outputs);
        }
        Ok(all)
    }

    fn compare_by(&self, tolerance: Tolerance, device: &str, got: &[Vec<Vec<f64>>], want: &[Vec<Vec<f64>>]) {
        for ((case, got), want) in self.cases.iter().zip(got).zip(want) {
            let outputs = case.tensors.iter().filter(|t| t.output);
            for ((tensor, got), want) in outputs.zip(got).zip(want) {
                assert!(
                    want.iter().all(|w| w.is_finite()),
                    "{}: {}: the reference is not finite",
                    case.label,
                    tensor.label
                );
                let what = format!("{device}: {}: {}", case.label, tensor.label);
                match tensor.data {
                    Data::Floats(_) => tolerance.check(&what, got, want),
                    Data::Words(_) => EXACT.check(&what, got, want),
                    Data::Blocks(_) => check_blocks(tolerance, &what, got, want),
                }
            }
        }
    }
}

impl Case {
    fn run_cpu<F: Twin>(&self, cpu: &mut Cpu<F>, plan: &Plan, sequence: usize) -> Vec<Vec<f64>> {
        for t in &self.tensors {
            match &t.data {
                Data::Words(_) | Data::Blocks(_) => cpu.write_words(t.buf, 0, &t.start()),
                Data::Floats(v) => cpu.write_floats(
                    t.buf,
                    0,
                    v.iter().copied().chain([t.guard(); GUARD]).collect::<Vec<_>>().into_iter(),
                ),
            }
        }
        cpu.run(plan, sequence, u32::MAX);
        let finish = |t: &Tensor| match (&t.data, t.start().len()) {
            (Data::Floats(_), len) => t.finish(&self.label, cpu.read(t.buf, 0, len), |x| x.to64()),
            (_, len) => t.finish_words(&self.label, &cpu.read_words(t.buf, 0, len)),
        };
        self.tensors.iter().filter_map(finish).collect()
    }
}

impl Tensor {
    fn guard(&self) -> f64 {
        if self.output { SENTINEL } else { f64::NAN }
    }

    /// Data and guards as the words a GPU gets.
    fn start(&self) -> Vec<u32> {
        let guard = (self.guard() as f32).to_bits();
        let data: Vec<u32> = match &self.data {
            Data::Floats(v) => v.iter().map(|x| (*x as f32).to_bits()).collect(),
            Data::Words(v) | Data::Blocks(v) => v.clone(),
        };
        data.into_iter().chain([guard; GUARD]).collect()
    }

    /// The words as numbers, if they are an output; checks that guards and inputs are what they were.
    fn finish_words(&self, case: &str, after: &[u32]) -> Option<Vec<f64>> {
        let before = self.start();
        let kept = if self.output { before.len() - GUARD } else { 0 };
        assert_eq!(after[kept..], before[kept..], "{case}: {}: words from {kept} on must not be written", self.label);
        self.output.then(|| after[..kept].iter().map(|word| *word as f64).collect())
    }

    /// The output's values; checks that guards and inputs are what they were.
    fn finish<T: Copy>(&self, case: &str, after: &[T], value: impl Fn(T) -> f64) -> Option<Vec<f64>> {
        let values: Vec<f64> = after.iter().map(|x| value(*x)).collect();
        let before: Vec<f64> = self.start().iter().map(|w| f32::from_bits(*w) as f64).collect();
        let kept = if self.output { before.len() - GUARD } else { 0 };
        for i in kept..before.len() {
            let same = values[i] as f32 == before[i] as f32 || (values[i].is_nan() && before[i].is_nan());
            assert!(same, "{case}: {}[{i}] was {}, is {}: it must not be written", self.label, before[i], values[i]);
        }
        self.output.then(|| values[..kept].to_vec())
    }
}

/// Blocks of moments: their largest magnitudes by `tolerance`. Rounding moves what lies between two codes to either of
/// them, which is one value in thousands.
fn check_blocks(tolerance: Tolerance, what: &str, got: &[f64], want: &[f64]) {
    let largest = |words: &[f64]| -> Vec<f64> {
        words.iter().skip(BLOCK_WORDS - 1).step_by(BLOCK_WORDS).map(|w| f32::from_bits(*w as u32) as f64).collect()
    };
    tolerance.check(&format!("{what}, largest"), &largest(got), &largest(want));
    let codes = |words: &[f64]| -> Vec<u8> {
        words
            .chunks_exact(BLOCK_WORDS)
            .flat_map(|b| &b[..BLOCK_WORDS - 1])
            .flat_map(|w| (*w as u32).to_le_bytes())
            .collect()
    };
    let (got, want) = (codes(got), codes(want));
    let far = got.iter().zip(&want).position(|(g, w)| g.abs_diff(*w) > 1);
    assert!(far.is_none(), "{what}: code {far:?} is another");
    let moved = got.iter().zip(&want).filter(|(g, w)| g != w).count();
    assert!(moved <= got.len() / 2000, "{what}: {moved} of {} codes are others", got.len());
}

/// Numbers like a standard normal's, each one an f32.
pub fn random(len: usize, seed: u64) -> Vec<f64> {
    let uniform = |i: usize, k: u64| luthier::num::uniform(seed, k, i as u64);
    (0..len)
        .map(|i| ((0..6).map(|k| uniform(i, k)).sum::<f64>() - 3.0) * 2f64.sqrt())
        .map(|x| x as f32 as f64)
        .collect()
}

/// [`random`] with one column in `width` blown up to about 800, as real models' residual streams have.
pub fn with_outliers(len: usize, width: usize, seed: u64) -> Vec<f64> {
    let mut x = random(len, seed);
    x.iter_mut().skip(width / 3).step_by(width).for_each(|x| *x = (*x * 800.0) as f32 as f64);
    x
}

/// `dx` against central differences of ⟨dy, f(x)⟩.
pub fn gradcheck(what: &str, f: impl Fn(&[f64]) -> Vec<f64>, x: &[f64], dy: &[f64], dx: &[f64]) {
    let scalar = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let slope = |i: usize| {
        let mut at = x.to_vec();
        at[i] = x[i] + STEP;
        let above = scalar(&at);
        at[i] = x[i] - STEP;
        (above - scalar(&at)) / (2.0 * STEP)
    };
    let want: Vec<f64> = (0..x.len()).map(slope).collect();
    DIFFERENCES.check(what, dx, &want);
}

/// (first, end) of each row's document, for documents of these lengths.
pub fn spans(lengths: &[usize]) -> Vec<u32> {
    let mut spans = Vec::new();
    for len in lengths {
        let first = spans.len() as u32 / 2;
        spans.extend((0..*len).flat_map(|_| [first, first + *len as u32]));
    }
    spans
}

/// A control buffer's words.
pub fn control(c: luthier::ops::control::Control) -> Vec<u32> {
    c.words().to_vec()
}
