//! `luthier compare`: several methods on the same data with the same steps, side by side.

use super::tasks::{Asked, ask};
use super::{ColumnArgs, ComputeArgs, ModelArg, hidden_bar, say, size, write_table};
use indicatif::{ProgressBar, ProgressStyle};
use luthier::adapter::{Kind, peft};
use luthier::eval::{Estimate, Task};
use luthier::session::{Likely, Tried, grouped};
use luthier::train::TrainOptions;
use luthier::weights::atomic_write;
use luthier::{Error, Result};
use pollster::block_on;
use serde::Serialize;
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// Records that every method is tuned on.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Validation records; without them a part of the data is held out, the same for all.
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// The methods, separated by commas; each may have a learning rate of its own: lora,ia3:0.02,full:1e-4.
    #[arg(long, value_name = "NAMES", default_value = "lora,dora,ia3,prompt,full")]
    methods: String,
    /// Also ask each tuned model, and the untuned one, for the answers of --test-data.
    #[arg(long, value_name = "TASK", requires = "test_data")]
    task: Option<Task>,
    /// Records with answers that no method was tuned on.
    #[arg(long, value_name = "FILE", requires = "task")]
    test_data: Option<PathBuf>,
    /// Folder for the adapters, one folder each.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: ComputeArgs,
    /// Write all figures as a JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Training")]
    options: TrainOptions,
}

/// A method and what it brought; the task's first figure, where one was asked for.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    tried: Tried,
    task: Option<(&'static str, Estimate)>,
}

pub fn run(args: Args, given: &[&str]) -> Result<ExitCode> {
    let methods = methods(&args.methods)?;
    Kind::refuse_unread(&methods.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), given)?;
    args.options.check()?;
    if let Some(out) = args.out.as_ref().filter(|out| out.join(methods[0].0.name()).exists()) {
        let what = format!("'{}' holds adapters", out.display());
        return Err(Error::setting("out", what, "name another folder"));
    }
    let records = args.columns.read(&args.data)?;
    let validation = args.eval_data.as_ref().map(|file| args.columns.read(file)).transpose()?;
    let asked = match (args.task, &args.test_data) {
        (Some(task), Some(file)) => Some(Asked::new(task, &args.columns, file, &args.data)?),
        _ => None,
    };
    let open = |likely: &Likely| args.model.session(args.device.open()?, None, likely);
    // In a session of its own: what answering takes is no memory of the first method's run.
    let untuned = asked
        .as_ref()
        .map(|asked| ask(&mut open(&Likely::ANSWERS)?, asked, args.options.seq_len, false))
        .transpose()?;
    let mut rows = Vec::new();
    for (kind, lr) in methods {
        let options = TrainOptions { method: kind, lr: lr.or(args.options.lr), ..args.options.clone() };
        let mut session = open(&Likely::run(&options))?;
        let bar = bar(kind);
        let tried = block_on(session.try_method(&records, validation.as_ref(), options, |step, steps| {
            bar.set_length(steps);
            bar.set_position(step);
        }));
        bar.finish_and_clear();
        let tried = tried?;
        if let Some(out) = &args.out {
            peft::write(&out.join(kind.name()), &block_on(session.adapter_files())?)?;
        }
        let task = asked.as_ref().map(|asked| ask(&mut session, asked, args.options.seq_len, true)).transpose()?;
        // A long comparison that is cut off has said what it found so far.
        let loss = tried.best.as_ref().map_or("no validation".into(), |best| format!("val loss {:.4}", best.loss));
        eprintln!("{}: {loss} after {:.0} s", kind.name(), tried.seconds);
        rows.push(Row { tried, task });
    }
    show(&args, &rows, untuned.as_ref());
    if let Some(file) = &args.json {
        let all = json!({ "model": args.model.model, "data": args.data, "untuned": untuned, "methods": rows });
        atomic_write(file.clone(), format!("{all:#}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `lora,ia3:0.02`
fn methods(text: &str) -> Result<Vec<(Kind, Option<f64>)>> {
    let bad = |what: String| Error::setting("methods", what, format!("there are {}", Kind::NAMES.join(", ")));
    let one = |item: &str| {
        let (name, lr) = item.split_once(':').map_or((item, None), |(name, lr)| (name, Some(lr)));
        let kind =
            <Kind as clap::ValueEnum>::from_str(name, false).map_err(|_| bad(format!("'{name}' is no method")))?;
        let lr =
            lr.map(|lr| lr.parse().map_err(|_| bad(format!("'{lr}' of {name} is no learning rate")))).transpose()?;
        Ok((kind, lr))
    };
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let methods = items.map(one).collect::<Result<Vec<_>>>()?;
    if methods.is_empty() { Err(bad("is empty".into())) } else { Ok(methods) }
}

fn bar(kind: Kind) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("{}", kind.name());
        return hidden_bar();
    }
    let style = ProgressStyle::with_template("{msg:8} [{bar:30}] {pos}/{len}  {eta} left").expect("a valid template");
    ProgressBar::new(1).with_style(style.progress_chars("=> ")).with_message(kind.name())
}

fn show(args: &Args, rows: &[Row], untuned: Option<&(&'static str, Estimate)>) {
    let first = &rows[0].tried;
    // What stands before the text moves the model from the start.
    let as_it_was = |row: &&Row| Kind::ALL.iter().any(|kind| kind.name() == row.tried.method && kind.merges());
    let start = rows.iter().find(as_it_was).and_then(|row| row.tried.start.as_ref());
    say(format!(
        "{} on {}: {} steps, {} tokens each",
        args.model.model,
        args.data.display(),
        first.steps,
        grouped(first.tokens)
    ));
    let figure = untuned.map_or("", |(name, _)| *name).replace('_', " ");
    let mut head = vec!["method", "lr", "trained", "adapter", "memory", "seconds", "val loss", "at step", "forgetting"];
    head.extend(untuned.map(|_| figure.as_str()));
    let mut table = vec![head.into_iter().map(String::from).collect::<Vec<_>>()];
    let estimate = |e: &Estimate| format!("{:.1} [{:.1}, {:.1}]", e.value, e.low, e.high);
    let loss = |e: Option<f64>| e.map_or("–".into(), |loss| format!("{loss:.4}"));
    let mut base = vec!["untuned".to_string()];
    base.extend(["–"; 5].map(String::from));
    base.extend([loss(start.map(|e| e.loss)), "–".into(), "–".into()]);
    base.extend(untuned.map(|(_, e)| estimate(e)));
    table.push(base);
    for Row { tried: t, task } in rows {
        let share = 100.0 * t.trainable_parameters as f64 / t.parameters as f64;
        let mut row = vec![
            t.method.to_string(),
            format!("{}", t.lr),
            format!("{} ({share:.2} %)", grouped(t.trainable_parameters)),
            size(t.adapter_bytes),
            size(t.memory_bytes),
            format!("{:.1}", t.seconds),
            loss(t.best.as_ref().map(|e| e.loss)),
            format!("{}/{}", t.step, t.steps),
            format!("{:+.3}", t.forgetting.change.value),
        ];
        row.extend(task.iter().map(|(_, e)| estimate(e)));
        table.push(row);
    }
    write_table(&table);
    say(
        "forgetting: change of the loss on plain sentences; every method has its own usual learning rate unless one is named",
    );
}
