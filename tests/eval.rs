//! Answers judged, data probed and runs handed over, as a user does it, with the model that comes with the sources.

use luthier::adapter::Kind;
use luthier::data::{ReadOptions, Records, read};
use luthier::device::DeviceChoice;
use luthier::eval::{items, probe::Potential};
use luthier::session::{Probe, ProbeOptions, Session};
use luthier::train::TrainOptions;
use luthier::weights::ModelFiles;
use pollster::block_on;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("luthier-eval-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.0.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn luthier(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).current_dir(ROOT).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    (output.status.success(), stdout, stderr)
}

fn done(args: &[&str]) -> String {
    let all = [args, &["--model", "models/nano"]].concat();
    let (ok, stdout, stderr) = luthier(&all);
    assert!(ok, "{all:?}: {stderr}");
    stdout
}

fn session() -> Session {
    let files = ModelFiles::open(PathBuf::from(ROOT).join("models/nano")).unwrap();
    block_on(Session::open(&files, "nano", DeviceChoice::Cpu, |_, _| {})).unwrap()
}

const TRAIN: &str = "demo/gallery/sentiment_train.jsonl";
const TEST: &str = "demo/gallery/sentiment_subjects.jsonl";

fn figure(system: &Value, name: &str) -> f64 {
    system["figures"][name]["value"].as_f64().unwrap()
}

#[test]
fn a_tuned_classifier_beside_its_baselines_and_the_handoff() {
    let temp = Temp::new("classify");
    let (adapter, out, examples) = (temp.path("adapter"), temp.path("out.json"), temp.path("examples.jsonl"));
    let quick = ["--steps", "40", "--lr", "0.005", "--warmup-steps", "5", "--seq-len", "128", "--device", "cpu"];
    done(&[&["train", "--data", TRAIN, "--out", &adapter], &quick[..]].concat());
    let asked = ["eval", "--task", "classification", "--data", TEST, "--train-data", TRAIN, "--adapter", &adapter];
    let said = done(&[&asked[..], &["--device", "cpu", "--json", &out, "--per-example", &examples]].concat());
    assert!(said.contains("95 % intervals") && said.contains("forgetting: loss on 60 plain sentences"), "{said}");

    let report: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let systems = report["systems"].as_array().unwrap();
    let names: Vec<&str> = systems.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tuned", "base", "base, 4-shot", "constant"]);
    assert!((figure(&systems[3], "accuracy") - 100.0 / 3.0).abs() < 1e-9, "three labels, a third each");
    assert!(figure(&systems[0], "accuracy") > 50.0, "{report}");
    let against_base = &report["comparisons"][0];
    assert_eq!((&against_base["with"], &against_base["verdict"]), (&json!("base"), &json!("better")));
    assert!(report["forgetting"]["before"].as_f64() < report["forgetting"]["after"].as_f64(), "{report}");

    // The file of examples says the same as the report, and serves as another model's predictions.
    let lines = temp.lines("examples.jsonl");
    let right = lines.iter().filter(|line| line["right"] == true).count();
    assert_eq!(lines.len(), 60);
    assert!((figure(&systems[0], "accuracy") - 100.0 * right as f64 / 60.0).abs() < 1e-9);
    let again = ["--predictions", &examples, "--no-baselines", "--device", "cpu", "--json"];
    let report: Value = serde_json::from_str(&done(&[&asked[..], &again].concat())).unwrap();
    assert_eq!(report["comparisons"][0]["verdict"], "no difference shown");
    assert_eq!(
        report["comparisons"][0]["difference"].as_f64().or(report["comparisons"][0]["value"].as_f64()),
        Some(0.0)
    );

    let folder = temp.path("handoff");
    done(&["handoff", "--adapter", &adapter, "--data", TRAIN, "--eval-data", TEST, "--out", &folder]);
    let config: Value = serde_json::from_slice(&std::fs::read(temp.0.join("handoff/config.json")).unwrap()).unwrap();
    assert_eq!((&config["sft"]["learning_rate"], &config["sft"]["max_steps"]), (&json!(0.005), &json!(40)));
    assert_eq!(temp.lines("handoff/train.jsonl").len(), 360);
    assert_eq!(temp.lines("handoff/eval.jsonl")[0]["completion"][0]["role"], "assistant");
    for file in ["train.py", "requirements.txt", "README.md", "adapter/adapter_model.safetensors"] {
        assert!(temp.0.join("handoff").join(file).exists(), "{file}");
    }
    let (ok, _, stderr) =
        luthier(&["handoff", "--model", "models/nano", "--adapter", &adapter, "--data", TRAIN, "--out", &folder]);
    assert!(!ok && stderr.contains("is not empty"), "{stderr}");
}

#[test]
fn written_answers_are_judged() {
    let temp = Temp::new("written");
    let of = |task: &str, data: &str, more: &[&str]| -> Value {
        let args = ["eval", "--task", task, "--data", data, "--max-new-tokens", "4", "--device", "cpu", "--json"];
        serde_json::from_str(&done(&[&args, more].concat())).unwrap()
    };
    let range =
        |system: &Value, name: &str| ["low", "value", "high"].map(|key| system["figures"][name][key].as_f64().unwrap());
    for (task, data, first) in [
        ("facts", "demo/gallery/facts_heldout.jsonl", "exact_match"),
        ("extraction", "demo/gallery/orders_heldout.jsonl", "exact_match"),
        ("translation", "demo/gallery/german_heldout.jsonl", "chrf"),
        ("commands", "demo/heldout_values.jsonl", "exact_match"),
    ] {
        // Beside the model, somebody who knows every other answer.
        let asked = std::fs::read_to_string(std::path::Path::new(ROOT).join(data)).unwrap();
        let right = asked.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["completion"].clone());
        let said =
            right.enumerate().map(|(i, right)| json!({ "output": if i % 2 == 0 { right } else { "no".into() } }));
        let (said, file) = (said.collect::<Vec<_>>(), temp.path("half.jsonl"));
        std::fs::write(&file, said.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();

        let report = of(task, data, &["--predictions", &file]);
        let systems = report["systems"].as_array().unwrap();
        let (base, half) = (&systems[0], systems.last().unwrap());
        assert_eq!((&base["name"], &half["name"]), (&json!("base"), &json!(file)));
        for [low, value, high] in [range(base, first), range(half, first)] {
            assert!(low <= value && value <= high, "{task}: {report}");
        }
        let [low, value, high] = range(half, first);
        let exact = 100.0 * said.len().div_ceil(2) as f64 / said.len() as f64;
        // chrF weighs long sentences more.
        let off = if first == "chrf" { 8.0 } else { 1e-9 };
        assert!((value - exact).abs() < off && low < value && value < high, "{task}: {exact} % are right: {half}");
    }
    let text = of("text", "demo/gallery/german_heldout.jsonl", &[]);
    let loss = figure(&text["systems"][0], "loss");
    let plain = done(&["eval", "--data", "demo/gallery/german_heldout.jsonl", "--device", "cpu", "--json"]);
    let plain: Value = serde_json::from_str(&plain).unwrap();
    assert!((loss - plain["loss"].as_f64().unwrap()).abs() < 1e-4, "{loss}: {plain}");
}

#[test]
fn wrong_uses_say_what_to_do() {
    let refused = |args: &[&str]| {
        let (ok, _, stderr) = luthier(&[args, &["--model", "models/nano", "--device", "cpu"]].concat());
        assert!(!ok, "{args:?}");
        stderr
    };
    assert!(refused(&["eval", "--data", TEST, "--no-baselines"]).contains("--task: is missing"));
    assert!(refused(&["eval", "--data", TEST, "--task", "extraction"]).contains("no JSON"));
    assert!(refused(&["eval", "--data", TEST, "--task", "api-calls"]).contains("--apis"));
    assert!(
        refused(&["eval", "--data", TEST, "--task", "facts", "--predictions", TRAIN]).contains("no text called output")
    );
    let temp = Temp::new("few");
    std::fs::write(temp.0.join("few.jsonl"), "{\"text\":\"one\"}\n").unwrap();
    assert!(refused(&["probe", "--data", &temp.path("few.jsonl")]).contains("too few"));
}

/// Requests of a made-up tool, whose commands copy from them.
fn requests() -> Vec<(String, String)> {
    let goods = ["apples", "beans", "corn", "dates", "eggs", "figs", "grapes", "honey"];
    let draw = |i: u64, k: u64, n: f64| (luthier::num::uniform(11, i, k) * n) as usize;
    let one = |i: u64| {
        let (count, what, shelf) = (2 + draw(i, 0, 90.0), goods[draw(i, 1, 8.0)], 1 + draw(i, 2, 40.0));
        (format!("Put {count} {what} on shelf {shelf}"), format!("larder put {what} {count} {shelf}"))
    };
    (0..160).map(one).collect()
}

fn probed(pairs: &[(String, String)]) -> Probe {
    probed_by(pairs, TrainOptions { lr: Some(1e-4), ..Default::default() })
}

fn probed_by(pairs: &[(String, String)], options: TrainOptions) -> Probe {
    let line = |(prompt, completion): &(String, String)| {
        format!("{}\n", json!({ "prompt": prompt, "completion": completion }))
    };
    probed_text(&pairs.iter().map(line).collect::<String>(), options)
}

fn probed_text(text: &str, options: TrainOptions) -> Probe {
    let records: Records = read("made.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap();
    let all = items(&records, text).unwrap();
    let options = TrainOptions { batch_size: 2, seq_len: 64, ..options };
    let budget = ProbeOptions { minutes: 1.0, steps: Some(48) };
    block_on(session().probe(&records, &all, Some(&all[..3]), &options, &budget, |_, _, _| {})).unwrap()
}

#[test]
fn a_probe_tells_what_can_be_learned_from_what_cannot() {
    let good = requests();
    let probe = probed(&good);
    assert_ne!(probe.verdict.potential, Potential::None, "{:?}", probe.verdict);
    assert!(probe.verdict.tuned < probe.verdict.control && probe.verdict.control < probe.verdict.base);
    let found = |kind: &str| probe.findings.iter().find(|f| f.kind == kind);
    assert_eq!(found("leakage").map(|f| &f.lines[..]), Some(&[1, 2, 3][..]), "the test is a part of the data");
    assert!(found("learning-rate").unwrap().what.contains("too low"), "{:?}", probe.findings);
    assert!(probe.full_run.steps > 0 && probe.full_run.memory > 1 << 20);
    // The full run is foreseen to come further than the short ones, and not to a point.
    let foreseen = probe.verdict.foreseen.expect("as many passes as the full run makes");
    let (loss, exact) = (foreseen.loss, foreseen.exact.expect("these are answers"));
    assert!(loss.low < loss.value && loss.value < loss.high && loss.value < probe.verdict.tuned, "{loss:?}");
    assert!(exact.low < exact.high && (0.0..=100.0).contains(&exact.value), "{exact:?}");

    // The same answers in the wrong places.
    let turned: Vec<_> =
        (0..good.len()).map(|i| (good[i].0.clone(), good[(i * 37 + 11) % good.len()].1.clone())).collect();
    let probe = probed(&turned);
    assert_eq!(probe.verdict.potential, Potential::None, "{:?}", probe.verdict);
    assert!(probe.verdict.words[0].starts_with("No potential"), "{:?}", probe.verdict.words);
}

/// The control, too, learns behind the virtual tokens.
#[test]
fn a_probe_of_prompt_tuning() {
    let verdict = probed_by(&requests()[..60], TrainOptions { method: Kind::Prompt, ..Default::default() }).verdict;
    assert!(verdict.control < 0.9 * verdict.base, "{verdict:?}");
}

/// Items that fit the model, but not behind the adapter's virtual tokens, are wrong; the others are answered.
#[test]
fn virtual_tokens_take_room_from_items() {
    let temp = Temp::new("room");
    let adapter = temp.path("adapter");
    let quick = ["--steps", "1", "--seq-len", "64", "--device", "cpu"];
    let prompt = ["--method", "prompt", "--num-virtual-tokens", "200"];
    done(&[&["train", "--data", TRAIN, "--out", &adapter], &quick[..], &prompt[..]].concat());
    let long = "The phone is like the others I know. ".repeat(28);
    let item = |prompt: &str| format!("{}\n", json!({ "prompt": prompt, "completion": "neutral" }));
    std::fs::write(temp.0.join("test.jsonl"), [item("The lamp was fine.").repeat(5), item(&long)].concat()).unwrap();
    for task in ["classification", "facts"] {
        let (data, examples) = (temp.path("test.jsonl"), temp.path("examples.jsonl"));
        let asked = ["eval", "--task", task, "--data", &data, "--train-data", TRAIN, "--adapter", &adapter];
        let more = ["--max-new-tokens", "4", "--device", "cpu", "--per-example", &examples, "--json"];
        let report: Value = serde_json::from_str(&done(&[&asked[..], &more].concat())).unwrap();
        assert!(report["forgetting"]["after"].is_f64(), "{report}");
        let line = &temp.lines("examples.jsonl")[5];
        let why = |name: &str| line["systems"][name]["why"].clone();
        assert!(why("tuned").as_str().unwrap().contains("has room for 312"), "{line}");
        assert!(why("base").is_null() || !why("base").as_str().unwrap().contains("room"), "{line}");
    }
    let data = ["eval", "--data", TEST, "--adapter", &adapter, "--model", "models/nano", "--device", "cpu"];
    let (ok, _, stderr) = luthier(&[&data[..], &["--seq-len", "400"]].concat());
    assert!(!ok && stderr.contains("400 behind 200 virtual tokens") && stderr.contains("at most 312"), "{stderr}");
}

#[test]
fn random_strings_have_no_potential() {
    let letters = |i: u64, stream: u64, n: u64| -> String {
        let one = |k: u64| (b'a' + (luthier::num::uniform(stream, i, k) * 26.0) as u8) as char;
        (0..n).map(one).collect()
    };
    let pairs: Vec<_> = (0..160).map(|i| (letters(i, 21, 20), letters(i, 22, 8))).collect();
    let probe = probed(&pairs);
    assert_eq!(probe.verdict.potential, Potential::None, "{:?}", probe.verdict);
    // As texts, without questions.
    let text: String = (0..100).map(|i| format!("{}\n", json!({ "text": letters(i, 23, 40) }))).collect();
    let verdict = probed_text(&text, TrainOptions { lr: Some(3e-3), ..Default::default() }).verdict;
    assert_eq!(verdict.potential, Potential::None, "{verdict:?}");
    assert!(verdict.foreseen.is_none_or(|f| f.exact.is_none()), "{verdict:?}");
}

/// A probe keeps to its time where a few steps fit into it, and says what it could not tell.
#[test]
fn a_probe_of_a_moment_says_so() {
    let text: String =
        requests().iter().map(|(p, c)| format!("{}\n", json!({ "prompt": p, "completion": c }))).collect();
    let records: Records = read("made.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap();
    let all = items(&records, &text).unwrap();
    let (options, budget) =
        (TrainOptions { seq_len: 64, ..Default::default() }, ProbeOptions { minutes: 1e-4, steps: None });
    let probe = block_on(session().probe(&records, &all, None, &options, &budget, |_, _, _| {})).unwrap();
    // One learning rate, the largest part and the control; nothing else was begun.
    assert_eq!((probe.rates.len(), probe.verdict.curve.len(), probe.held_out), (1, 1, 30), "{probe:?}");
    assert!(probe.verdict.foreseen.is_none() && probe.verdict.words.len() >= 3, "{probe:?}");
}
