//! Bad records, collected, so that one run tells of all of them.

use crate::error::Error;

/// The first so many are named, each with its number; the rest is counted.
const NAMED: u64 = 20;

#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// A reason, and the records it was seen at.
    kinds: Vec<(String, Vec<u64>)>,
    total: u64,
    hint: String,
}

impl Problems {
    pub fn add(&mut self, number: u64, reason: impl Into<String>, hint: &str) {
        let reason = reason.into();
        self.total += 1;
        if self.hint.is_empty() {
            self.hint = hint.into();
        }
        if self.total > NAMED {
            return;
        }
        match self.kinds.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, numbers)) => numbers.push(number),
            None => self.kinds.push((reason, vec![number])),
        }
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// One line a reason: `lines 3, 7: not JSON …`.
    pub fn list(&self, unit: &str) -> String {
        let one = |(reason, numbers): &(String, Vec<u64>)| {
            let plural = if numbers.len() > 1 { "s" } else { "" };
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            format!("{unit}{plural} {}: {reason}", numbers.join(", "))
        };
        let mut lines: Vec<String> = self.kinds.iter().map(one).collect();
        if self.total > NAMED {
            lines.push(format!("… and {} more", self.total - NAMED));
        }
        lines.join("\n  ")
    }

    pub fn error(&self, file: &str, unit: &str, records: u64) -> Error {
        let what = format!("{} of {records} records cannot be used\n  {}", self.total, self.list(unit));
        let hint = match self.hint.as_str() {
            "" => "correct these records, or leave them out with --skip-bad-records",
            hint => hint,
        };
        let first = self.kinds.first().and_then(|(_, numbers)| numbers.first()).copied();
        Error::Data { file: file.into(), line: first.filter(|_| unit == "line"), what, hint: hint.into() }
    }
}
