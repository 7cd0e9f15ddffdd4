//! What comes out of a bench: rows as they come, in tables of Markdown, and all of them as one JSON document.

use serde_json::{Map, Value, json};

/// A row: the column's keys and what was measured. Further keys go into the JSON alone.
pub type Row = Map<String, Value>;

/// A row from pairs.
pub fn row<const N: usize>(pairs: [(&str, Value); N]) -> Row {
    pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

#[derive(Clone, Copy)]
enum Kind {
    Text(usize),
    /// Digits after the point.
    Number(usize),
    Share,
}

#[derive(Clone, Copy)]
pub struct Column {
    key: &'static str,
    head: &'static str,
    kind: Kind,
}

impl Column {
    pub const fn text(key: &'static str, head: &'static str, width: usize) -> Column {
        Column { key, head, kind: Kind::Text(width) }
    }

    pub const fn number(key: &'static str, head: &'static str, digits: usize) -> Column {
        Column { key, head, kind: Kind::Number(digits) }
    }

    /// A share of 1, shown in percent.
    pub const fn share(key: &'static str, head: &'static str) -> Column {
        Column { key, head, kind: Kind::Share }
    }

    fn width(&self) -> usize {
        match self.kind {
            Kind::Text(width) => width,
            _ => self.head.len().max(9),
        }
    }

    fn cell(&self, row: &Row) -> String {
        let width = self.width();
        let text = match (self.kind, row.get(self.key)) {
            (Kind::Text(_), Some(Value::String(text))) => return format!("{text:<width$}"),
            (Kind::Number(digits), Some(value)) => value.as_f64().map(|x| format!("{x:.digits$}")),
            (Kind::Share, Some(value)) => value.as_f64().map(|x| format!("{:.0} %", 100.0 * x)),
            _ => None,
        };
        format!("{:>width$}", text.unwrap_or("–".into()))
    }
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

/// The first two lines of a table.
fn head(columns: &[Column]) -> String {
    let names = columns.iter().map(|c| match c.kind {
        Kind::Text(width) => format!("{:<width$}", c.head),
        _ => format!("{:>width$}", c.head, width = c.width()),
    });
    let rules = columns.iter().map(|c| match c.kind {
        Kind::Text(width) => "-".repeat(width),
        _ => format!("{}:", "-".repeat(c.width() - 1)),
    });
    format!("{}\n{}", line(names), line(rules))
}

/// Why a case has no row.
pub enum Missing {
    /// No time was left, or the machine is too small: an answer too.
    NotRun(String),
    Failed(String),
}

#[derive(Default)]
pub struct Report {
    rows: Vec<(&'static str, Row)>,
    missing: Vec<(String, Missing)>,
}

impl Report {
    /// Keeps a row and prints it, under a head of its own where the row before it was of another table.
    pub fn add(&mut self, section: &'static str, columns: &[Column], row: Row) {
        if self.rows.last().is_none_or(|(last, _)| *last != section) {
            println!("\n{section}\n\n{}", head(columns));
        }
        println!("{}", line(columns.iter().map(|column| column.cell(&row))));
        self.rows.push((section, row));
    }

    pub fn miss(&mut self, case: String, why: Missing) {
        self.missing.push((case, why));
    }

    pub fn failures(&self) -> usize {
        self.missing.iter().filter(|(_, why)| matches!(why, Missing::Failed(_))).count()
    }

    /// Prints what has no row.
    pub fn print_missing(&self) {
        if !self.missing.is_empty() {
            println!("\nnot run\n");
        }
        for (case, why) in &self.missing {
            match why {
                Missing::NotRun(why) => println!("* {case}: {why}"),
                Missing::Failed(why) => println!("* {case}: FAILED: {why}"),
            }
        }
    }

    /// Everything, `about` first.
    pub fn json(&self, about: Row) -> Value {
        let mut document = about;
        for (section, row) in &self.rows {
            let rows = document.entry(*section).or_insert_with(|| json!([]));
            rows.as_array_mut().expect("a section is a list").push(row.clone().into());
        }
        let missing = self.missing.iter().map(|(case, why)| match why {
            Missing::NotRun(why) => json!({ "case": case, "why": why }),
            Missing::Failed(why) => json!({ "case": case, "failed": why }),
        });
        document.insert("not_run".into(), missing.collect());
        document.into()
    }
}
