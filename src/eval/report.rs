//! Systems that answered the same items, side by side.

use super::item::Item;
use super::judge::{Judge, Mark, Task};
use super::score::{self, Estimate, Measured, difference, measure};
use super::{labels, score::Figure};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// An answer and what it is worth. A text has no answer.
#[derive(Clone, Debug)]
pub struct Answered {
    pub answer: String,
    pub mark: Mark,
}

/// A model, a prompt or a rule that answered all items, in their order.
#[derive(Clone, Debug)]
pub struct System {
    /// tuned, base, base 4-shot, constant …
    pub name: String,
    /// What should be known of it: what the constant is, say.
    pub note: Option<String>,
    pub answers: Vec<Answered>,
}

/// One figure of the first system against another's.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub figure: &'static str,
    pub of: String,
    pub with: String,
    #[serde(flatten)]
    pub difference: Estimate,
    /// better, worse, or no difference shown
    pub verdict: &'static str,
}

/// A system and its figures, by name.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub note: Option<String>,
    pub figures: Vec<(&'static str, Estimate)>,
}

/// All figures of all systems. The first system is the one that is judged.
#[derive(Clone, Debug)]
pub struct Report {
    pub task: Task,
    pub items: usize,
    pub systems: Vec<Row>,
    pub comparisons: Vec<Comparison>,
    /// Of the first system: the labels, and a row of answers for each expected label; the last column is no label.
    pub confusion: Option<(Vec<String>, Vec<Vec<u64>>)>,
}

pub fn compare(judge: &Judge, systems: &[System], seed: u64) -> Report {
    let measured: Vec<Vec<Measured>> = systems
        .iter()
        .map(|system| {
            let counts: Vec<_> = system.answers.iter().map(|a| a.mark.counts.clone()).collect();
            measure(&judge.figures, judge.width, &counts, seed)
        })
        .collect();
    let named = |all: &Vec<Measured>| judge.figures.iter().zip(all).map(|(f, m)| (f.name, m.estimate)).collect();
    let row = |(s, m): (&System, &Vec<Measured>)| Row { name: s.name.clone(), note: s.note.clone(), figures: named(m) };
    let shown = systems.iter().zip(&measured).map(row).collect();
    let mut comparisons = Vec::new();
    for (other, theirs) in systems.iter().zip(&measured).skip(1) {
        for (i, figure) in judge.figures.iter().enumerate() {
            let difference = difference(&measured[0][i], &theirs[i]);
            let (of, with) = (systems[0].name.clone(), other.name.clone());
            comparisons.push(Comparison {
                figure: figure.name,
                of,
                with,
                difference,
                verdict: verdict(figure, difference),
            });
        }
    }
    let items = systems.first().map_or(0, |s| s.answers.len());
    let confusion = systems.first().filter(|_| judge.task == Task::Classification).map(|s| confusion(judge, s));
    Report { task: judge.task, items, systems: shown, comparisons, confusion }
}

/// A difference whose interval holds 0 is none that was shown.
fn verdict(figure: &Figure, difference: Estimate) -> &'static str {
    match difference.shown() {
        false => "no difference shown",
        true if (difference.value > 0.0) != figure.lower_is_better() => "better",
        true => "worse",
    }
}

fn confusion(judge: &Judge, system: &System) -> (Vec<String>, Vec<Vec<u64>>) {
    let k = judge.labels.len();
    let sums = score::sum(labels::counts(k), system.answers.iter().map(|a| &a.mark.counts));
    (judge.labels.clone(), sums.chunks_exact(k + 1).map(|row| row.iter().map(|x| *x as u64).collect()).collect())
}

impl Report {
    pub fn to_json(&self) -> Value {
        let figures =
            |all: &[(&str, Estimate)]| all.iter().map(|(n, e)| (n.to_string(), json!(e))).collect::<Map<_, _>>();
        let system = |row: &Row| {
            let mut value = json!({ "name": row.name, "figures": figures(&row.figures) });
            if let Some(note) = &row.note {
                value["note"] = json!(note);
            }
            value
        };
        let mut report = json!({
            "task": self.task, "items": self.items, "interval": "95 %, bootstrap over the items, paired",
            "systems": self.systems.iter().map(system).collect::<Vec<_>>(), "comparisons": self.comparisons,
        });
        if let Some((labels, rows)) = &self.confusion {
            report["confusion"] = json!({ "labels": labels, "rows": rows });
        }
        report
    }

    /// A table for people: a row a system, a column a figure.
    pub fn table(&self) -> Vec<Vec<String>> {
        let Some(first) = self.systems.first() else { return Vec::new() };
        let head =
            ["".to_string()].into_iter().chain(first.figures.iter().map(|(name, _)| name.replace('_', " "))).collect();
        let digits = if self.task == Task::Text { 3 } else { 1 };
        let row = |row: &Row| {
            let cells = row.figures.iter().map(|(_, estimate)| estimate.text(digits));
            [row.name.clone()].into_iter().chain(cells).collect()
        };
        [head].into_iter().chain(self.systems.iter().map(row)).collect()
    }
}

/// An item with the answers of all systems, as a line of the file of examples.
pub fn example_json(item: &Item, systems: &[System], at: usize) -> Value {
    let one = |system: &System| {
        let Answered { answer, mark } = &system.answers[at];
        let mut value = json!({ "output": answer, "right": mark.right });
        if let Some(why) = &mark.why {
            value["why"] = json!(why);
        }
        (system.name.clone(), value)
    };
    let mut line = json!({ "line": item.line, "input": item.input, "expected": item.expected });
    let first = systems.first().map(one);
    if let Some((_, Value::Object(fields))) = first {
        line.as_object_mut().expect("made as one").extend(fields);
    }
    line["systems"] = systems.iter().map(one).collect::<Map<_, _>>().into();
    line
}
