//! `luthier eval`: the loss of a model, with or without an adapter, on data; with `--task`, what its answers are worth.

use super::{DataArgs, DeviceArg, ModelArg, count, say, tasks};
use luthier::eval::Task;
use luthier::session::grouped;
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
    pub(super) device: DeviceArg,
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
    let mut session = args.model.session(args.device.device, args.adapter.as_deref())?;
    let data = session.encode(&records, args.seq_len)?;
    let e = block_on(session.evaluate(&data, args.batch_size, args.seq_len, true))?;
    let stats = &data.stats;
    let value = json!({
        "loss": e.loss, "perplexity": e.perplexity, "accuracy": e.accuracy,
        "supervised_tokens": e.supervised_tokens, "tokens": e.tokens,
        "examples": stats.examples, "truncated": stats.truncated, "skipped": stats.skipped,
    });
    if args.write_json(&value)? {
        return Ok(ExitCode::SUCCESS);
    }
    say(format!("mean NLL       {:.4} nats per supervised token", e.loss));
    say(format!("perplexity     {:.3}", e.perplexity));
    say(format!("token accuracy {:.2} %", 100.0 * e.accuracy));
    say(format!(
        "measured on    {} supervised tokens of {}, in {}",
        grouped(e.supervised_tokens),
        grouped(e.tokens),
        count(stats.examples, "example")
    ));
    if stats.truncated > 0 {
        say(format!("               {} cut at {} tokens (--seq-len)", count(stats.truncated, "example"), args.seq_len));
    }
    Ok(ExitCode::SUCCESS)
}
