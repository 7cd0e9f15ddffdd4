//! `luthier train`: reads data and model, says what is about to happen, trains, and writes the best adapter.

use super::{DataArgs, DeviceArg, ModelArg, count, say, size};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use luthier::adapter::peft;
use luthier::session::{Best, Session, Summary, grouped};
use luthier::train::{Evaluation, MemoryPlan, StepReport, TrainOptions};
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::json;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    data: DataArgs,
    /// Folder for the adapter, in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Validation records; without them a part of the data is held out (--val-fraction).
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Go on from this adapter, with its rank, alpha and modules.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rank", "alpha", "dropout", "rslora", "target_modules"])]
    init_adapter: Option<PathBuf>,
    /// Write a JSON object a step, and one a validation.
    #[arg(long, value_name = "FILE")]
    log_json: Option<PathBuf>,
    /// Say what would be done, and how much memory it takes; train nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten, next_help_heading = "Training")]
    options: TrainOptions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    args.options.check()?;
    check_out(&args.out)?;
    let records = args.data.read()?;
    let validation = args.eval_data.as_ref().map(|file| args.data.columns.read(file)).transpose()?;
    let mut session = args.model.session(args.device.device, None)?;
    let initial = args.init_adapter.as_ref().map(|folder| peft::open(folder, session.spec())).transpose()?;
    let started = session.start_training(&records, validation.as_ref(), args.options.clone(), initial, None);
    let summary = block_on(started)?;
    say(describe(&args, &summary, records.skipped()));
    if args.dry_run {
        say("dry run: nothing was trained or written");
        return Ok(ExitCode::SUCCESS);
    }
    let log = Log::create(args.log_json.as_deref())?;
    let view = View::new(summary.steps);
    Run { session, log, view, out: args.out, eval_every: args.options.eval_every, steps: summary.steps }.run()
}

/// Refuses an --out that could not be written, before hours of training; leaves nothing behind.
fn check_out(out: &Path) -> Result<()> {
    let refuse = |what: String, hint: &str| Err(Error::setting("out", what, hint));
    let place = out.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    if !place.is_dir() {
        return refuse(format!("'{}' is a file, not a folder", place.display()), "name a folder for the adapter");
    }
    if out.join("config.json").exists() {
        return refuse(format!("'{}' holds a model", out.display()), "name another folder for the adapter");
    }
    let probe = place.join(format!(".luthier-{}", std::process::id()));
    match File::create(&probe).and_then(|_| std::fs::remove_file(&probe)) {
        Ok(()) => Ok(()),
        Err(e) => refuse(format!("'{}' cannot be written: {e}", place.display()), "name a folder of your own"),
    }
}

/// What is about to happen.
fn describe(args: &Args, s: &Summary, skipped: u64) -> String {
    let o = &args.options;
    let mut lines = vec![format!("device      {}", s.device), format!("data        {}", describe_data(s, o))];
    let mut note = |n: usize, what: &str, meaning: &str| {
        if n > 0 {
            lines.push(format!("            {} {meaning}", count(n, what)));
        }
    };
    note(s.truncated, "example", &format!("cut at {} tokens (--seq-len)", o.seq_len));
    note(s.duplicates, "example", "equal to an earlier one");
    note(skipped as usize, "bad record", "left out");
    lines.push(format!("validation  {}", describe_validation(args, s)));
    let micro = if o.grad_accum > 1 { format!(" x {} micro-batches", o.grad_accum) } else { String::new() };
    lines.push(format!("steps       {} of {} x {} tokens{micro}", s.steps, o.batch_size, o.seq_len));
    lines.push(format!("memory      {}", describe_memory(&s.memory)));
    lines.push(s.trainable());
    lines.join("\n")
}

fn describe_data(s: &Summary, o: &TrainOptions) -> String {
    let (tokens, learned) = (grouped(s.tokens as u64), grouped(s.supervised_tokens as u64));
    let rows = count(s.rows, "row");
    format!("{}: {tokens} tokens, {learned} of them learned; {rows} of {}", count(s.examples, "example"), o.seq_len)
}

fn describe_validation(args: &Args, s: &Summary) -> String {
    match (s.validation_examples, &args.eval_data) {
        (0, None) if args.options.val_fraction == 0.0 => "none (--val-fraction 0)".into(),
        (0, _) => "none: too few records to hold some out; --eval-data gives some".into(),
        (n, Some(file)) => format!("{} of {}", count(n, "example"), file.display()),
        (n, None) => format!("{} held out", count(n, "example")),
    }
}

fn describe_memory(m: &MemoryPlan) -> String {
    let recomputed = match m.blocks - m.kept_blocks {
        0 => String::new(),
        n => format!(" (those of {n} of {} blocks are recomputed)", m.blocks),
    };
    let [total, weights, adapter, activations, other] =
        [m.total, m.weights, m.adapter, m.activations, m.other].map(size);
    format!(
        "{total}: weights {weights}, adapter and optimizer {adapter}, activations {activations}{recomputed}, other {other}"
    )
}

/// A training run and where it is shown and written.
struct Run {
    session: Session,
    log: Log,
    view: View,
    out: PathBuf,
    eval_every: u64,
    steps: u64,
}

impl Run {
    fn run(mut self) -> Result<ExitCode> {
        catch_ctrl_c();
        match self.train() {
            Ok(()) if stopped() => {
                let step = self.session.step_number();
                self.view.end();
                self.save(&format!("stopped: the adapter of step {step} of {}", self.steps))?;
                Ok(ExitCode::from(130))
            }
            Ok(()) => self.finish(),
            Err(error) => {
                self.view.end();
                // The device kept the numbers of the last step that was sound.
                if let Error::Diverged { step: 2.., .. } = error {
                    self.save("the adapter of the last good step")?;
                }
                Err(error)
            }
        }
    }

    fn train(&mut self) -> Result<()> {
        self.validate()?;
        while !self.session.done() && !stopped() {
            let reports = block_on(self.session.step())?;
            self.report(&reports)?;
            let step = self.session.step_number();
            if self.session.done() || (self.eval_every > 0 && step.is_multiple_of(self.eval_every)) {
                self.drain()?;
                self.validate()?;
            }
        }
        self.drain()
    }

    /// Takes the reports of steps that are still under way.
    fn drain(&mut self) -> Result<()> {
        let reports = block_on(self.session.reports())?;
        self.report(&reports)
    }

    fn report(&mut self, reports: &[StepReport]) -> Result<()> {
        for report in reports {
            self.log.line(&json!(report))?;
            self.view.step(report);
        }
        Ok(())
    }

    fn validate(&mut self) -> Result<()> {
        let Some(e) = block_on(self.session.validate())? else { return Ok(()) };
        let step = self.session.step_number();
        let Evaluation { loss, perplexity, accuracy, .. } = e;
        self.log
            .line(&json!({ "step": step, "val_loss": loss, "val_perplexity": perplexity, "val_accuracy": accuracy }))?;
        let of = if step == 0 { " (before training)" } else { "" };
        self.view.note(&format!("val loss {loss:.4} at step {step}{of}, token accuracy {:.1} %", 100.0 * accuracy));
        Ok(())
    }

    fn finish(mut self) -> Result<ExitCode> {
        self.view.end();
        let what = match self.session.use_best() {
            Some(Best { loss, step }) if step < self.steps => {
                format!("the adapter of step {step}, the best by validation (loss {loss:.4}),")
            }
            Some(Best { loss, step }) => {
                format!("the adapter of step {step}, the last and the best by validation (loss {loss:.4}),")
            }
            None => format!("the adapter of step {}", self.steps),
        };
        self.save(&what)?;
        Ok(ExitCode::SUCCESS)
    }

    fn save(&mut self, what: &str) -> Result<()> {
        peft::write(&self.out, &block_on(self.session.adapter_files())?)?;
        say(format!("{what} is in {}", self.out.display()));
        Ok(())
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// The first Ctrl-C lets the current step end and saves; the second ends the program at once.
fn catch_ctrl_c() {
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; once more to stop at once");
    };
    // Where no handler can be set, Ctrl-C ends the program as it always did.
    let _ = ctrlc::set_handler(handler);
}

/// `--log-json`: every line is written whole, at once.
struct Log(Option<(String, File)>);

impl Log {
    fn create(path: Option<&Path>) -> Result<Log> {
        let Some(path) = path else { return Ok(Log(None)) };
        let name = path.display().to_string();
        match File::create(path) {
            Ok(file) => Ok(Log(Some((name, file)))),
            Err(e) => Err(Error::io(name, e)),
        }
    }

    fn line(&mut self, value: &serde_json::Value) -> Result<()> {
        let Some((name, file)) = &mut self.0 else { return Ok(()) };
        file.write_all(format!("{value}\n").as_bytes()).map_err(|e| Error::io(name.as_str(), e))
    }
}

/// Progress on stderr: a bar on a terminal, else a line every ten steps.
struct View {
    steps: u64,
    bar: Option<ProgressBar>,
}

impl View {
    fn new(steps: u64) -> View {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len}  {msg}").expect("a valid template");
            ProgressBar::new(steps).with_style(style.progress_chars("=> "))
        });
        View { steps, bar }
    }

    fn step(&self, r: &StepReport) {
        let seconds = (self.steps - r.step) as f64 * r.tokens as f64 / r.tokens_per_sec.max(1e-3);
        let left = HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        let state = format!("loss {:.4}  {:.0} tokens/s  {left:#} left", r.loss, r.tokens_per_sec);
        match &self.bar {
            Some(bar) => {
                bar.set_message(state);
                bar.set_position(r.step);
            }
            None if r.step.is_multiple_of(10) || r.step == 1 || r.step == self.steps => {
                eprintln!("step {}/{}  {state}", r.step, self.steps);
            }
            None => {}
        }
    }

    fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
