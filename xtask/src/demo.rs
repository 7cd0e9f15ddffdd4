//! `cargo xtask demo`: the bundled small model learns the commands of a made-up tool, in the user's browser, in a
//! headless one, or through the command line tool.

use crate::server::Server;
use crate::shell::{Outcome, cargo, check, output, root, target_dir};
use crate::{browser, node, page};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

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
        headless(options)
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
    let server = Server::bind(page::build()?, options.port)?;
    let url = server.url();
    println!("Serving {url}\nCtrl-C ends it.");
    std::thread::spawn(move || {
        if !browser::open(&url) {
            println!("No browser could be opened from here: open that address yourself.");
        }
    });
    server.serve();
    Ok(())
}

/// Trains through luthier-web in headless Chromium, once a device.
fn headless(options: &Options) -> Outcome {
    // Asked first: the build takes minutes.
    let chromium = browser::find()
        .ok_or("no Chromium or Chrome found: `cargo xtask test` says how to install it (or set CHROMIUM)")?;
    page::build()?;
    let devices = options.device.map_or(vec![Device::WebGpu, Device::Cpu], |device| vec![device]);
    for device in devices {
        let mut run = node::node(&["tests/demo.mjs", device.page()]);
        run.args(options.steps.map(|steps| steps.to_string()));
        check(run.env("CHROMIUM", &chromium).current_dir(page::www()))?;
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
        let path = root().join("demo/recipe.json");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Native { recipe: serde_json::from_str(&text)?, device: options.device.map_or("auto", Device::native) })
    }

    fn luthier(&self, command: &str) -> Command {
        let mut luthier = Command::new(target_dir().join(format!("release/luthier{}", std::env::consts::EXE_SUFFIX)));
        luthier.arg(command).current_dir(root()).args(["--model", "models/nano", "--device", self.device]);
        luthier
    }

    fn file(&self, set: &str) -> PathBuf {
        root().join("demo").join(self.recipe["data"][set].as_str().unwrap_or_default())
    }

    /// The recipe's options are the command line's flags, in snake case.
    fn train(&self, steps: Option<u32>) -> Outcome<PathBuf> {
        let out = target_dir().join("demo-adapter");
        let mut train = self.luthier("train");
        train.arg("--data").arg(self.file("train")).arg("--out").arg(&out);
        for (key, value) in self.recipe["options"].as_object().into_iter().flatten() {
            let value = steps.filter(|_| key == "steps").map_or(value.clone(), Value::from);
            let value = value.as_str().map_or_else(|| value.to_string(), String::from);
            train.args([format!("--{}", key.replace('_', "-")), value]);
        }
        check(&mut train)?;
        Ok(out)
    }

    fn scores(&self, phase: &str, adapter: Option<&Path>) -> Outcome<Vec<String>> {
        ["values", "phrasings"].into_iter().map(|set| self.score(set, phase, adapter)).collect()
    }

    fn score(&self, set: &str, phase: &str, adapter: Option<&Path>) -> Outcome<String> {
        let rows = rows(&self.file(set))?;
        let answers = self.answers(&rows, adapter)?;
        let exact =
            rows.iter().zip(&answers).filter(|((_, expected), answer)| expected.trim() == answer.trim()).count();
        let percent = 100.0 * exact as f64 / rows.len().max(1) as f64;
        Ok(format!("{set}, {phase} tuning: {exact} of {} exact ({percent:.0} %)", rows.len()))
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
    fn rows_need_both_fields() {
        assert_eq!(row(r#"{"prompt":"a","completion":"b"}"#), Some(("a".into(), "b".into())));
        assert_eq!(row(r#"{"prompt":"a"}"#), None);
        assert_eq!(row("{"), None);
    }
}
