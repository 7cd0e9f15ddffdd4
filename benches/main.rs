//! `cargo xtask bench [CASE...]`: kernels, training steps, generation and loading on one device, each row beside what
//! the device can do at most. `benches/README.md` says what the columns mean.
//!
//! Cases run in the order of their importance for as long as the budget lasts; the others are listed as not run.

mod generation;
mod kernels;
mod loading;
mod nets;
mod report;
mod steps;

use clap::Parser;
use luthier::adapter::Kind;
use luthier::benchmark::{self, Limits};
use luthier::clock::Instant;
use luthier::device::{Device, DeviceChoice, threads};
use luthier::{Error, Result};
use report::{Column, Missing, Report, Row, row};
use std::cell::Cell;
use std::io::IsTerminal;
use std::path::PathBuf;

#[derive(Parser, Clone)]
#[command(name = "luthier-bench", about = "Measures Luthier on this machine")]
pub struct Args {
    /// Only cases whose name holds one of these: kernels, "kernels matmul.forward bf16", "steps nano", q8_0, full ...
    pub cases: Vec<String>,
    /// Where to run: a real GPU where there is one and else the CPU (auto), a GPU, also a software one (gpu), or cpu.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Products may keep their factors as halves, on matrix units where the GPU has them.
    #[arg(long)]
    pub fp16: bool,
    /// Minutes that it may take; 0 for no end.
    #[arg(long, alias = "minutes", default_value_t = 10.0, value_name = "MINUTES")]
    pub budget: f64,
    /// Small shapes, few samples, only the first cases.
    #[arg(long)]
    pub quick: bool,
    /// Lists the cases, and runs none.
    #[arg(long)]
    pub list: bool,
    /// Only steps of this method: lora or full.
    #[arg(long, value_enum, hide_possible_values = true)]
    pub method: Option<Kind>,
    /// Steps of a training case at most, after the first.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Tokens of a training step, in rows of 256 to 2048; left out, 512, and 8192 on a real GPU.
    #[arg(long)]
    pub tokens: Option<usize>,
    /// What a training run may take in memory; left out, most of the machine's, or 16 on a real GPU.
    #[arg(long, value_name = "GIB")]
    pub memory_gib: Option<f64>,
    /// Shows the time of each kernel below a training case; each is waited for on its own.
    #[arg(long)]
    pub profile: bool,
    /// Loads this model (a folder or a GGUF file) in place of one of random weights.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Writes everything as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    /// Whether a case, or a part of it, is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|part| name.contains(part))
    }
}

/// What is measured on.
pub struct Machine {
    pub args: Args,
    pub choice: DeviceChoice,
    pub name: String,
    pub gpu: bool,
    /// A GPU of its own, not a driver that computes on the CPU.
    pub hardware: bool,
    pub limits: Limits,
    pub memory_gib: f64,
    /// Share of the limit that the last long case reached: what the next one's time is guessed from.
    reached: Cell<f64>,
}

impl Machine {
    fn open(args: &Args) -> Result<Machine> {
        pollster::block_on(async {
            let device = Device::open_with(args.device, args.fp16).await?;
            let info = device.info();
            let gpu = info.kind != "cpu";
            let limits = benchmark::limits(device).await?;
            let hardware = gpu && !info.software;
            let memory_gib = args.memory_gib.unwrap_or_else(|| if hardware { 16.0 } else { free_gib() });
            // Not chosen again: a second driver must not change what is measured.
            let choice = if gpu { DeviceChoice::Gpu } else { DeviceChoice::Cpu };
            let (name, reached) = (info.description, Cell::new(0.1));
            Ok(Machine { args: args.clone(), choice, name, gpu, hardware, limits, memory_gib, reached })
        })
    }

    pub fn device(&self) -> Result<Device> {
        pollster::block_on(Device::open_with(self.choice, self.args.fp16))
    }

    /// Says how long something took, for the guess at what comes next.
    pub fn took(&self, gflop: f64, ms: f64) {
        if ms > 50.0 {
            self.reached.set((gflop / ms * 1e3 / self.limits.gflops).clamp(0.001, 1.0));
        }
    }

    fn guess_seconds(&self, gflop: f64) -> f64 {
        gflop / (self.limits.gflops * self.reached.get())
    }

    fn about(&self) -> Row {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs());
        row([
            ("luthier", env!("CARGO_PKG_VERSION").into()),
            ("device", self.name.clone().into()),
            ("kind", if self.gpu { "gpu" } else { "cpu" }.into()),
            ("software", (self.gpu && !self.hardware).into()),
            ("threads", threads().into()),
            ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH).into()),
            ("unix_time", time.into()),
            ("memory_gib", self.memory_gib.into()),
            ("limits", serde_json::to_value(self.limits).expect("two numbers")),
        ])
    }
}

/// Four fifths of what the system says is available, where it says so (Linux).
fn free_gib() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or(16.0, |kib| 0.8 * kib / (1 << 20) as f64)
}

type Run = Box<dyn Fn(&Machine) -> Result<Vec<Row>>>;

/// Something that can be measured.
pub struct Case {
    /// The section, and what it is.
    pub name: String,
    pub section: &'static str,
    pub columns: &'static [Column],
    /// 0 first.
    pub importance: u8,
    /// Additions and multiplications that it takes about, in units of 10⁹.
    pub gflop: f64,
    pub run: Run,
}

/// All cases that are asked for, the important ones first.
fn cases(machine: &Machine) -> Vec<Case> {
    let mut all = steps::cases(machine);
    all.extend(kernels::cases(machine));
    all.extend(generation::cases(machine));
    all.extend(loading::cases(machine));
    all.retain(|case| !machine.args.quick || case.importance == 0 || !machine.args.cases.is_empty());
    all.sort_by_key(|case| case.importance);
    all
}

/// Errors that say that the machine is too small for a case, not that anything is broken.
fn too_large(error: &Error) -> bool {
    let device = |what: &str| what.contains("binds at most");
    match error {
        Error::OutOfMemory { .. } | Error::Setting { .. } => true,
        Error::Device { what, .. } => device(what),
        _ => false,
    }
}

/// What was measured is written after each case: whoever ends the program early keeps it.
fn run_all(machine: &Machine, report: &mut Report, start: Instant) -> Result<()> {
    for case in cases(machine) {
        let left = machine.args.budget * 60.0 - start.elapsed_ms() / 1e3;
        let needs = machine.guess_seconds(case.gflop);
        if machine.args.budget > 0.0 && needs > left {
            let why = format!("needs about {needs:.0} s, {:.0} s were left of the budget", left.max(0.0));
            report.miss(case.name, Missing::NotRun(why));
            continue;
        }
        if std::io::stderr().is_terminal() {
            eprint!("{} ...\r", case.name);
        }
        match (case.run)(machine) {
            Ok(rows) => rows.into_iter().for_each(|row| report.add(case.section, case.columns, row)),
            Err(error) if too_large(&error) => {
                report.miss(case.name, Missing::NotRun(format!("does not fit: {error}")));
            }
            Err(error) => report.miss(case.name, Missing::Failed(error.to_string())),
        }
        write(machine, report)?;
    }
    write(machine, report)
}

fn write(machine: &Machine, report: &Report) -> Result<()> {
    let Some(file) = &machine.args.json else { return Ok(()) };
    luthier::weights::atomic_write(file, format!("{:#}\n", report.json(machine.about())).as_bytes())
}

/// Names of all cases that are asked for.
pub fn list(args: &Args) -> Result<Vec<String>> {
    Ok(cases(&Machine::open(args)?).into_iter().map(|case| case.name).collect())
}

/// Measures, prints, and writes the JSON; the number of failures.
pub fn run(args: &Args) -> Result<usize> {
    if args.list {
        list(args)?.iter().for_each(|name| println!("{name}"));
        return Ok(0);
    }
    let start = Instant::now();
    let machine = Machine::open(args)?;
    let Limits { gflops, gbytes } = machine.limits;
    println!("{}", machine.name);
    println!("at most {gflops:.1} GFLOP/s of multiply-adds in f32, {gbytes:.1} GB/s of copying");
    let mut report = Report::default();
    run_all(&machine, &mut report, start)?;
    report.print_missing();
    println!("\n{:.1} minutes", start.elapsed_ms() / 6e4);
    Ok(report.failures())
}

#[allow(dead_code)] // the test of benches calls `run`
fn main() -> std::process::ExitCode {
    match run(&Args::parse()) {
        Ok(0) => std::process::ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("error: {failures} cases failed");
            std::process::ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}\nhint: {}", error.hint());
            std::process::ExitCode::FAILURE
        }
    }
}
