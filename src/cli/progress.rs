//! What a run says while it goes on: lines for programs, a bar for people.

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use luthier::train::StepReport;
use luthier::{Error, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// `--log-json`: every line is written whole, at once.
pub struct Log(Option<(String, File)>);

impl Log {
    /// A run that goes on after `step` steps keeps its lines up to there.
    pub fn create(path: Option<&Path>, step: u64) -> Result<Log> {
        let Some(path) = path else { return Ok(Log(None)) };
        let name = path.display().to_string();
        let before = if step > 0 { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() };
        let known = |line: &&str| serde_json::from_str(line).is_ok_and(|v: Value| v["step"].as_u64() <= Some(step));
        let kept: String = before.lines().filter(known).map(|line| format!("{line}\n")).collect();
        let mut file = File::create(path).map_err(|e| Error::io(&name, e))?;
        file.write_all(kept.as_bytes()).map_err(|e| Error::io(&name, e))?;
        Ok(Log(Some((name, file))))
    }

    pub fn line(&mut self, value: &Value) -> Result<()> {
        let Some((name, file)) = &mut self.0 else { return Ok(()) };
        file.write_all(format!("{value}\n").as_bytes()).map_err(|e| Error::io(name.as_str(), e))
    }
}

/// Progress on stderr: a bar on a terminal, else a line every ten steps.
pub struct View {
    steps: u64,
    bar: Option<ProgressBar>,
}

impl View {
    pub fn new(steps: u64) -> View {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len}  {msg}").expect("a valid template");
            ProgressBar::new(steps).with_style(style.progress_chars("=> "))
        });
        View { steps, bar }
    }

    pub fn step(&self, r: &StepReport) {
        let seconds = (self.steps - r.step) as f64 * r.tokens as f64 / r.tokens_per_sec.max(1e-3);
        let left = HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        let state = format!("loss {:.4}  {:.0} tokens/s  {left:#} left", r.loss, r.tokens_per_sec);
        match &self.bar {
            Some(bar) => {
                bar.set_message(state);
                bar.set_position(r.step);
            }
            None if r.step.is_multiple_of(10) || r.step == 1 || r.step == self.steps => {
                eprintln!("step {}/{}  {state}", r.step, self.steps);
            }
            None => {}
        }
    }

    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
