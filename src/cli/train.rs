//! `luthier train`: reads data and model, says what is about to happen, trains, and writes the best adapter.

use super::checkpoints::Checkpoints;
use super::progress::{Log, View};
use super::recipe::{RUN, Recipe};
use super::{ColumnArgs, ComputeArgs, ModelArg, count, say, size};
use luthier::adapter::{Kind, peft};
use luthier::session::{Best, Likely, Session, Summary, grouped};
use luthier::train::{Evaluation, MemoryPlan, StepReport, TrainOptions};
use luthier::weights::atomic_write;
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Options that an adapter to go on from has decided.
const OF_THE_ADAPTER: [&str; 12] = [
    "rank",
    "alpha",
    "dropout",
    "rslora",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "num_virtual_tokens",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "last_k",
];

#[derive(clap::Args)]
pub struct Args {
    /// A model's folder, a .gguf file, or a name (nano, smollm2-135m-instruct ...).
    #[arg(long, value_name = "MODEL", required_unless_present = "from")]
    pub(super) model: Option<String>,
    /// Records: .jsonl, .json, .csv, .tsv or .txt.
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    pub(super) data: Option<PathBuf>,
    #[command(flatten)]
    pub(super) columns: ColumnArgs,
    /// Folder for the adapter, in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Validation records; without them a part of the data is held out (--val-fraction).
    #[arg(long, value_name = "FILE")]
    pub(super) eval_data: Option<PathBuf>,
    /// Go on from this adapter, with its method, rank, alpha, modules and whatever else it was made with. What full
    /// tuning made can go on with --method lisa, too.
    #[arg(long, value_name = "DIR", conflicts_with_all = OF_THE_ADAPTER)]
    pub(super) init_adapter: Option<PathBuf>,
    /// Run again what this run.json says; --model and --data tell where its files are now.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["TrainOptions", "ColumnArgs"])]
    pub(super) from: Option<PathBuf>,
    /// Replace the adapter that --out holds.
    #[arg(long)]
    overwrite: bool,
    /// Go on from the last checkpoint of the same run in --out.
    #[arg(long)]
    resume: bool,
    /// Steps between checkpoints, 0 for none but at Ctrl-C; without it one a minute.
    #[arg(long, value_name = "N")]
    save_steps: Option<u64>,
    /// Write a JSON object a step, and one a validation.
    #[arg(long, value_name = "FILE")]
    log_json: Option<PathBuf>,
    /// Say what would be done, and how much memory it takes; train nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: ComputeArgs,
    #[command(flatten, next_help_heading = "Training")]
    pub(super) options: TrainOptions,
}

pub fn run(args: Args, given: &[&str]) -> Result<ExitCode> {
    let recipe = Recipe::new(&args)?;
    if recipe.init_adapter.is_none() {
        Kind::refuse_unread(&[recipe.options.method], given)?;
    }
    recipe.options.check()?;
    check_out(&args.out, args.overwrite || args.resume || args.dry_run)?;
    let checkpoints = Checkpoints::new(&args.out, args.save_steps);
    if !args.resume && !args.dry_run {
        checkpoints.refuse_unfinished()?;
    }
    let (records, validation) = recipe.read()?;
    let model = ModelArg { model: recipe.model.clone() };
    if args.dry_run {
        let session = block_on(Session::planned(&model.open()?, &recipe.model, args.device.open()?))?;
        let initial = recipe.initial(&session, given)?;
        let summary = session.estimate(&records, validation.as_ref(), &recipe.options, initial)?;
        say(describe(&recipe, &summary));
        say("dry run: nothing was trained or written");
        return Ok(ExitCode::SUCCESS);
    }
    let mut session = model.session(args.device.open()?, None, &Likely::run(&recipe.options))?;
    recipe.check_model(&session)?;
    let initial = recipe.initial(&session, given)?;
    let checkpoint = args.resume.then(|| checkpoints.newest()).transpose()?;
    let options = recipe.options.clone();
    let started = block_on(session.start_training(&records, validation.as_ref(), options, initial, checkpoint));
    let summary = started?;
    say(describe(&recipe, &summary));
    let step = session.step_number();
    if step > 0 {
        say(format!("goes on    after step {step}"));
    }
    let log = Log::create(args.log_json.as_deref(), step)?;
    let view = View::new(summary.steps);
    let until = recipe.until.unwrap_or(summary.steps);
    let eval_every = recipe.options.eval_every;
    let init_adapter = recipe.init_adapter.map(|folder| folder.display().to_string());
    Run { session, log, view, checkpoints, out: args.out, eval_every, steps: summary.steps, until, init_adapter }.run()
}

/// Refuses an --out that could not be written, before hours of training; leaves nothing behind.
fn check_out(out: &Path, overwrite: bool) -> Result<()> {
    let refuse = |what: String, hint: &str| Err(Error::setting("out", what, hint));
    let place = out.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    if !place.is_dir() {
        return refuse(format!("'{}' is a file, not a folder", place.display()), "name a folder for the adapter");
    }
    if out.join("adapter_model.safetensors").exists() && !overwrite {
        return refuse(format!("'{}' holds an adapter", out.display()), "name another folder, or add --overwrite");
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
fn describe(recipe: &Recipe, s: &Summary) -> String {
    let o = &recipe.options;
    let mut lines = vec![format!("device      {}", s.device), format!("data        {}", describe_data(s, o))];
    let mut note = |n: usize, what: &str, meaning: &str| {
        if n > 0 {
            lines.push(format!("            {} {meaning}", count(n, what)));
        }
    };
    note(s.truncated, "example", &format!("cut at {} tokens (--seq-len)", o.seq_len));
    note(s.lost_targets, "example", "of these lost tokens that were to be learned");
    note(s.without_targets, "example", "with nothing to learn, passed over");
    note(s.duplicates, "example", "equal to an earlier one");
    note(s.skipped as usize, "bad record", "left out");
    lines.push(format!("validation  {}", describe_validation(recipe, s)));
    if o.warmup_steps >= s.steps {
        lines.push(format!("            the learning rate rises for {} steps: it never gets to --lr", o.warmup_steps));
    }
    let micro = if o.grad_accum > 1 { format!(" x {} micro-batches", o.grad_accum) } else { String::new() };
    let before = match s.virtual_tokens {
        0 => String::new(),
        n => format!(" behind {n} virtual ones"),
    };
    lines.push(format!("steps       {} of {} x {} tokens{before}{micro}", s.steps, o.batch_size, o.seq_len));
    lines.push(format!("memory      {}", describe_memory(&s.memory)));
    lines.push(s.trainable());
    lines.join("\n")
}

fn describe_data(s: &Summary, o: &TrainOptions) -> String {
    let (tokens, learned) = (grouped(s.tokens as u64), grouped(s.supervised_tokens as u64));
    let rows = count(s.rows, "row");
    format!("{}: {tokens} tokens, {learned} of them learned; {rows} of {}", count(s.examples, "example"), o.seq_len)
}

fn describe_validation(recipe: &Recipe, s: &Summary) -> String {
    match (s.validation_examples, &recipe.eval_data) {
        (0, None) if recipe.options.val_fraction == 0.0 => "none (--val-fraction 0)".into(),
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
    checkpoints: Checkpoints,
    out: PathBuf,
    eval_every: u64,
    /// Steps the schedule was made for, and the last to be done: a replayed run may have been stopped.
    steps: u64,
    until: u64,
    init_adapter: Option<String>,
}

impl Run {
    fn run(mut self) -> Result<ExitCode> {
        catch_ctrl_c();
        match self.train() {
            Ok(()) if stopped() && !self.done() => {
                let step = self.session.step_number();
                self.view.end();
                self.checkpoint()?;
                self.save(&format!("stopped: the adapter of step {step} of {}", self.steps))?;
                say("the same command with --resume goes on");
                Ok(ExitCode::from(130))
            }
            Ok(()) => self.finish(),
            Err(error) => {
                self.view.end();
                if let Error::Diverged { step, .. } = error {
                    // It would do so again.
                    self.checkpoints.clear();
                    // The device kept the numbers of the last step that was sound.
                    if step > 1 {
                        self.save("the adapter of the last good step")?;
                    }
                } else if self.session.step_number() > 0 && self.checkpoint().is_ok() {
                    say("the run is kept as it was: the same command with --resume goes on");
                }
                Err(error)
            }
        }
    }

    fn done(&self) -> bool {
        self.session.step_number() >= self.until
    }

    fn train(&mut self) -> Result<()> {
        if self.session.step_number() == 0 {
            self.validate()?;
        }
        while !self.done() && !stopped() {
            let reports = block_on(self.session.step())?;
            self.report(&reports);
            let step = self.session.step_number();
            if self.done() || (self.eval_every > 0 && step.is_multiple_of(self.eval_every)) {
                self.drain()?;
                self.validate()?;
            }
            if !self.done() && self.checkpoints.due(step) {
                self.drain()?;
                self.checkpoint()?;
            }
        }
        self.drain()
    }

    fn checkpoint(&mut self) -> Result<()> {
        let bytes = block_on(self.session.checkpoint())?;
        self.checkpoints.write(self.session.step_number(), &bytes)
    }

    /// Takes the reports of steps that are still under way.
    fn drain(&mut self) -> Result<()> {
        loop {
            let reports = block_on(self.session.reports())?;
            if reports.is_empty() {
                return Ok(());
            }
            self.report(&reports);
        }
    }

    fn report(&mut self, reports: &[StepReport]) {
        for report in reports {
            self.log.line(&json!(report));
            self.view.step(report);
        }
    }

    fn validate(&mut self) -> Result<()> {
        let Some(e) = block_on(self.session.validate())? else { return Ok(()) };
        let step = self.session.step_number();
        let Evaluation { loss, perplexity, accuracy, .. } = e;
        self.log
            .line(&json!({ "step": step, "val_loss": loss, "val_perplexity": perplexity, "val_accuracy": accuracy }));
        let of = if step == 0 { " (before training)" } else { "" };
        self.view.note(&format!("val loss {loss:.4} at step {step}{of}, token accuracy {:.1} %", 100.0 * accuracy));
        Ok(())
    }

    fn finish(mut self) -> Result<ExitCode> {
        self.view.end();
        let what = match self.session.use_best() {
            Some(Best { loss, step: 0 }) => format!(
                "nothing was gained: validation was best before training (loss {loss:.4}); lower --lr or give more data. \
                 The adapter as it was before the first step"
            ),
            Some(Best { loss, step }) if step < self.until => {
                format!("the adapter of step {step}, the best by validation (loss {loss:.4}),")
            }
            Some(Best { loss, step }) => {
                format!("the adapter of step {step}, the last and the best by validation (loss {loss:.4}),")
            }
            None => format!("the adapter of step {}", self.until),
        };
        self.save(&what)?;
        let mut record = self.session.run_record()?;
        if let (Some(adapter), Some(name)) = (&mut record.init_adapter, self.init_adapter.take()) {
            adapter.name = name;
        }
        atomic_write(self.out.join(RUN), record.to_json().as_bytes())?;
        self.checkpoints.clear();
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
