//! The commands, one file each, and what they share: how a model, an adapter and data are named, and how errors,
//! sizes and progress are shown.
//!
//! Results go to stdout; progress, notes and errors to stderr. A command ends with 0, with 1 after an error, and with
//! 2 (clap's) where the command line itself cannot be read.

mod checkpoints;
mod compare;
mod devices;
mod eval;
mod export;
mod generate;
mod handoff;
mod inspect;
mod merge;
mod merge_adapters;
mod out;
mod probe;
mod progress;
mod recipe;
mod tasks;
mod train;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use luthier::adapter::{self, Adapter};
use luthier::data::{ColumnMap, ReadOptions, Records, read_file};
use luthier::device::{Device, DeviceChoice};
use luthier::error::size;
use luthier::session::{Likely, Session};
use luthier::train::option_table;
use luthier::weights::{ModelFiles, hub};
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tunes small language models on your own machine with LoRA, on the GPU or the CPU.
#[derive(Parser)]
#[command(name = "luthier", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tune a model on your data and write the adapter.
    #[command(allow_negative_numbers = true)]
    Train(Box<train::Args>),
    /// Measure the loss of a model on data, or what its answers are worth.
    Eval(Box<eval::Args>),
    /// Find out in minutes whether a model can learn some data, and what would help.
    #[command(allow_negative_numbers = true)]
    Probe(Box<probe::Args>),
    /// Tune with several methods on the same data and steps, and show what each brought and cost.
    #[command(allow_negative_numbers = true)]
    Compare(Box<compare::Args>),
    /// Let a model go on from prompts.
    Generate(generate::Args),
    /// Write a model with an adapter added in, as a Hugging Face folder or a GGUF file that needs neither.
    Merge(merge::Args),
    /// Write an adapter in the files of PEFT, llama.cpp or mlx-lm.
    Export(export::Args),
    /// Make one adapter of several, weighted.
    MergeAdapters(merge_adapters::Args),
    /// Make a folder in which TRL, PEFT and Accelerate go on from an adapter.
    Handoff(handoff::Args),
    /// Show data as the model sees it, or what a model or an adapter consists of.
    Inspect(inspect::Args),
    /// List what the engine can run on.
    Devices(devices::Args),
}

pub fn run() -> ExitCode {
    quieten_drivers();
    let matches = Cli::command().get_matches();
    let given = given(&matches);
    let (json, result) = match Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).command {
        Command::Train(args) => (false, train::run(*args, &given)),
        Command::Eval(args) => (args.json.is_some(), eval::run(*args)),
        Command::Probe(args) => (args.json, probe::run(*args, &given)),
        Command::Compare(args) => (false, compare::run(*args, &given)),
        Command::Generate(args) => (args.json, generate::run(args)),
        Command::Merge(args) => (false, merge::run(args)),
        Command::Export(args) => (false, export::run(args)),
        Command::MergeAdapters(args) => (false, merge_adapters::run(args)),
        Command::Handoff(args) => (false, handoff::run(args)),
        Command::Inspect(args) => (args.json(), inspect::run(args)),
        Command::Devices(args) => (args.json, devices::run(args)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{}", if json { error_json(&error) } else { error_text(&error) });
        ExitCode::FAILURE
    })
}

/// The options of a run that stand on the command line, by their names in the table of options.
fn given(matches: &ArgMatches) -> Vec<&'static str> {
    let Some((_, matches)) = matches.subcommand() else { return Vec::new() };
    let typed = |name: &str| {
        let known = matches.try_contains_id(name).is_ok();
        known && matches.value_source(name) == Some(ValueSource::CommandLine)
    };
    option_table().into_iter().map(|row| row.name).filter(|name| typed(name)).collect()
}

/// Mesa's drivers look for a desktop when they are loaded and, where there is none, print an error of their own that
/// means nothing here. With any folder to look in they are silent.
fn quieten_drivers() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: nothing has been started yet that could read the environment at the same time.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}

fn error_json(error: &Error) -> String {
    json!({ "error": { "code": error.code(), "message": error.to_string(), "hint": error.hint() } }).to_string()
}

fn error_text(error: &Error) -> String {
    match error.hint() {
        "" => format!("error: {error}"),
        hint => format!("error: {error}\nhint: {hint}"),
    }
}

/// `--model`
#[derive(clap::Args)]
struct ModelArg {
    /// A model's folder, a .gguf file, or a name (nano, smollm2-135m-instruct ...).
    #[arg(long, value_name = "MODEL")]
    model: String,
}

impl ModelArg {
    /// The model's files, downloaded if need be.
    fn open(&self) -> Result<ModelFiles> {
        let bar = hidden_bar();
        let mut file = String::new();
        let path = hub::resolve(&self.model, &mut |p| {
            if file != p.file {
                file = p.file.to_string();
                show_bytes(&bar, &format!("downloading {file}"), p.total);
            }
            bar.set_position(p.done);
        });
        bar.finish_and_clear();
        ModelFiles::open(path?)
    }

    /// The model on a device, with its adapter. What is likely to be asked for is compiled meanwhile.
    fn session(&self, device: Device, adapter: Option<&Path>, likely: &Likely) -> Result<Session> {
        let bar = hidden_bar();
        let files = self.open()?;
        let mut session = block_on(Session::open_on(device, likely, &files, &self.model, |done, total| {
            // Smaller models are there before a bar could be read.
            if bar.length().is_none() && total > 64 << 20 {
                show_bytes(&bar, "loading", Some(total));
            }
            bar.set_position(done);
        }))?;
        bar.finish_and_clear();
        session.published = hub::published(&self.model);
        if let Some(path) = adapter {
            let (lora, flat) = open_adapter(path, &session)?;
            block_on(session.load_adapter(lora, &flat))?;
        }
        Ok(session)
    }
}

/// An adapter for the session's model; one that was tuned on another is taken, with a note.
fn open_adapter(path: &Path, session: &Session) -> Result<(Adapter, Vec<f32>)> {
    let files = adapter::sources(path)?;
    let adapter = block_on(adapter::read(&files, session.spec()))?;
    let tuned_on = block_on(adapter::base_sha256(&files))?;
    if let Some(other) = session.other_base(tuned_on.as_deref()) {
        eprintln!("note: {other}; {}", other.hint());
    }
    Ok(adapter)
}

/// `--device`
#[derive(clap::Args)]
struct DeviceArg {
    /// Where to compute: auto takes a real GPU, else the CPU; gpu takes a software one too.
    #[arg(long, value_enum, default_value = "auto", hide_possible_values = true, value_name = "auto|gpu|cpu")]
    device: DeviceChoice,
}

impl DeviceArg {
    fn open(&self) -> Result<Device> {
        block_on(Device::open(self.device))
    }
}

/// `--device` and `--fp16`, where nothing exact is promised
#[derive(clap::Args)]
struct ComputeArgs {
    #[command(flatten)]
    device: DeviceArg,
    /// Let a GPU's products keep their factors as halves (11 bits; sums stay f32), on matrix units where `luthier devices`
    /// names them: less exact, and taken where it was measured to be faster.
    #[arg(long)]
    fp16: bool,
}

impl ComputeArgs {
    fn open(&self) -> Result<Device> {
        block_on(Device::open_with(self.device.device, self.fp16))
    }
}

/// `--data` and how to read it
#[derive(clap::Args)]
struct DataArgs {
    /// Records: .jsonl, .json, .csv, .tsv or .txt.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
}

impl DataArgs {
    fn read(&self) -> Result<Records> {
        self.columns.read(&self.data)
    }
}

#[derive(clap::Args)]
struct ColumnArgs {
    /// Field or column that holds the prompt (in a table without header: its number).
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    prompt_column: Option<String>,
    /// Field or column that holds the answer.
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    completion_column: Option<String>,
    /// Field or column that holds a text to learn as a whole.
    #[arg(long, value_name = "NAME", help_heading = "Data", conflicts_with_all = ["prompt_column", "completion_column"])]
    text_column: Option<String>,
    /// Leave out records that cannot be used, and count them, instead of stopping.
    #[arg(long, help_heading = "Data")]
    skip_bad_records: bool,
}

impl ColumnArgs {
    fn read(&self, file: &Path) -> Result<Records> {
        read_file(file, &self.options())
    }

    fn options(&self) -> ReadOptions {
        let columns = ColumnMap {
            prompt: self.prompt_column.clone(),
            completion: self.completion_column.clone(),
            text: self.text_column.clone(),
        };
        ReadOptions { columns, skip_bad: self.skip_bad_records, ..Default::default() }
    }
}

/// Prints a line of a result. False when nobody reads any more (`| head`), which is no error.
fn say(line: impl std::fmt::Display) -> bool {
    writeln!(std::io::stdout(), "{line}").is_ok()
}

/// Prints rows of cells as columns, the first row as their heads.
fn write_table(table: &[Vec<String>]) {
    let columns = table.first().map_or(0, Vec::len);
    let width = |c: usize| table.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in table {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        say(cells.join("  ").trim_end());
    }
}

/// "1 example", "2 examples".
fn count(n: usize, what: &str) -> String {
    format!("{} {what}{}", luthier::session::grouped(n as u64), if n == 1 { "" } else { "s" })
}

fn hidden_bar() -> ProgressBar {
    ProgressBar::with_draw_target(None, indicatif::ProgressDrawTarget::hidden())
}

/// Shows a bar of bytes; where stderr is no terminal, one line that says what takes so long.
fn show_bytes(bar: &ProgressBar, what: &str, total: Option<u64>) {
    let Some(total) = total else { return };
    if !std::io::stderr().is_terminal() {
        eprintln!("{what} ({})", size(total));
        return bar.set_length(total);
    }
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left");
    bar.set_style(style.expect("a valid template").progress_chars("=> "));
    bar.set_message(what.to_string());
    bar.set_length(total);
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands of a document: lines that begin with `$ luthier`, without comments, joined where a backslash ends them.
    fn commands(text: &str) -> Vec<String> {
        let joined = text.replace("\\\n", " ");
        let command = |line: &str| {
            let line = line.trim_start().strip_prefix("$ ")?;
            line.starts_with("luthier ").then(|| line.split(" #").next().unwrap_or(line).trim_end().to_string())
        };
        joined.lines().filter_map(command).collect()
    }

    /// What the documents say to type is what the parser takes. An ellipsis stands for what was said before.
    #[test]
    fn commands_of_the_documents_parse() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let recipes = std::fs::read_dir(root.join("recipes")).unwrap().map(|entry| entry.unwrap().path());
        let mut seen = 0;
        for file in recipes.chain([root.join("README.md")]).filter(|f| f.extension().is_some_and(|e| e == "md")) {
            for command in commands(&std::fs::read_to_string(&file).unwrap()) {
                let command = command.replace(" ...", " --model nano --data x");
                if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
                    panic!("{}: `{command}`: {error}", file.display());
                }
                seen += 1;
            }
        }
        assert!(seen >= 16, "{seen} commands found");
    }
}
