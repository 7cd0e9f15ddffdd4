//! `cargo xtask bench`: the bench of this tree natively, in a browser, or beside its peers.

use crate::server::Server;
use crate::shell::{Outcome, cargo, check, output, root, target_dir};
use crate::{browser, node, page};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn run(args: &[String]) -> Outcome {
    match args.first().map(String::as_str) {
        Some("--browser") => in_browser(&args[1..]),
        Some("--peers") => peers(&args[1..]),
        Some("--gpu-report") => check(Command::new("bash").arg("benches/gpu.sh").args(&args[1..]).current_dir(root())),
        _ => check(cargo(&["bench", "--bench", "luthier-bench", "--"]).args(args)),
    }
}

/// In headless Chromium; with `--open` in the user's own browser, until interrupted.
fn in_browser(args: &[String]) -> Outcome {
    if args == ["--open"] {
        let server = Server::bind(page::build()?, 0)?;
        let url = format!("{}bench.html", server.url());
        println!("Serving {url}\nCtrl-C ends it.");
        std::thread::spawn(move || {
            if !browser::open(&url) {
                println!("No browser could be opened from here: open that address yourself.");
            }
        });
        server.serve();
        return Ok(());
    }
    let chromium = browser::find().ok_or(
        "no Chromium or Chrome found: `cargo xtask test` says how to install it (or set CHROMIUM); \
         `cargo xtask bench --browser --open` takes your own browser",
    )?;
    page::build()?;
    let mut bench = node::node(&["tests/bench.mjs"]);
    check(bench.args(absolute_json(args)?).env("CHROMIUM", chromium).current_dir(page::www()))
}

/// The file behind `--json` is named from where the command was typed, not from where the program runs.
fn absolute_json(args: &[String]) -> Outcome<Vec<String>> {
    let mut args = args.to_vec();
    if let Some(at) = args.iter().position(|arg| arg == "--json") {
        let file = args.get_mut(at + 1).ok_or("--json needs a file")?;
        *file = std::path::absolute(&*file)?.to_string_lossy().into_owned();
    }
    Ok(args)
}

/// A program beside Luthier, and the case of ours that is the same work.
struct Peer {
    name: &'static str,
    case: &'static str,
    /// What its name starts with: tests/bench.rs holds it against the names there are.
    ours: &'static str,
    device: &'static str,
    /// What it needs, said where it is missing.
    needs: &'static str,
    command: fn() -> Option<Command>,
}

const PEERS: [Peer; 7] = [
    Peer {
        name: "pytorch",
        case: "small",
        ours: "steps small f32 lora-r8",
        device: "cpu",
        needs: "a Python with torch, transformers and peft, named by PEER_PYTHON",
        command: || pytorch("small"),
    },
    Peer {
        name: "pytorch",
        case: "smollm2-135m",
        ours: "steps smollm2-135m bf16 lora-r8 2x256",
        device: "cpu",
        needs: "a Python with torch, transformers and peft, named by PEER_PYTHON",
        command: || pytorch("smollm2-135m"),
    },
    Peer {
        name: "burn",
        case: "small",
        ours: "steps small f32 lora-r8",
        device: "gpu",
        needs: "`cargo build --release` in benches/peers/burn, or PEER_BURN naming the program",
        command: || built("burn", &["steps=20"]),
    },
    Peer {
        name: "burn",
        case: "small, full",
        ours: "steps small f32 full",
        device: "gpu",
        needs: "`cargo build --release` in benches/peers/burn, or PEER_BURN naming the program",
        command: || built("burn", &["steps=20", "lora=0"]),
    },
    Peer {
        name: "meganeura",
        case: "smollm2-135m, all trained; ours LoRA",
        ours: "steps smollm2-135m bf16 lora-r16 1x512",
        device: "gpu",
        needs: "`cargo build --release` in benches/peers/meganeura, or PEER_MEGANEURA naming the program",
        command: || built("meganeura", &["t=512", "steps=3", "warmup=1"]),
    },
    Peer {
        name: "jax",
        case: "small, in Chromium",
        ours: "luthier",
        device: "browser",
        needs: "`npm ci` in benches/peers/browser, and `cargo xtask wasm`",
        command: || in_chromium("jax"),
    },
    Peer {
        name: "tfjs",
        case: "small, in Chromium",
        ours: "luthier",
        device: "browser",
        needs: "`npm ci` in benches/peers/browser, and `cargo xtask wasm`",
        command: || in_chromium("tfjs"),
    },
];

fn folder(peer: &str) -> PathBuf {
    root().join("benches/peers").join(peer)
}

fn pytorch(case: &str) -> Option<Command> {
    let python = std::env::var_os("PEER_PYTHON").unwrap_or_else(|| "python3".into());
    let quiet = |command: &mut Command| command.stderr(std::process::Stdio::null()).status();
    let there = quiet(Command::new(&python).args(["-c", "import torch, transformers, peft"]));
    let mut command = Command::new(python);
    command.arg(folder("pytorch").join("bench.py")).args(["--case", case]);
    there.is_ok_and(|status| status.success()).then_some(command)
}

fn built(peer: &str, args: &[&str]) -> Option<Command> {
    let named = std::env::var_os(format!("PEER_{}", peer.to_uppercase())).map(PathBuf::from);
    let program = named.unwrap_or_else(|| folder(peer).join(format!("target/release/peer-{peer}")));
    let mut command = Command::new(&program);
    command.args(args);
    program.is_file().then_some(command)
}

fn in_chromium(peer: &str) -> Option<Command> {
    let there = folder("browser").join("node_modules").is_dir();
    let engine = page::www().join("luthier-web/pkg/luthier_relaxed.js").is_file();
    let mut command = node::node(&["bench.js", peer]);
    command.current_dir(folder("browser")).envs(browser::find().map(|chromium| ("CHROMIUM", chromium)));
    (there && engine).then_some(command)
}

/// Every peer that is installed, in turns with ours, and the ratio of the medians.
fn peers(args: &[String]) -> Outcome {
    let options = Options::parse(args)?;
    check(&mut cargo(&["bench", "--bench", "luthier-bench", "--no-run"]))?;
    let mut results = Vec::new();
    println!("| peer | case | peer, median ms | Luthier, median ms | peer / Luthier |\n|---|---|---:|---:|---:|");
    for peer in PEERS.iter().filter(|peer| options.names.is_empty() || options.names.contains(&peer.name.into())) {
        let Some(mut command) = (peer.command)() else {
            println!("| {} | {} | not installed: {} | – | – |", peer.name, peer.case, peer.needs);
            continue;
        };
        match compare(peer, &mut command, options.rounds) {
            Ok((theirs, ours)) => {
                let ratio = theirs / ours;
                println!("| {} | {} | {theirs:.1} | {ours:.1} | {ratio:.2} |", peer.name, peer.case);
                results.push(json!({ "peer": peer.name, "case": peer.case, "median_ms": theirs, "ours_ms": ours }));
            }
            // One that does not start here must not hide the others.
            Err(error) => println!("| {} | {} | {} | – | – |", peer.name, peer.case, one_line(&error.to_string())),
        }
    }
    if let Some(file) = options.json {
        write_whole(&file, &format!("{:#}\n", Value::from(results)))?;
    }
    Ok(())
}

struct Options {
    names: Vec<String>,
    rounds: usize,
    json: Option<PathBuf>,
}

impl Options {
    fn parse(args: &[String]) -> Outcome<Options> {
        let mut options = Options { names: Vec::new(), rounds: 2, json: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--rounds" => {
                    let rounds = value()?;
                    options.rounds = rounds.parse().ok().filter(|n| *n > 0).ok_or(format!("--rounds {rounds}"))?;
                }
                "--json" => options.json = Some(value()?.into()),
                name if PEERS.iter().any(|peer| peer.name == name) => options.names.push(name.into()),
                other => return Err(format!("`cargo xtask bench --peers` does not know {other}").into()),
            }
        }
        Ok(options)
    }
}

/// Medians of theirs and ours over rounds of one after the other, so that what disturbs the machine disturbs both.
fn compare(peer: &Peer, command: &mut Command, rounds: usize) -> Outcome<(f64, f64)> {
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        theirs.push(median_of(&output(command)?)?);
        ours.push(our_median(peer)?);
    }
    Ok((middle(theirs), middle(ours)))
}

/// The median in the last JSON line of a peer.
fn median_of(text: &str) -> Outcome<f64> {
    let line = text.lines().rfind(|line| line.starts_with('{')).ok_or("the peer printed no JSON line")?;
    let value: Value = serde_json::from_str(line)?;
    Ok(value["median_ms"].as_f64().ok_or("the peer's line has no median_ms")?)
}

fn our_median(peer: &Peer) -> Outcome<f64> {
    if peer.device == "browser" {
        let mut command = in_chromium("luthier").ok_or(peer.needs)?;
        return median_of(&output(&mut command)?);
    }
    let file = target_dir().join("bench-ours.json");
    let mut bench = cargo(&["bench", "--quiet", "--bench", "luthier-bench", "--", peer.ours, "--steps", "20"]);
    output(bench.args(["--budget", "0", "--device", peer.device, "--json"]).arg(&file))?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let median = report["steps"][0]["median_ms"].as_f64();
    Ok(median.ok_or_else(|| format!("no row for {}: {}", peer.ours, report["not_run"]))?)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn write_whole(file: &Path, text: &str) -> Outcome {
    let aside = file.with_extension("tmp");
    std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, file))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(middle(vec![4.0, 1.0]), 2.5);
        assert_eq!(median_of("noise\n{\"median_ms\": 1}\n{\"median_ms\": 2.5}\n").unwrap(), 2.5);
        assert!(median_of("no line").is_err() && median_of("{}").is_err());
    }

    #[test]
    fn peers_by_name() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(String::from).collect::<Vec<_>>());
        let options = parse("burn jax --rounds 3 --json x.json").unwrap();
        assert_eq!((options.names, options.rounds), (vec!["burn".to_string(), "jax".into()], 3));
        for wrong in ["nobody", "--rounds 0", "--rounds", "--json"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
