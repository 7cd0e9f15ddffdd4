//! `luthier eval`: the loss of a model, with or without an adapter, on data; with `--task`, what its answers are worth.

use super::{ComputeArgs, DataArgs, ModelArg, count, say, tasks};
use luthier::eval::Task;
use luthier::session::{Likely, grouped};
use luthier::train::ExampleLoss;
use luthier::weights::atomic_write;
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) model: ModelArg,
    /// An adapter's folder.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// What kind of answers the data ask for; without it, the loss is measured.
    #[arg(long, value_enum, value_name = "TASK")]
    task: Option<Task>,
    #[command(flatten, next_help_heading = "Tasks")]
    pub(super) tasks: tasks::TaskArgs,
    /// Tokens of a row; longer examples are cut.
    #[arg(long, default_value_t = 256)]
    pub(super) seq_len: usize,
    /// Rows computed together.
    #[arg(long, default_value_t = 4)]
    pub(super) batch_size: usize,
    #[command(flatten)]
    pub(super) device: ComputeArgs,
    /// One JSON object, on stdout or in a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub json: Option<Option<PathBuf>>,
}

impl Args {
    /// Writes the JSON where it was asked for. False where it was not.
    pub(super) fn write_json(&self, value: &serde_json::Value) -> Result<bool> {
        match &self.json {
            None => return Ok(false),
            Some(None) => drop(say(value)),
            Some(Some(file)) => {
                let text = serde_json::to_string_pretty(value).expect("plain data") + "\n";
                atomic_write(file.clone(), text.as_bytes())?;
            }
        }
        Ok(!matches!(self.json, Some(Some(_))))
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(task) = args.task {
        return tasks::run(&args, task);
    }
    if let Some(flag) = args.tasks.given() {
        return Err(Error::setting(
            "task",
            format!("is missing, and --{flag} belongs to a task"),
            "see luthier eval --help",
        ));
    }
    let records = args.data.read()?;
    let mut session = args.model.session(args.device.open()?, args.adapter.as_deref(), &Likely::NOTHING)?;
    let data = session.encode(&records, args.seq_len)?;
    let losses = block_on(session.example_losses(&data, args.batch_size, args.seq_len, true, &mut |_, _| {}))?;
    let e = Summed::of(&losses);
    let stats = &data.stats;
    let value = json!({
        "loss": e.loss, "perplexity": e.perplexity, "accuracy": e.accuracy, "exact": e.exact,
        "supervised_tokens": e.tokens, "tokens": stats.tokens,
        "examples": stats.examples, "truncated": stats.truncated, "skipped": stats.skipped,
    });
    if args.write_json(&value)? {
        return Ok(ExitCode::SUCCESS);
    }
    say(format!("mean NLL       {:.4} nats per supervised token", e.loss));
    say(format!("perplexity     {:.3}", e.perplexity));
    say(format!("token accuracy {:.2} %", 100.0 * e.accuracy));
    say(format!("exact answers  {:.2} %: every token of them is the model's first choice", 100.0 * e.exact));
    say(format!(
        "measured on    {} supervised tokens of {}, in {}",
        grouped(e.tokens),
        grouped(stats.tokens as u64),
        count(stats.examples, "example")
    ));
    if stats.truncated > 0 {
        say(format!("               {} cut at {} tokens (--seq-len)", count(stats.truncated, "example"), args.seq_len));
    }
    Ok(ExitCode::SUCCESS)
}

/// The losses of all examples taken together.
struct Summed {
    loss: f64,
    perplexity: f64,
    /// Share of the supervised tokens that the model ranks first, and of the examples all of whose tokens it does.
    accuracy: f64,
    exact: f64,
    tokens: u64,
}

impl Summed {
    fn of(losses: &[ExampleLoss]) -> Summed {
        let learned: Vec<&ExampleLoss> = losses.iter().filter(|l| l.tokens > 0).collect();
        let sum = |of: &dyn Fn(&ExampleLoss) -> f64| learned.iter().map(|l| of(l)).sum::<f64>();
        let tokens = sum(&|l| l.tokens as f64);
        let loss = sum(&|l| l.loss) / tokens;
        let exact = sum(&|l| f64::from(u8::from(l.hits == l.tokens))) / learned.len() as f64;
        let accuracy = sum(&|l| l.hits as f64) / tokens;
        Summed { loss, perplexity: loss.exp(), accuracy, exact, tokens: tokens as u64 }
    }
}
