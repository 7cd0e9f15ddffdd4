//! `luthier eval`: the loss of a model, with or without an adapter, on data.

use super::{DataArgs, DeviceArg, ModelArg, count, say};
use luthier::Result;
use luthier::session::grouped;
use pollster::block_on;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// An adapter's folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// Tokens of a row; longer examples are cut.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// Rows computed together.
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    #[command(flatten)]
    device: DeviceArg,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let records = args.data.read()?;
    let mut session = args.model.session(args.device.device, args.adapter.as_deref())?;
    let data = session.encode(&records, args.seq_len)?;
    let e = block_on(session.evaluate(&data, args.batch_size, args.seq_len, true))?;
    let stats = &data.stats;
    if args.json {
        say(json!({
            "loss": e.loss, "perplexity": e.perplexity, "accuracy": e.accuracy,
            "supervised_tokens": e.supervised_tokens, "tokens": e.tokens,
            "examples": stats.examples, "truncated": stats.truncated, "skipped": stats.skipped,
        }));
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
