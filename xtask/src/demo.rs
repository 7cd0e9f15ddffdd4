//! `cargo xtask demo`: the bundled small model learns the commands of a made-up tool, in the user's browser, in a
//! headless one, or through the command line tool.

use crate::report::{Report, Score};
use crate::server::Server;
use crate::shell::{Outcome, cargo, check, output, root, target_dir};
use crate::{browser, wasm};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A page that says nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Device {
    WebGpu,
    Cpu,
}

impl Device {
    pub fn parse(text: &str) -> Outcome<Self> {
        match text {
            "webgpu" => Ok(Device::WebGpu),
            "cpu" => Ok(Device::Cpu),
            _ => Err(format!("--device {text}: choose webgpu or cpu").into()),
        }
    }

    /// As the page names it.
    fn page(self) -> &'static str {
        match self {
            Device::WebGpu => "webgpu",
            Device::Cpu => "cpu",
        }
    }

    /// As the command line names it.
    fn native(self) -> &'static str {
        match self {
            Device::WebGpu => "gpu",
            Device::Cpu => "cpu",
        }
    }
}

#[derive(Debug, Default)]
pub struct Options {
    pub headless: bool,
    pub native: bool,
    pub device: Option<Device>,
    pub steps: Option<u32>,
    pub port: u16,
}

pub fn run(options: &Options) -> Outcome {
    if options.native {
        native(options)
    } else if options.headless {
        headless(options)?.iter().for_each(Report::print_summary);
        Ok(())
    } else {
        open(options)
    }
}

pub fn write_data() -> Outcome {
    crate::demo_data::write(&root().join("demo"))?;
    Ok(())
}

/// Serves the page to the user's browser until interrupted.
fn open(options: &Options) -> Outcome {
    let server = Server::bind(wasm::build()?, options.port)?;
    let device = options.device.map(|device| format!("device={}", device.page()));
    let steps = options.steps.map(|steps| format!("steps={steps}"));
    let query: Vec<String> = device.into_iter().chain(steps).collect();
    let url = server.url(&if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) });
    println!("Serving {url}\nCtrl-C ends it.");
    std::thread::spawn(move || {
        if !browser::open(&url) {
            println!("No browser could be opened from here: open that address yourself.");
        }
    });
    let (reports, _unread) = channel();
    server.serve(reports);
    Ok(())
}

/// Runs the page in headless Chromium, once a device.
pub fn headless(options: &Options) -> Outcome<Vec<Report>> {
    // Asked first: the build takes minutes.
    browser::find()
        .ok_or("no Chromium or Chrome found: `cargo xtask test` says how to install it (or set CHROMIUM)")?;
    let server = Server::bind(wasm::build()?, options.port)?;
    let devices = options.device.map_or(vec![Device::WebGpu, Device::Cpu], |device| vec![device]);
    let steps = options.steps.map(|steps| format!("&steps={steps}")).unwrap_or_default();
    let queries =
        devices.iter().map(|device| (*device, server.url(&format!("?run={}&report=1{steps}", device.page()))));
    let queries: Vec<_> = queries.collect();
    let (sender, reports) = channel();
    std::thread::spawn(move || server.serve(sender));
    queries.iter().map(|(device, url)| watch(*device, url, &reports)).collect()
}

/// One headless run, from the browser's start to the page's last word.
fn watch(device: Device, url: &str, lines: &Receiver<String>) -> Outcome<Report> {
    println!("--- {} in headless Chromium: {url}", device.page());
    let mut browser = browser::Headless::start(url)?;
    let mut report = Report::default();
    let mut heard = Instant::now();
    while !report.done {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => {
                heard = Instant::now();
                report.take(&line)?;
                refuse_fallback(device, &report.device)?;
            }
            Err(RecvTimeoutError::Disconnected) => return Err("the demo's server ended".into()),
            Err(RecvTimeoutError::Timeout) => {
                let silent = (heard.elapsed() > SILENCE).then(|| {
                    format!("the page said nothing for {} s: it or its GPU process may have crashed", SILENCE.as_secs())
                });
                if let Some(trouble) = browser.ended().or(silent) {
                    return Err(format!("{trouble}\nlast lines of the browser:\n{}", browser.log_tail()).into());
                }
            }
        }
    }
    Ok(report)
}

/// A run that was to show WebGPU shows nothing if the engine went on with the CPU.
fn refuse_fallback(asked: Device, got: &str) -> Outcome {
    if asked == Device::WebGpu && got.to_lowercase().starts_with("cpu") {
        return Err(format!("asked for WebGPU, the page runs on {got}").into());
    }
    Ok(())
}

/// The demo through the command line tool: base model, training, tuned model.
fn native(options: &Options) -> Outcome {
    check(&mut cargo(&["build", "--release", "--bin", "luthier"]))?;
    let demo = Native::new(options)?;
    let before = demo.scores("before", None)?;
    let adapter = demo.train(options.steps)?;
    let after = demo.scores("after", Some(&adapter))?;
    before.iter().chain(&after).for_each(|score| println!("{score}"));
    println!("adapter: {}", adapter.display());
    Ok(())
}

struct Native {
    recipe: Value,
    device: &'static str,
}

impl Native {
    fn new(options: &Options) -> Outcome<Self> {
        let path = root().join("www/demo/recipe.json");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Native { recipe: serde_json::from_str(&text)?, device: options.device.map_or("auto", Device::native) })
    }

    fn luthier(&self, command: &str) -> Command {
        let mut luthier = Command::new(target_dir().join(format!("release/luthier{}", std::env::consts::EXE_SUFFIX)));
        luthier.arg(command).current_dir(root()).args(["--model", "models/nano", "--device", self.device]);
        luthier
    }

    fn file(&self, set: &str) -> &str {
        self.recipe["data"][set].as_str().unwrap_or_default()
    }

    /// The recipe's options are the command line's flags, in snake case.
    fn train(&self, steps: Option<u32>) -> Outcome<std::path::PathBuf> {
        let out = target_dir().join("demo-adapter");
        let mut train = self.luthier("train");
        train.args(["--data", self.file("train"), "--out"]).arg(&out);
        for (key, value) in self.recipe["options"].as_object().into_iter().flatten() {
            let value = steps.filter(|_| key == "steps").map_or(value.clone(), Value::from);
            let value = value.as_str().map_or_else(|| value.to_string(), String::from);
            train.args([format!("--{}", key.replace('_', "-")), value]);
        }
        check(&mut train)?;
        Ok(out)
    }

    fn scores(&self, phase: &str, adapter: Option<&Path>) -> Outcome<Vec<Score>> {
        ["values", "phrasings"].into_iter().map(|set| self.score(set, phase, adapter)).collect()
    }

    fn score(&self, set: &str, phase: &str, adapter: Option<&Path>) -> Outcome<Score> {
        let rows = rows(&root().join(self.file(set)))?;
        let answers = self.answers(&rows, adapter)?;
        let exact =
            rows.iter().zip(&answers).filter(|((_, expected), answer)| expected.trim() == answer.trim()).count();
        Ok(Score { set: set.into(), phase: phase.into(), exact: exact as u64, total: rows.len() as u64 })
    }

    /// The model's answers, greedily: prompts go in as a file, one a line, answers come back as one JSON object a line.
    fn answers(&self, rows: &[(String, String)], adapter: Option<&Path>) -> Outcome<Vec<String>> {
        let prompts = target_dir().join("demo-prompts.txt");
        std::fs::write(&prompts, rows.iter().map(|(prompt, _)| format!("{prompt}\n")).collect::<String>())?;
        let mut generate = self.luthier("generate");
        generate.args(["--chat", "--json", "--temperature", "0", "--max-new-tokens"]);
        generate.arg(self.recipe["max_new_tokens"].to_string()).arg("--prompts-file").arg(&prompts);
        generate.args(adapter.map(|folder| [Path::new("--adapter"), folder]).into_iter().flatten());
        let answers = output(&mut generate)?
            .lines()
            .map(|line| Ok(serde_json::from_str::<Value>(line)?["text"].as_str().unwrap_or_default().to_owned()))
            .collect::<Outcome<Vec<_>>>()?;
        if answers.len() != rows.len() {
            return Err(format!("{} prompts, {} answers", rows.len(), answers.len()).into());
        }
        Ok(answers)
    }
}

/// The (request, expected command) pairs of a demo file.
fn rows(file: &Path) -> Outcome<Vec<(String, String)>> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    text.lines().enumerate().map(|(at, line)| row(line).ok_or_else(|| bad_row(file, at)).map_err(Into::into)).collect()
}

fn row(line: &str) -> Option<(String, String)> {
    let row: Value = serde_json::from_str(line).ok()?;
    Some((row["prompt"].as_str()?.into(), row["completion"].as_str()?.into()))
}

fn bad_row(file: &Path, at: usize) -> String {
    format!("{}:{}: not a {{\"prompt\", \"completion\"}} row", file.display(), at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_to_the_cpu_is_refused() {
        assert!(refuse_fallback(Device::WebGpu, "CPU (wasm, simd128)").is_err());
        assert!(refuse_fallback(Device::WebGpu, "").is_ok());
        assert!(refuse_fallback(Device::WebGpu, "WebGPU: swiftshader").is_ok());
        assert!(refuse_fallback(Device::Cpu, "cpu").is_ok());
    }

    #[test]
    fn rows_need_both_fields() {
        assert_eq!(row(r#"{"prompt":"a","completion":"b"}"#), Some(("a".into(), "b".into())));
        assert_eq!(row(r#"{"prompt":"a"}"#), None);
        assert_eq!(row("{"), None);
    }
}
