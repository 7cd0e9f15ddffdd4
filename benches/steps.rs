//! Whole training steps: forward, backward and update, all tokens supervised, the loss read after each.

use super::nets::{self, Net};
use super::report::{Column, Row, row};
use super::{Case, Machine};
use luthier::adapter::{Adapter, Kind, LoraConfig, Role, Settings};
use luthier::clock::{Instant, Profile};
use luthier::data::{Batches, Dataset, Example, PackOptions, Stats};
use luthier::device::Device;
use luthier::format::WeightFormat::{self, BF16, F32, Q4_0, Q4_1, Q8_0};
use luthier::model::Base;
use luthier::num::uniform;
use luthier::plan::{SequenceId, Step};
use luthier::train::StepReport;
use luthier::train::planned::{plan, sketch};
use luthier::train::{TrainOptions, Trainer};
use luthier::{Error, Result};
use std::sync::Arc;

pub const COLUMNS: &[Column] = &[
    Column::text("net", "net", 12),
    Column::text("weights", "weights", 7),
    Column::text("method", "method", 8),
    Column::text("batch", "batch", 7),
    Column::number("median_ms", "median ms", 1),
    Column::number("best_ms", "best ms", 1),
    Column::number("tokens_per_s", "tokens/s", 0),
    Column::number("gflops", "GFLOP/s", 0),
    Column::share("of_limit", "of limit"),
    Column::number("mib", "MiB", 0),
    Column::number("dispatches", "dispatches", 0),
    Column::number("encode_ms", "encode ms", 2),
    Column::number("first_ms", "first ms", 0),
];

/// What is trained and on how much. A rank of 0 trains everything.
#[derive(Clone, Copy)]
struct Training {
    net: Net,
    format: WeightFormat,
    rank: usize,
    b: usize,
    t: usize,
}

/// A case goes on for so long, or for `--steps`, and for three steps at least.
const CASE_MS: f64 = 15_000.0;
const LEAST_STEPS: usize = 3;

pub fn cases(machine: &Machine) -> Vec<Case> {
    let all = if machine.args.quick { first() } else { [first(), grid(machine)].concat() };
    let kind = |training: &Training| if training.rank == 0 { Kind::Full } else { Kind::Lora };
    let wanted = |(_, training): &(u8, Training)| {
        machine.args.wants(&training.name()) && machine.args.method.is_none_or(|m| m == kind(training))
    };
    let case = |(importance, training): (u8, Training)| Case {
        name: training.name(),
        section: "steps",
        columns: COLUMNS,
        importance,
        // The first step and the fewest after it.
        gflop: training.flops() * (1 + LEAST_STEPS) as f64 / 1e9,
        run: Box::new(move |machine| training.run(machine)),
    };
    all.into_iter().filter(wanted).map(case).collect()
}

/// The nets that peers are compared on: benches/peers.
fn first() -> Vec<(u8, Training)> {
    let small = Training { net: nets::SMALL, format: F32, rank: 8, b: 4, t: 64 };
    let nano = Training { net: nets::NANO, format: BF16, rank: 8, b: 4, t: 128 };
    let smollm2 = Training { net: nets::SMOLLM2, format: BF16, rank: 8, b: 2, t: 256 };
    vec![
        (0, small),
        (0, Training { rank: 0, ..small }),
        (0, nano),
        (0, smollm2),
        (1, Training { rank: 0, ..smollm2 }),
        (2, Training { format: Q4_1, ..smollm2 }),
    ]
}

/// Every net, length, format and method.
fn grid(machine: &Machine) -> Vec<(u8, Training)> {
    let tokens = machine.args.tokens.unwrap_or(if machine.hardware { 8192 } else { 512 });
    let mut all = Vec::new();
    for (rare, net) in [(0, nets::NANO), (0, nets::SMOLLM2), (1, nets::QWEN), (1, nets::LLAMA_1B)] {
        for (far, t) in [(1, 512), (2, 1024), (3, 256), (3, 2048)] {
            let b = (tokens / t).max(1);
            for (odd, format, rank) in [(0, BF16, 16), (1, Q8_0, 16), (0, Q4_0, 16), (1, BF16, 0)] {
                all.push((rare + far + odd, Training { net, format, rank, b, t }));
            }
        }
    }
    all
}

impl Training {
    fn method(&self) -> String {
        if self.rank == 0 { "full".into() } else { format!("lora-r{}", self.rank) }
    }

    fn name(&self) -> String {
        let Training { net, format, b, t, .. } = self;
        format!("steps {} {} {} {b}x{t}", net.name, format.name(), self.method())
    }

    /// Additions and multiplications of a step: two a weight and token forward, as many for the gradients of what goes
    /// in, and where everything is trained as many again for those of the weights. Attention's backward pass has five
    /// products to the two of the forward pass.
    fn flops(&self) -> f64 {
        let products = if self.rank == 0 { 6.0 } else { 4.0 };
        let Training { net, b, t, .. } = self;
        (b * t) as f64 * products * (net.linears() + net.head()) + *b as f64 * 3.5 * net.attention(*t)
    }

    fn adapter(&self, base: &Base) -> Result<Adapter> {
        let lora = LoraConfig { rank: self.rank, alpha: 16.0, ..Default::default() };
        let kind = if self.rank == 0 { Kind::Full } else { Kind::Lora };
        kind.adapter(base.spec(), &Settings { lora, ..Default::default() })
    }

    /// One document a row, every token after the first supervised.
    fn batches(&self) -> Result<Batches> {
        let Training { net, b, t, .. } = *self;
        let vocab = net.spec().vocab;
        let example = |row: usize| {
            let ids: Vec<u32> = (0..t).map(|i| (((row * t + i) * 7 + 3) % vocab) as u32).collect();
            let supervised = vec![true; t];
            Example { full_len: t, full_supervised: t, ids, supervised, truncated: false, line: row as u64 + 1 }
        };
        let examples = Arc::new((0..b).map(example).collect());
        let data = Dataset { file: "bench".into(), examples, stats: Stats::default() };
        Batches::new(&data, PackOptions { b, t, packing: false, shuffle: false, seed: 0 })
    }

    fn run(&self, machine: &Machine) -> Result<Vec<Row>> {
        let mut base = nets::planned(&self.net, self.format, machine.device()?);
        let adapter = self.adapter(&base)?;
        let options = TrainOptions {
            batch_size: self.b,
            seq_len: self.t,
            steps: Some(u64::MAX),
            memory_gib: machine.memory_gib,
            lr: Some(1e-3),
            ..Default::default()
        };
        // Asked before anything is allocated.
        plan(&base, &adapter, &options)?;
        // As a session does while it reads the weights.
        base.device.make_ahead(&[sketch(&base, &adapter, &options)]);
        nets::fill(&mut base)?;
        let initial = initial(&adapter);
        let start = Instant::now();
        let mut trainer = pollster::block_on(Trainer::new(&mut base, adapter, initial, self.batches()?, options))?;
        step(&mut trainer, &mut base)?;
        let first_ms = start.elapsed_ms();
        if machine.args.profile {
            set_profile(&mut base.device, Some(Profile::default()));
        }
        let (times, losses) = steps(machine, &mut trainer, &mut base)?;
        if machine.args.profile {
            self.print_profile(&mut base.device, times.len());
        }
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, best) = (sorted[sorted.len() / 2], sorted[0]);
        machine.took(self.flops() / 1e9, median);
        let submitted = Submitted::of(&base)?;
        let ideal = machine.limits.ideal_ms_of(submitted.steps(&base, self.b * (self.t - 1)));
        Ok(vec![row([
            ("case", self.name().into()),
            ("net", self.net.name.into()),
            ("weights", self.format.name().into()),
            ("method", self.method().into()),
            ("batch", format!("{}x{}", self.b, self.t).into()),
            ("median_ms", median.into()),
            ("best_ms", best.into()),
            ("tokens_per_s", ((self.b * self.t) as f64 / median * 1e3).into()),
            ("gflops", (self.flops() / median / 1e6).into()),
            ("of_limit", (ideal / median).into()),
            ("mib", (base.device.allocated() as f64 / (1 << 20) as f64).into()),
            ("dispatches", submitted.steps(&base, self.b * (self.t - 1)).count().into()),
            ("encode_ms", submitted.encode_ms(&mut base, &trainer)?.into()),
            ("first_ms", first_ms.into()),
            ("kept_blocks", trainer.memory.kept_blocks.into()),
            ("steps", times.len().into()),
            ("loss_first", losses[0].into()),
            ("loss_last", losses[losses.len() - 1].into()),
        ])])
    }

    fn print_profile(&self, device: &mut Device, steps: usize) {
        let Some(profile) = set_profile(device, None) else { return };
        let mut rows: Vec<_> = profile.into_iter().collect();
        rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        println!("\n{}", self.name());
        for (kernel, (runs, ms)) in rows {
            println!("  {kernel:<28} {:>6} runs a step {:>9.2} ms", runs / steps as u64, ms / steps as f64);
        }
    }
}

/// Trained parts of the base begin like [`nets::fill`], the others as the method says.
fn initial(adapter: &Adapter) -> Vec<f32> {
    let mut flat = adapter.init(0);
    for (k, part) in adapter.parts.iter().enumerate().filter(|(_, part)| matches!(part.role, Role::Base(_))) {
        let vector = part.rows == 1;
        let value = |i: usize| if vector { 1.0 } else { (uniform(7, k as u64, i as u64) as f32 - 0.5) * 0.07 };
        part.of_mut(&mut flat).iter_mut().enumerate().for_each(|(i, x)| *x = value(i % (1 << 16)));
    }
    flat
}

/// A step and what it reported, read at once.
fn step(trainer: &mut Trainer, base: &mut Base) -> Result<StepReport> {
    let mut reports = pollster::block_on(trainer.step(base))?;
    reports.extend(pollster::block_on(trainer.reports(base))?);
    Ok(reports.pop().expect("a step has a report"))
}

/// Milliseconds and losses of the steps after the first.
fn steps(machine: &Machine, trainer: &mut Trainer, base: &mut Base) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let most = machine.args.steps.max(1);
    while times.len() < most && (times.len() < LEAST_STEPS || start.elapsed_ms() < CASE_MS) {
        let start = Instant::now();
        losses.push(step(trainer, base)?.loss);
        times.push(start.elapsed_ms());
    }
    Ok((times, losses))
}

/// Begins or ends profiling; what was gathered so far.
fn set_profile(device: &mut Device, profile: Option<Profile>) -> Option<Profile> {
    match device {
        Device::Cpu(cpu) => std::mem::replace(&mut cpu.profile, profile),
        Device::Gpu(gpu) => std::mem::replace(&mut gpu.profile, profile),
        Device::Reference(_) => None,
    }
}

/// The sequences that a step submits.
struct Submitted([SequenceId; 2]);

impl Submitted {
    fn of(base: &Base) -> Result<Submitted> {
        let named = |name: &str| base.plan.sequences.iter().rposition(|sequence| sequence.name == name);
        let missing =
            || Error::device("the plan has no \"train\" or \"update\" sequence", "benches/steps.rs names them");
        match (named("train"), named("update")) {
            (Some(train), Some(update)) => Ok(Submitted([train, update])),
            _ => Err(missing()),
        }
    }

    /// Those that run with so many supervised rows.
    fn steps<'a>(&self, base: &'a Base, rows: usize) -> impl Iterator<Item = &'a Step> {
        let all = self.0.into_iter().flat_map(|sequence| &base.plan.sequences[sequence].steps);
        all.filter(move |step| step.skip_up_to == 0 || rows as u32 > step.skip_up_to)
    }

    /// How long the program itself is busy handing a step to the GPU; null where the program does the work.
    fn encode_ms(&self, base: &mut Base, trainer: &Trainer) -> Result<Option<f64>> {
        if !matches!(base.device, Device::Gpu(_)) {
            return Ok(None);
        }
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            pollster::block_on(trainer.values(base))?;
            let start = Instant::now();
            for sequence in self.0 {
                base.device.run(&base.plan, sequence, u32::MAX)?;
            }
            best = best.min(start.elapsed_ms());
        }
        pollster::block_on(trainer.values(base))?;
        Ok(Some(best))
    }
}
