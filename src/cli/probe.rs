//! `luthier probe`: short runs on parts of the data, and in plain words what they say.

use super::{ColumnArgs, ComputeArgs, ModelArg, hidden_bar, say, size};
use indicatif::{ProgressBar, ProgressStyle};
use luthier::Result;
use luthier::adapter::Kind;
use luthier::eval::{Item, findings::Finding, items};
use luthier::session::{Likely, Probe, ProbeOptions};
use luthier::train::TrainOptions;
use pollster::block_on;
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The data that the model is to be tuned on.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// A test of your own: looked through for items that the data hold, too.
    #[arg(long, value_name = "FILE")]
    test_data: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// About how long the probe may take.
    #[arg(long, value_name = "MINUTES", default_value_t = 2.0)]
    minutes: f64,
    /// Steps of the largest of the short runs, instead of as many as fit the minutes: the same probe on any machine.
    #[arg(long, value_name = "N")]
    probe_steps: Option<u64>,
    #[command(flatten)]
    device: ComputeArgs,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten, next_help_heading = "The full run")]
    options: TrainOptions,
}

pub fn run(args: Args, given: &[&str]) -> Result<ExitCode> {
    Kind::refuse_unread(&[args.options.method], given)?;
    let records = args.columns.read(&args.data)?;
    let all = items(&records, &text(&args.data)?)?;
    let test = args.test_data.as_ref().map(|file| read(&args.columns, file)).transpose()?;
    let mut session = args.model.session(args.device.open()?, None, &Likely::run(&args.options))?;
    let bar = bar();
    let budget = ProbeOptions { minutes: args.minutes, steps: args.probe_steps };
    let probing = session.probe(&records, &all, test.as_deref(), &args.options, &budget, |what, done, total| match bar
        .is_hidden()
    {
        true => eprintln!("{what}"),
        false => {
            bar.set_message(what.to_string());
            bar.set_length(total);
            bar.set_position(done);
        }
    });
    let probe = block_on(probing);
    bar.finish_and_clear();
    let probe = probe?;
    if args.json {
        say(json!(probe));
    } else {
        show(&probe);
    }
    Ok(ExitCode::SUCCESS)
}

fn text(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| luthier::Error::io(file.display().to_string(), e))
}

fn read(columns: &ColumnArgs, file: &Path) -> Result<Vec<Item>> {
    items(&columns.read(file)?, &text(file)?)
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return hidden_bar();
    }
    let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len}  {msg}").expect("a valid template");
    ProgressBar::new(1).with_style(style.progress_chars("=> "))
}

fn show(probe: &Probe) {
    let v = &probe.verdict;
    v.words.iter().for_each(|line| {
        say(line);
    });
    say("\n  examples   loss on held-out items (answers exactly right)");
    let mut sizes: Vec<usize> = v.curve.iter().map(|(size, ..)| *size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        let runs = v.curve.iter().filter(|(s, ..)| *s == size);
        let losses: Vec<String> = runs.map(|(_, loss, exact)| format!("{loss:.3} ({exact:.0} %)")).collect();
        say(format!("  {size:>8}   {}", losses.join(", ")));
    }
    say(format!("  {:>8}   {:.3}", "control", v.control));
    let full = &probe.full_run;
    say(format!(
        "\nfull training here: {} steps, about {}, {} of memory",
        full.steps,
        minutes(full.minutes),
        size(full.memory)
    ));
    let fastest =
        probe.rates.iter().filter_map(|(rate, loss)| Some((rate, (*loss)?))).min_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((rate, _)) = fastest {
        say(format!("learning rate: {:e} in these runs; {rate:e} learned fastest in the first steps", probe.lr));
    }
    if probe.findings.is_empty() {
        say("found nothing that usually ruins runs");
    }
    probe.findings.iter().for_each(|finding| {
        say(line(finding));
    });
    say(format!(
        "measured with at most {} steps on {} examples, {} held out, in {}",
        probe.steps,
        probe.examples,
        probe.held_out,
        minutes(probe.seconds / 60.0)
    ));
}

fn line(finding: &Finding) -> String {
    let lines: Vec<String> = finding.lines.iter().map(u64::to_string).collect();
    let places = if lines.is_empty() { String::new() } else { format!(" (lines {})", lines.join(", ")) };
    format!("{}: {}{places}", finding.kind, finding.what)
}

fn minutes(minutes: f64) -> String {
    match minutes {
        m if m >= 120.0 => format!("{:.1} hours", m / 60.0),
        m if m >= 2.0 => format!("{m:.0} minutes"),
        m => format!("{:.0} seconds", m * 60.0),
    }
}
