//! `luthier eval --task`: answers of the tuned model beside those of the untuned one, of a constant and of other
//! models' files, with intervals; and what tuning cost on plain sentences.

use super::{ColumnArgs, count, eval::Args, say, write_table};
use indicatif::{ProgressBar, ProgressStyle};
use luthier::eval::{Answered, Estimate, Item, Judge, Report, System, Task, api, compare, example_json, items};
use luthier::session::{Asking, Forgetting, Likely, Session, constant};
use luthier::weights::atomic_write;
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct TaskArgs {
    /// The data it was tuned on: worked examples for the untuned model, and its most frequent answer.
    #[arg(long, value_name = "FILE")]
    train_data: Option<PathBuf>,
    /// Most worked examples that the untuned model is shown; fewer where the context is short.
    #[arg(long, value_name = "K", default_value_t = 4)]
    shots: usize,
    /// Answers of another model to the same data: JSON lines with "output", in order or with the "line" they answer.
    #[arg(long, value_name = "FILE")]
    predictions: Vec<PathBuf>,
    /// The known APIs of --task api-calls: JSON lines with api_call and domain.
    #[arg(long, value_name = "FILE")]
    apis: Option<PathBuf>,
    /// Write every item with all answers and verdicts, a JSON object a line.
    #[arg(long, value_name = "FILE")]
    per_example: Option<PathBuf>,
    /// Most tokens of an answer; without it, enough for the longest that is expected.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Leave out the untuned model, the constant and the plain sentences.
    #[arg(long)]
    no_baselines: bool,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl TaskArgs {
    /// A flag that was given.
    pub fn given(&self) -> Option<&'static str> {
        let TaskArgs { train_data, predictions, apis, per_example, max_new_tokens, no_baselines, .. } = self;
        let all = [
            (train_data.is_some(), "train-data"),
            (!predictions.is_empty(), "predictions"),
            (apis.is_some(), "apis"),
            (per_example.is_some(), "per-example"),
            (max_new_tokens.is_some(), "max-new-tokens"),
            (*no_baselines, "no-baselines"),
        ];
        all.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }
}

pub fn run(args: &Args, task: Task) -> Result<ExitCode> {
    let test = read(args, &args.data.data)?;
    let known = args.tasks.train_data.as_ref().map_or(Ok(Vec::new()), |file| read(args, file))?;
    let file = args.data.data.display().to_string();
    let apis = args.tasks.apis.as_ref().map_or(Ok(Vec::new()), |file| {
        let name = file.display().to_string();
        api::list(&read_text(file)?).map_err(|what| data_error(&name, what))
    })?;
    let judge = Judge::new(task, &file, &test, &known, apis)?;
    let others = args.tasks.predictions.iter().map(|file| predictions(&judge, &test, file));
    let others = others.collect::<Result<Vec<_>>>()?;
    let mut session = args.model.session(args.device.open()?, args.adapter.as_deref(), &Likely::ANSWERS)?;
    let run = Run { args, judge, test, known };
    let mut systems = run.answers(&mut session)?;
    systems.extend(others);
    let report = compare(&run.judge, &systems, args.tasks.seed);
    let forgetting = (args.adapter.is_some() && !args.tasks.no_baselines).then(|| session.forgetting(args.tasks.seed));
    let forgetting = forgetting.map(block_on).transpose()?;
    if let Some(file) = &args.tasks.per_example {
        let line = |at: usize| format!("{}\n", example_json(&run.test[at], &systems, at));
        atomic_write(file.clone(), (0..run.test.len()).map(line).collect::<String>().as_bytes())?;
    }
    if !args.write_json(&run.to_json(&report, forgetting.as_ref()))? {
        show(&report, forgetting.as_ref());
    }
    Ok(ExitCode::SUCCESS)
}

/// A task's questions, for whoever asks several models.
pub struct Asked {
    judge: Judge,
    items: Vec<Item>,
}

impl Asked {
    /// `known`: what the models are tuned on, for labels that the questions lack.
    pub fn new(task: Task, columns: &ColumnArgs, file: &Path, known: &Path) -> Result<Asked> {
        let of = |file: &Path| items(&columns.read(file)?, &read_text(file)?);
        let (items, known) = (of(file)?, of(known)?);
        let judge = Judge::new(task, &file.display().to_string(), &items, &known, Vec::new())?;
        Ok(Asked { judge, items })
    }
}

/// The task's first figure of the model, with the adapter or without.
pub fn ask(session: &mut Session, asked: &Asked, seq_len: usize, adapted: bool) -> Result<(&'static str, Estimate)> {
    let asking = Asking { batch_size: 8, seq_len, max_new_tokens: None, seed: 0 };
    let answers = block_on(session.answer(&asked.judge, &asked.items, &[], &asking, adapted, &mut |_, _| {}))?;
    let systems = [System { name: String::new(), note: None, answers }];
    Ok(compare(&asked.judge, &systems, 0).systems[0].figures[0])
}

fn read_text(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| Error::io(file.display().to_string(), e))
}

fn read(args: &Args, file: &Path) -> Result<Vec<Item>> {
    items(&args.data.columns.read(file)?, &read_text(file)?)
}

fn data_error(file: &str, what: String) -> Error {
    Error::Data { file: file.into(), line: None, what, hint: String::new() }
}

struct Run<'a> {
    args: &'a Args,
    judge: Judge,
    test: Vec<Item>,
    known: Vec<Item>,
}

impl Run<'_> {
    /// Of the model as it is asked about, first; then of what it is compared with.
    fn answers(&self, session: &mut Session) -> Result<Vec<System>> {
        let tuned = self.args.adapter.is_some();
        let mut systems = vec![self.system(session, if tuned { "tuned" } else { "base" }, &[], tuned)?];
        if self.args.tasks.no_baselines {
            return Ok(systems);
        }
        if tuned {
            systems.push(self.system(session, "base", &[], false)?);
        }
        let shots = match self.judge.task {
            Task::Text => Vec::new(),
            _ => session.shots(&self.judge, &self.test, &self.known, self.args.tasks.shots, &self.asking())?,
        };
        if !shots.is_empty() {
            systems.push(self.system(session, &format!("base, {}-shot", shots.len()), &shots, false)?);
        } else if !self.known.is_empty() && self.args.tasks.shots > 0 && self.judge.task != Task::Text {
            eprintln!("note: the context has no room for a worked example, so there is no few-shot baseline");
        }
        systems.extend(constant(&self.judge, &self.test, &self.known));
        Ok(systems)
    }

    fn asking(&self) -> Asking {
        let Args { batch_size, seq_len, tasks, .. } = self.args;
        let (batch_size, seq_len) = (*batch_size, *seq_len);
        Asking { batch_size, seq_len, max_new_tokens: tasks.max_new_tokens, seed: tasks.seed }
    }

    fn system(&self, session: &mut Session, name: &str, shots: &[&Item], adapted: bool) -> Result<System> {
        let bar = bar(name, self.test.len());
        let mut progress = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let asking = self.asking();
        let answers = block_on(session.answer(&self.judge, &self.test, shots, &asking, adapted, &mut progress));
        bar.finish_and_clear();
        Ok(System { name: name.into(), note: None, answers: answers? })
    }

    fn to_json(&self, report: &Report, forgetting: Option<&Forgetting>) -> Value {
        let mut value = report.to_json();
        value["model"] = json!(self.args.model.model);
        value["adapter"] = json!(self.args.adapter);
        value["data"] = json!(self.args.data.data);
        if let Some(forgetting) = forgetting {
            value["forgetting"] = json!(forgetting);
        }
        value
    }
}

fn bar(name: &str, items: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("{name}: {}", count(items, "item"));
        return super::hidden_bar();
    }
    let style = ProgressStyle::with_template("{msg:14} [{bar:30}] {pos}/{len}  {eta} left").expect("a valid template");
    ProgressBar::new(items as u64).with_style(style.progress_chars("=> ")).with_message(name.to_string())
}

/// Answers from a file, by the line they answer where they say so, else in the order of the items.
fn predictions(judge: &Judge, items: &[Item], file: &Path) -> Result<System> {
    let name = file.display().to_string();
    if judge.task == Task::Text {
        return Err(Error::setting(
            "predictions",
            "are answers, and a text has none",
            "leave them out, or choose a task",
        ));
    }
    let text = read_text(file)?;
    let bad = |line: usize, what: String| Error::Data {
        file: name.clone(),
        line: Some(line as u64),
        what,
        hint: r#"a line is {"output": "…"}, with "line" where not every item is answered"#.into(),
    };
    let (mut by_line, mut in_order) = (HashMap::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).map_err(|e| bad(number, format!("not JSON: {e}")))?;
        let output = value["output"].as_str().ok_or_else(|| bad(number, "there is no text called output".into()))?;
        match value["line"].as_u64() {
            Some(at) => drop(by_line.insert(at, output.to_string())),
            None => in_order.push(output.to_string()),
        }
    }
    let answer = |(i, item): (usize, &Item)| by_line.get(&item.line).or(in_order.get(i)).cloned();
    let found: Option<Vec<String>> = items.iter().enumerate().map(answer).collect();
    let Some(found) = found.filter(|_| in_order.is_empty() || in_order.len() == items.len()) else {
        let what = format!("holds {} answers to {} items", by_line.len() + in_order.len(), items.len());
        return Err(data_error(&name, what));
    };
    let answers =
        found.into_iter().zip(items).map(|(answer, item)| Answered { mark: judge.mark(item, &answer), answer });
    Ok(System { name: name.clone(), note: None, answers: answers.collect() })
}

fn show(report: &Report, forgetting: Option<&Forgetting>) {
    say(format!("{}; 95 % intervals in brackets", count(report.items, "item")));
    write_table(&report.table());
    for row in &report.systems {
        if let Some(note) = &row.note {
            say(format!("{}: {note}", row.name));
        }
    }
    for c in report.comparisons.iter().filter(|c| Some(c.figure) == report.systems[0].figures.first().map(|f| f.0)) {
        let d = &c.difference;
        let figure = c.figure.replace('_', " ");
        say(format!(
            "{} against {}: {figure} {:+.2} [{:+.2}, {:+.2}], {}",
            c.of, c.with, d.value, d.low, d.high, c.verdict
        ));
    }
    if let Some(f) = forgetting {
        let c = &f.change;
        say(format!(
            "forgetting: loss on {} plain sentences {:.3} -> {:.3}, {:+.3} [{:+.3}, {:+.3}], {}",
            f.sentences, f.before, f.after, c.value, c.low, c.high, f.verdict
        ));
    }
}
