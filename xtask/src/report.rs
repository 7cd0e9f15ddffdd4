//! What a demo page tells while it runs (one JSON object a line, see `www/demo/worker.js`), printed and kept.

use crate::shell::Outcome;
use serde_json::Value;

/// Exact matches on one held-out set, before or after tuning.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    pub set: String,
    pub phase: String,
    pub exact: u64,
    pub total: u64,
}

impl Score {
    pub fn share(&self) -> f64 {
        self.exact as f64 / self.total.max(1) as f64
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Score { set, phase, exact, total } = self;
        write!(out, "{set}, {phase} tuning: {exact} of {total} exact ({:.0} %)", 100.0 * self.share())
    }
}

/// One run as far as it has been reported.
#[derive(Debug, Default)]
pub struct Report {
    /// What the engine says it runs on.
    pub device: String,
    pub losses: Vec<f64>,
    pub scores: Vec<Score>,
    pub done: bool,
}

impl Report {
    /// Takes one line, prints what a person wants to see of it, and fails on what must stop the run.
    pub fn take(&mut self, line: &str) -> Outcome {
        let message: Value = serde_json::from_str(line).map_err(|error| format!("the page sent {line:?}: {error}"))?;
        match message["type"].as_str() {
            Some("device") => {
                self.device = text(&message["device"]);
                println!("device: {}", self.device);
            }
            Some("step") => self.step(&message)?,
            Some("score") => self.score(&message)?,
            Some("plan") => println!("plan: {}", message["summary"]),
            Some("log") => println!("{}", text(&message["text"])),
            Some("progress") => {}
            Some("done") => {
                self.done = true;
                println!("done in {:.0} s", message["seconds"].as_f64().unwrap_or(f64::NAN));
            }
            Some("error") => return Err(failure(&message).into()),
            _ => return Err(format!("the page sent a message of unknown type: {line}").into()),
        }
        Ok(())
    }

    fn step(&mut self, message: &Value) -> Outcome {
        let (step, steps) = (count(message, "step")?, count(message, "steps")?);
        // JSON has no NaN: the engine's comes as null.
        let loss = message["loss"].as_f64().filter(|loss| loss.is_finite());
        let loss = loss.ok_or_else(|| format!("step {step}: the loss is not a number"))?;
        self.losses.push(loss);
        if self.losses.len() == 1 || step == steps || step.is_multiple_of(10) {
            let speed = message["tokens_per_sec"].as_f64().unwrap_or(f64::NAN);
            println!("step {step:>4} of {steps}  loss {loss:.4}  {speed:.0} tokens/s");
        }
        Ok(())
    }

    fn score(&mut self, message: &Value) -> Outcome {
        let score = Score {
            set: text(&message["set"]),
            phase: text(&message["phase"]),
            exact: count(message, "exact")?,
            total: count(message, "total")?,
        };
        println!("{score}");
        self.scores.push(score);
        Ok(())
    }

    /// The mean of the first and of the last few losses: single steps see different rows and jump.
    pub fn first_and_last_loss(&self) -> Option<(f64, f64)> {
        let few = self.losses.len().min(5);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / few as f64;
        (few > 0).then(|| (mean(&self.losses[..few]), mean(&self.losses[self.losses.len() - few..])))
    }

    pub fn score_of(&self, set: &str, phase: &str) -> Option<&Score> {
        self.scores.iter().find(|score| score.set == set && score.phase == phase)
    }

    pub fn print_summary(&self) {
        println!("--- {}", self.device);
        if let Some((first, last)) = self.first_and_last_loss() {
            println!("loss {first:.4} -> {last:.4} in {} steps", self.losses.len());
        }
        self.scores.iter().for_each(|score| println!("{score}"));
    }
}

fn failure(message: &Value) -> String {
    let [code, what, hint] = ["code", "message", "hint"].map(|key| text(&message[key]));
    let hint = if hint.is_empty() { hint } else { format!(" ({hint})") };
    format!("the page failed: {code}: {what}{hint}")
}

/// A string of the page's, without the control characters that could play with the terminal.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().chars().filter(|&c| c == '\n' || !c.is_control()).collect()
}

fn count(message: &Value, key: &str) -> Outcome<u64> {
    message[key].as_u64().ok_or_else(|| format!("the page sent no {key} in {message}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_kept() {
        let mut report = Report::default();
        for line in [
            r#"{"type":"device","device":"CPU (wasm)"}"#,
            r#"{"type":"step","step":1,"steps":2,"loss":3.0,"tokens_per_sec":10}"#,
            r#"{"type":"step","step":2,"steps":2,"loss":1.0,"tokens_per_sec":10}"#,
            r#"{"type":"score","set":"values","phase":"after","exact":3,"total":4}"#,
            r#"{"type":"done","seconds":2.5}"#,
        ] {
            report.take(line).unwrap();
        }
        assert!(report.done);
        assert_eq!(report.first_and_last_loss(), Some((2.0, 2.0)));
        assert_eq!(report.score_of("values", "after").unwrap().share(), 0.75);
        assert_eq!(report.score_of("values", "before"), None);
    }

    #[test]
    fn trouble_is_an_error_with_its_hint() {
        let take = |line: &str| Report::default().take(line).unwrap_err().to_string();
        let lost = take(r#"{"type":"error","code":"device_lost","message":"gone","hint":"try the CPU"}"#);
        assert!(lost.contains("device_lost: gone (try the CPU)"), "{lost}");
        assert!(take(r#"{"type":"step","step":3,"steps":9,"loss":null}"#).contains("step 3: the loss is not a number"));
        assert!(take("nonsense").contains("nonsense"));
        assert!(take(r#"{"type":"later"}"#).contains("unknown type"));
    }
}
