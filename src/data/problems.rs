//! Bad records, collected, so that one run tells of all of them.

use crate::error::Error;

/// The first so many are named in an error, each with its number; the rest is counted.
const NAMED: usize = 20;
/// The first so many are kept.
const KEPT: usize = 1000;

#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// Records and what is wrong with them.
    kept: Vec<(u64, String)>,
    total: u64,
    hint: String,
}

impl Problems {
    pub fn add(&mut self, number: u64, reason: impl Into<String>, hint: &str) {
        self.total += 1;
        if self.hint.is_empty() {
            self.hint = hint.into();
        }
        if self.kept.len() < KEPT {
            self.kept.push((number, reason.into()));
        }
    }

    /// Numbers and reasons of the first thousand.
    pub fn kept(&self) -> &[(u64, String)] {
        &self.kept
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// One line a reason: `lines 3, 7: not JSON …`.
    pub fn list(&self, unit: &str) -> String {
        let mut kinds: Vec<(&str, Vec<u64>)> = Vec::new();
        for (number, reason) in self.kept.iter().take(NAMED) {
            match kinds.iter_mut().find(|(known, _)| known == reason) {
                Some((_, numbers)) => numbers.push(*number),
                None => kinds.push((reason, vec![*number])),
            }
        }
        let one = |(reason, numbers): &(&str, Vec<u64>)| {
            let plural = if numbers.len() > 1 { "s" } else { "" };
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            format!("{unit}{plural} {}: {reason}", numbers.join(", "))
        };
        let mut lines: Vec<String> = kinds.iter().map(one).collect();
        if self.total > NAMED as u64 {
            lines.push(format!("… and {} more", self.total - NAMED as u64));
        }
        lines.join("\n  ")
    }

    pub fn error(&self, file: &str, unit: &str, records: u64) -> Error {
        let what = format!("{} of {records} records cannot be used\n  {}", self.total, self.list(unit));
        let hint = match self.hint.as_str() {
            "" => "correct these records, or leave them out with --skip-bad-records",
            hint => hint,
        };
        let first = self.kept.first().map(|(number, _)| *number);
        Error::Data { file: file.into(), line: first.filter(|_| unit == "line"), what, hint: hint.into() }
    }
}
