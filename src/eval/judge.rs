//! An answer against an item, by task.

use super::api::{self, Api};
use super::item::Item;
use super::score::{Counts, Figure, Rule};
use super::{bleu, call, chrf, command, facts, fields, labels};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

/// What kind of answers a data set asks for, and so how they are obtained and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Task {
    /// One of the labels that occur in the data: the likeliest, nothing is sampled.
    Classification,
    /// JSON objects.
    Extraction,
    /// Sentences in another language.
    Translation,
    /// Short answers.
    Facts,
    /// Command lines.
    Commands,
    /// Calls of the APIs of a list (--apis), as Gorilla's evaluation judges them.
    ApiCalls,
    /// Calls of functions that the line defines, as the Berkeley Function-Calling Leaderboard judges them.
    Bfcl,
    /// Any text: its loss.
    Text,
}

impl Task {
    /// What the data look like. A guess: people know better.
    pub fn guess(items: &[Item]) -> Task {
        let most = |is: &dyn Fn(&Item) -> bool| items.iter().filter(|i| is(i)).count() * 10 >= items.len() * 8;
        let is_object = |i: &Item| serde_json::from_str::<Value>(i.expected.trim()).is_ok_and(|v| v.is_object());
        match () {
            () if most(&|i| i.input.is_empty()) => Task::Text,
            () if most(&|i| i.fields["functions"].is_array()) => Task::Bfcl,
            () if most(&is_object) => Task::Extraction,
            () if are_labels(items) => Task::Classification,
            () if are_commands(items) => Task::Commands,
            () if most(&|i| is_sentence(&i.input) && is_sentence(&i.expected)) => Task::Translation,
            () => Task::Facts,
        }
    }
}

/// A few short answers that come again and again.
fn are_labels(items: &[Item]) -> bool {
    let answers: BTreeSet<&str> = items.iter().map(|item| item.expected.trim()).collect();
    let few = if answers.len() <= 10 { 5 } else { 30 };
    answers.len() * few <= items.len() && answers.iter().all(|a| a.split_whitespace().count() <= 5)
}

/// Answers of one line whose first words come again and again, and of which many have flags.
fn are_commands(items: &[Item]) -> bool {
    let programs: BTreeSet<&str> = items.iter().filter_map(|i| i.expected.split_whitespace().next()).collect();
    let flag = |word: &str| word.trim_start_matches('-').len() < word.len() && word.len() > 1;
    let flagged = |i: &&Item| !i.expected.trim().contains('\n') && i.expected.split_whitespace().skip(1).any(flag);
    programs.len() * 2 <= items.len() && items.iter().filter(flagged).count() * 4 >= items.len()
}

/// Words with a full stop or the like behind them.
fn is_sentence(text: &str) -> bool {
    text.split_whitespace().count() >= 2 && text.trim_end().ends_with(['.', '!', '?', '。', '…', '"', '“', '”'])
}

/// How answers are measured.
pub struct Judge {
    pub task: Task,
    /// The labels of a classification.
    pub labels: Vec<String>,
    apis: Vec<Api>,
    /// The first is the one that matters most.
    pub figures: Vec<Figure>,
    /// Counts of an answer.
    pub width: usize,
}

/// What an answer is worth.
#[derive(Clone, Debug)]
pub struct Mark {
    pub counts: Counts,
    pub right: bool,
    /// Why not, where the task can tell.
    pub why: Option<String>,
}

/// More labels are no classification.
const MOST_LABELS: usize = 500;

impl Judge {
    /// `known` are further expected answers, of the training data: labels that the test happens to lack.
    pub fn new(task: Task, file: &str, items: &[Item], known: &[Item], apis: Vec<Api>) -> Result<Judge> {
        let labels = match task {
            Task::Classification => labels_of(file, items, known)?,
            _ => Vec::new(),
        };
        if task == Task::ApiCalls && apis.is_empty() {
            let what = "is missing, and answers are compared with a list of APIs";
            return Err(Error::setting("apis", what, "name JSON lines with api_call and domain"));
        }
        if let Some((item, what, hint)) = items.iter().find_map(|i| unfit(task, i).map(|(what, hint)| (i, what, hint)))
        {
            return Err(Error::Data { file: file.into(), line: Some(item.line), what, hint: hint.into() });
        }
        let (figures, width) = figures(task, labels.len());
        Ok(Judge { task, labels, apis, figures, width })
    }

    pub fn label(&self, answer: &str) -> Option<usize> {
        self.labels.iter().position(|label| label == answer.trim())
    }

    pub fn mark(&self, item: &Item, answer: &str) -> Mark {
        let (expected, trimmed) = (item.expected.as_str(), answer.trim());
        let of = |counts: Counts, place: usize| {
            let right = counts.iter().any(|(p, amount)| *p == place && *amount > 0.0);
            Mark { counts, right, why: None }
        };
        match self.task {
            Task::Classification => {
                let k = self.labels.len();
                let (expected, answered) = (self.label(expected).expect("a label of the data"), self.label(answer));
                let counts = vec![(labels::place(k, expected, answered), 1.0)];
                Mark { counts, right: answered == Some(expected), why: None }
            }
            Task::Extraction => {
                of(fields::counts(trimmed, &serde_json::from_str(expected.trim()).unwrap_or_default()), 1)
            }
            Task::Translation => translation(trimmed, expected.trim()),
            Task::Facts => of(facts::counts(trimmed, expected), 1),
            Task::Commands => of(command::counts(trimmed, expected), 1),
            Task::ApiCalls => self.api_call(item, answer),
            Task::Bfcl => {
                let why = call::wrong(answer, &item.fields["functions"], &item.fields["ground_truth"]);
                let counts = vec![(0, 1.0), (1, if why.is_none() { 1.0 } else { 0.0 })];
                Mark { counts, right: why.is_none(), why }
            }
            Task::Text => unreachable!("a text is measured by its loss"),
        }
    }

    fn api_call(&self, item: &Item, answer: &str) -> Mark {
        let found = api::find(answer, &self.apis).map(|at| &self.apis[at]);
        let domain = found.is_some_and(|api| item.fields["domain"] == api.domain.as_str());
        let exact = api::exact(answer, &item.expected);
        let why = match found {
            None => Some("no known API".into()),
            Some(api) if !domain => Some(format!("an API for {}", api.domain)),
            Some(_) if !exact => Some("another API of the same domain".into()),
            Some(_) => None,
        };
        let flag = |is: bool| f64::from(u8::from(is));
        let counts = vec![(0, 1.0), (1, flag(exact)), (2, flag(domain)), (3, flag(found.is_none()))];
        Mark { counts, right: exact, why: why.filter(|_| !exact) }
    }

    /// The mark of a text by the loss of its tokens: their sum, how many, and how many were ranked first.
    pub fn mark_loss(&self, loss: f64, tokens: f64, hits: f64) -> Mark {
        Mark { counts: vec![(0, loss), (1, tokens), (2, hits)], right: tokens > 0.0 && hits == tokens, why: None }
    }
}

fn translation(answer: &str, expected: &str) -> Mark {
    let right = answer == expected;
    let mut amounts = vec![1.0, f64::from(u8::from(right))];
    amounts.extend(chrf::counts(answer, expected));
    amounts.extend(bleu::counts(answer, expected));
    Mark { counts: amounts.into_iter().enumerate().collect(), right, why: None }
}

fn labels_of(file: &str, items: &[Item], known: &[Item]) -> Result<Vec<String>> {
    let mut labels: Vec<String> = items.iter().chain(known).map(|i| i.expected.trim().to_string()).collect();
    labels.sort();
    labels.dedup();
    if labels.len() <= MOST_LABELS && (labels.len() < items.len() || labels.len() <= 2) {
        return Ok(labels);
    }
    let what = format!("{} items have {} different answers: these are no labels", items.len(), labels.len());
    Err(Error::Data { file: file.into(), line: None, what, hint: "choose another --task".into() })
}

/// What an item lacks for its task.
fn unfit(task: Task, item: &Item) -> Option<(String, &'static str)> {
    let json = || serde_json::from_str::<Value>(item.expected.trim());
    match task {
        Task::Extraction => {
            json().err().map(|e| (format!("the expected answer is no JSON: {e}"), "extraction compares JSON objects"))
        }
        Task::ApiCalls if !item.fields["domain"].is_string() => {
            Some(("there is no text called domain".into(), "the accuracy of API calls is that of their domains"))
        }
        Task::Bfcl if !item.fields["functions"].is_array() => {
            Some(("there is no list called functions".into(), "a line defines its functions, and the ground_truth"))
        }
        _ => None,
    }
}

/// The figures of a task, the one that matters most first, and how many counts they are made of.
fn figures(task: Task, k: usize) -> (Vec<Figure>, usize) {
    use Rule::*;
    let (all, width): (&[(&'static str, Rule)], usize) = match task {
        Task::Classification => (&[("accuracy", Accuracy(k)), ("macro_f1", MacroF1(k))], labels::counts(k)),
        Task::Extraction => (
            &[
                ("exact_match", Share(1, 0)),
                ("valid_json", Share(2, 0)),
                ("field_f1", F1(3, 4, 5)),
                ("field_precision", Share(3, 4)),
                ("field_recall", Share(3, 5)),
            ],
            fields::COUNTS,
        ),
        Task::Translation => (
            &[("chrf", Chrf(2)), ("bleu", Bleu(2 + chrf::COUNTS)), ("exact_match", Share(1, 0))],
            2 + chrf::COUNTS + bleu::COUNTS,
        ),
        Task::Facts => (&[("exact_match", Share(1, 0)), ("contains", Share(2, 0))], facts::COUNTS),
        Task::Commands => (
            &[
                ("exact_match", Share(1, 0)),
                ("same_command", Share(2, 0)),
                ("same_program", Share(3, 0)),
                ("flag_f1", F1(4, 5, 6)),
            ],
            command::COUNTS,
        ),
        Task::ApiCalls => {
            (&[("exact_api", Share(1, 0)), ("ast_accuracy", Share(2, 0)), ("hallucination", Share(3, 0))], 4)
        }
        Task::Bfcl => (&[("accuracy", Share(1, 0))], 2),
        Task::Text => (&[("loss", Mean(0, 1)), ("perplexity", Perplexity(0, 1)), ("token_accuracy", Share(2, 1))], 3),
    };
    (all.iter().map(|&(name, rule)| Figure { name, rule }).collect(), width)
}
