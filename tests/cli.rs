//! The program as a user runs it, on the CPU with the model that comes with the sources.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// A folder that is removed when the test ends.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("luthier-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::create_dir_all(self.0.join(name).parent().unwrap()).unwrap();
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }

    /// A few requests and commands of a tool that no model knows.
    fn data(&self) -> String {
        self.write("data.jsonl", records(40))
    }

    /// nano with one file changed; the others are copied.
    fn nano_with(&self, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
        let folder = self.0.join("model");
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(NANO).unwrap() {
            let file = entry.unwrap().path();
            std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
        let bytes = std::fs::read(folder.join(name)).unwrap();
        std::fs::write(folder.join(name), change(bytes)).unwrap();
        folder.display().to_string()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn records(n: usize) -> String {
    let line = |i: usize| {
        format!("{{\"prompt\":\"Put {i} apples on shelf {}\",\"completion\":\"larder put apples {i}\"}}\n", i % 7)
    };
    (0..n).map(line).collect()
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the program; whatever happens, it does not panic.
fn luthier(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_luthier")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
    ran
}

/// Runs a command of nano's on the CPU, which has to succeed; its stdout.
fn nano(command: &[&str], more: &[&str]) -> String {
    let args = [command, &["--model", NANO], more].concat();
    let ran = luthier(&args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
}

const QUICK: [&str; 8] = ["--seq-len", "64", "--lr", "0.005", "--device", "cpu", "--batch-size", "2"];

fn train(data: &str, out: &str, more: &[&str]) -> String {
    nano(&["train"], &[&["--data", data, "--out", out], &QUICK[..], more].concat())
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn loss(data: &str, more: &[&str]) -> f64 {
    let out = nano(&["eval"], &[&["--data", data, "--device", "cpu", "--json"], more].concat());
    json_lines(&out)[0]["loss"].as_f64().unwrap()
}

#[test]
fn train_eval_generate_inspect() {
    let temp = Temp::new("whole");
    let (data, out, log) = (temp.data(), temp.path("adapter"), temp.path("log.jsonl"));
    let said = train(&data, &out, &["--steps", "20", "--eval-every", "10", "--log-json", &log]);
    for part in [
        "device      CPU",
        "36 examples",
        "4 examples held out",
        "memory",
        "trainable params: 112,128",
        "adapter of step",
    ] {
        assert!(said.contains(part), "{part} in: {said}");
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(temp.0.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&Value::from("LORA"), &Value::from(8)));
    assert!(temp.0.join("adapter/adapter_model.safetensors").exists());

    let (before, after) = (loss(&data, &[]), loss(&data, &["--adapter", &out]));
    assert!(after < 0.5 * before, "{before} -> {after}");

    let ask = ["--prompt", "Put 3 apples on shelf 3", "--chat", "--device", "cpu", "--json"];
    let answer = &json_lines(&nano(&["generate"], &[&ask[..], &["--adapter", &out]].concat()))[0];
    assert!(answer["text"].as_str().unwrap().starts_with("larder put"), "{answer}");
    let streamed = nano(&["generate"], &[&ask[..5], &["--adapter", &out]].concat());
    assert_eq!(streamed.trim_end(), answer["text"].as_str().unwrap().trim_end());

    let facts = &json_lines(&luthier(&["inspect", "adapter", "--adapter", &out, "--model", NANO, "--json"]).stdout)[0];
    assert_eq!((&facts["parameters"], facts["tensors"].as_array().unwrap().len()), (&Value::from(112_128), 84));
    check_log(&log, 20);
}

/// A line a step, in order, and one a validation, each right behind its step.
fn check_log(path: &str, steps: u64) {
    let lines = json_lines(&std::fs::read_to_string(path).unwrap());
    let (validations, reports): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["val_loss"].is_number());
    for (report, step) in reports.iter().zip(1..=steps) {
        assert_eq!(report["step"], step);
        for key in ["loss", "lr", "grad_norm", "tokens", "supervised_tokens", "tokens_per_sec"] {
            assert!(report[key].as_f64().is_some_and(f64::is_finite), "{key} in {report}");
        }
    }
    assert_eq!(reports.len() as u64, steps);
    let at: Vec<u64> = validations.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(at, [0, 10, 20]);
}

#[test]
fn without_shuffling_and_packing_steps_are_the_records_in_order() {
    let temp = Temp::new("order");
    let lengths = ["a", "a b c d e f g h", "a b c", "a b c d e"];
    let line = |text: &&str| format!("{{\"prompt\":\"{text}\",\"completion\":\"{text}\"}}\n");
    let data = temp.write("data.jsonl", lengths.iter().map(line).collect::<String>());
    let log = temp.path("log.jsonl");
    let order = ["--no-shuffle", "--no-packing", "--batch-size", "1", "--epochs", "1", "--log-json", &log];
    let args =
        ["train", "--model", NANO, "--data", &data, "--out", &temp.path("a"), "--device", "cpu", "--seq-len", "64"];
    let ran = luthier(&[&args[..], &order].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let examples = json_lines(&nano(&["inspect", "data"], &["--data", &data, "--seq-len", "64", "--json"]));
    let expected: Vec<u64> = examples.iter().map(|e| e["ids"].as_array().unwrap().len() as u64).collect();
    let steps = json_lines(&std::fs::read_to_string(&log).unwrap());
    let found: Vec<u64> = steps.iter().map(|s| s["tokens"].as_u64().unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let temp = Temp::new("seed");
    let data = temp.data();
    let adapter = |name: &str, seed: &str| {
        train(&data, &temp.path(name), &["--steps", "4", "--dropout", "0.1", "--seed", seed]);
        std::fs::read(temp.0.join(name).join("adapter_model.safetensors")).unwrap()
    };
    let first = adapter("a", "7");
    assert!(first == adapter("b", "7"), "two runs differ");
    assert!(first != adapter("c", "8"), "the seed changes nothing");
}

#[test]
fn an_adapter_can_be_trained_further() {
    let temp = Temp::new("further");
    let (data, held_out) = (temp.data(), temp.write("val.jsonl", records(5)));
    let (a, b, log) = (temp.path("a"), temp.path("b"), temp.path("log.jsonl"));
    train(&data, &a, &["--steps", "6", "--eval-data", &held_out, "--rank", "4"]);
    let after_a = loss(&held_out, &["--adapter", &a, "--seq-len", "64", "--batch-size", "2"]);
    train(&data, &b, &["--steps", "6", "--eval-data", &held_out, "--init-adapter", &a, "--log-json", &log]);
    let start = json_lines(&std::fs::read_to_string(&log).unwrap())[0]["val_loss"].as_f64().unwrap();
    assert!((start - after_a).abs() < 1e-6, "goes on from {after_a}, not {start}");
    assert!(loss(&held_out, &["--adapter", &b]) < after_a);
}

/// The method is the adapter's own, with the learning rate that is usual for it.
#[test]
fn an_adapter_of_any_method_can_be_trained_further() {
    let temp = Temp::new("further-full");
    let (data, a, b, log) = (temp.data(), temp.path("a"), temp.path("b"), temp.path("log.jsonl"));
    let said = train(&data, &a, &["--steps", "1", "--method", "full"]);
    assert!(said.contains("trainable%: 100.0000"), "{said}");
    let more = ["--steps", "2", "--schedule", "constant", "--init-adapter", &a, "--log-json", &log, "--device", "cpu"];
    nano(&["train", "--data", &data, "--out", &b, "--optim", "adamw_8bit"], &more);
    let record: Value = serde_json::from_str(&std::fs::read_to_string(temp.0.join("b/run.json")).unwrap()).unwrap();
    assert_eq!((&record["options"]["method"], &record["options"]["optim"]), (&"full".into(), &"adamw_8bit".into()));
    let step = json_lines(&std::fs::read_to_string(&log).unwrap()).into_iter().find(|line| line["step"] == 1).unwrap();
    assert_eq!(step["lr"].as_f64().unwrap() as f32, 1e-4);
    let both =
        luthier(&["train", "--model", NANO, "--data", &data, "--out", "x", "--init-adapter", &a, "--last-k", "1"]);
    assert!(both.code == Some(2) && both.stderr.contains("cannot be used with '--last-k"), "{}", both.stderr);
    let out = temp.path("handoff");
    refused(&["handoff", "--model", NANO, "--adapter", &a, "--data", &data, "--out", &out], "PEFT has no method full");
}

/// Full tuning goes on a few blocks at a time, and what lisa made goes on as either; another method wants a model of
/// it.
#[test]
fn what_full_tuning_made_goes_on_by_lisa() {
    let temp = Temp::new("further-lisa");
    let (data, held_out, log) = (temp.data(), temp.write("val.jsonl", records(5)), temp.path("log.jsonl"));
    let train = |out: &str, more: &[&str]| {
        let all =
            ["--data", &data, "--out", &temp.path(out), "--eval-data", &held_out, "--steps", "4", "--seq-len", "64"];
        nano(&["train", "--device", "cpu", "--log-json", &log], &[&all[..], more].concat());
        let run = std::fs::read_to_string(temp.0.join(out).join("run.json")).unwrap();
        let method = serde_json::from_str::<Value>(&run).unwrap()["options"]["method"].clone();
        (method, json_lines(&std::fs::read_to_string(&log).unwrap())[0]["val_loss"].as_f64().unwrap())
    };
    let after = |adapter: &str| loss(&held_out, &["--adapter", adapter, "--seq-len", "64"]);
    let (full, lisa) = (temp.path("full"), temp.path("lisa"));
    train("full", &["--method", "full"]);
    let by_lisa = ["--method", "lisa", "--lisa-blocks", "1", "--lisa-interval", "2", "--init-adapter"];
    for (from, to) in [(&full, "lisa"), (&lisa, "again")] {
        let (method, start) = train(to, &[&by_lisa[..], &[from]].concat());
        assert!(method == "lisa" && (start - after(from)).abs() < 1e-6, "{method}: {start}");
    }
    assert!(after(&temp.path("again")) < after(&full));
    assert_eq!(train("whole", &["--init-adapter", &lisa, "--method", "full"]).0, "full");

    let refuse = |more: &[&str], said: &str| {
        let args = ["train", "--model", NANO, "--data", &data, "--out", &temp.path("no"), "--device", "cpu"];
        refused(&[&args[..], &["--init-adapter", &full], more].concat(), said);
    };
    refuse(&["--method", "lora"], "--method: is lora, and the adapter in");
    refuse(&["--method", "lora"], "let luthier merge make a model with the adapter in it, for --model");
    refuse(&["--lisa-blocks", "1"], "is no setting of full");
    refuse(&["--loraplus-lr-ratio", "4"], "is no setting of full");
    let (merged, out) = (temp.path("merged"), temp.path("lora"));
    nano(&["merge"], &["--adapter", &full, "--out", &merged, "--dtype", "f32", "--device", "cpu"]);
    let args = ["train", "--model", &merged, "--data", &data, "--eval-data", &held_out, "--out", &out, "--steps", "1"];
    let ran = luthier(&[&args[..], &["--seq-len", "64", "--device", "cpu", "--log-json", &log]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let start = json_lines(&std::fs::read_to_string(&log).unwrap())[0]["val_loss"].as_f64().unwrap();
    assert!((start - after(&full)).abs() < 1e-5, "goes on from {}, not {start}", after(&full));
}

#[test]
fn a_dry_run_and_a_diverged_run() {
    let temp = Temp::new("ends");
    let data = temp.data();
    let said = train(&data, &temp.path("dry"), &["--dry-run"]);
    assert!(said.contains("memory") && !temp.0.join("dry").exists(), "{said}");

    let args = ["train", "--model", NANO, "--data", &data, "--out", &temp.path("a"), "--device", "cpu", "--lr", "1e30"];
    let ran = luthier(&args);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(ran.stderr.contains("error: step 2: ") && ran.stderr.contains("lower --lr"), "{}", ran.stderr);
    assert!(temp.0.join("a/adapter_model.safetensors").exists(), "the last good state is kept");
}

#[test]
fn inspect_data_shows_what_is_trained_on() {
    let temp = Temp::new("inspect");
    let data = temp.write("data.jsonl", records(1));
    let line = &json_lines(&nano(&["inspect", "data"], &["--data", &data, "--json"]))[0];
    let (ids, supervised) = (line["ids"].as_array().unwrap(), line["supervised"].as_array().unwrap());
    assert_eq!(ids.len(), supervised.len());
    // ChatML: the answer and <|im_end|> (2) are learned, the line's end behind it is not.
    assert_eq!((ids[ids.len() - 2].as_u64(), supervised[ids.len() - 2].as_u64()), (Some(2), Some(1)));
    assert_eq!((supervised[0].as_u64(), supervised[ids.len() - 1].as_u64()), (Some(0), Some(0)));
    assert_eq!(line["truncated"], false);
    let short = &json_lines(&nano(&["inspect", "data"], &["--data", &data, "--json", "--seq-len", "32"]))[0];
    assert_eq!((short["ids"].as_array().unwrap(), &short["truncated"]), (&ids[..32].to_vec(), &Value::from(true)));
    let shown = nano(&["inspect", "data"], &["--data", &data]);
    assert!(shown.contains("⟦larder put apples 0<|im_end|>⟧"), "{shown}");
}

#[test]
fn prompts_of_a_file_are_compared() {
    let temp = Temp::new("prompts");
    let file = temp.write("prompts.jsonl", records(10));
    let args = ["--prompts-file", &file, "--chat", "--max-new-tokens", "4", "--device", "cpu", "--json"];
    let lines = json_lines(&nano(&["generate"], &args));
    assert_eq!(lines.len(), 11);
    assert_eq!(
        (&lines[0]["expected"], &lines[0]["exact_match"]),
        (&Value::from("larder put apples 0"), &Value::from(false))
    );
    assert_eq!((&lines[10]["compared"], &lines[10]["exact_matches"]), (&Value::from(10), &Value::from(0)));
    // Together or one by one: the same answers.
    let alone = ["--prompt", "Put 9 apples on shelf 2", "--chat", "--max-new-tokens", "4", "--device", "cpu", "--json"];
    assert_eq!(json_lines(&nano(&["generate"], &alone))[0]["text"], lines[9]["text"]);
}

#[test]
fn halves_are_for_gpus_that_have_them() {
    let args = ["generate", "--model", NANO, "--prompt", "a", "--device", "cpu", "--fp16"];
    refused(&args, "fp16 was asked for, and CPU");
    let devices = &json_lines(&luthier(&["devices", "--json"]).stdout)[0];
    if devices["gpus"][0]["shader_f16"] == true {
        let temp = Temp::new("halves");
        let (data, out) = (temp.data(), temp.path("a"));
        let args =
            ["train", "--model", NANO, "--data", &data, "--out", &out, "--device", "gpu", "--fp16", "--lr", "1e30"];
        let ran = luthier(&[&args[..], &["--seq-len", "64", "--batch-size", "2", "--steps", "3"]].concat());
        assert!(ran.code == Some(1) && ran.stderr.contains("leave fp16 out"), "{}", ran.stderr);
        assert!(ran.stdout.contains(", fp16)"), "{}", ran.stdout);
    }
}

#[test]
fn models_and_devices_are_described() {
    let model = &json_lines(&nano(&["inspect", "model"], &["--json"]))[0];
    assert_eq!(
        (&model["parameters"], &model["tokenizer"]["chat_template"]),
        (&Value::from(1_369_728), &Value::from(true))
    );
    let sum: u64 = model["weights"].as_array().unwrap().iter().map(|w| w["parameters"].as_u64().unwrap()).sum();
    assert_eq!(sum, 1_369_728);
    assert!(nano(&["inspect", "model"], &[]).contains("llama"));
    let devices = &json_lines(&luthier(&["devices", "--json"]).stdout)[0];
    assert!(devices["cpu"]["threads"].as_u64().unwrap() > 0 && devices["gpus"].is_array());
}

/// Ends with an error that says `part`, with a hint, and writes nothing to --out.
fn refused(args: &[&str], part: &str) {
    assert!(!part.is_empty(), "{args:?}: what does it say?");
    let ran = luthier(args);
    assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.stdout);
    assert!(ran.stderr.contains("error: ") && ran.stderr.contains("hint: "), "{args:?}: {}", ran.stderr);
    assert!(ran.stderr.contains(part), "{args:?}: '{part}' is not in: {}", ran.stderr);
    if let Some(at) = args.iter().position(|a| *a == "--out") {
        assert!(!Path::new(args[at + 1]).join("adapter_model.safetensors").exists(), "{args:?}: something was written");
        assert!(!Path::new(args[at + 1]).is_dir(), "{args:?}: a folder was made");
    }
}

#[test]
fn bad_models() {
    let temp = Temp::new("models");
    let (data, out) = (temp.data(), temp.path("out"));
    let bad = |model: &str, part: &str| refused(&["train", "--model", model, "--data", &data, "--out", &out], part);
    bad(&temp.path("nowhere"), "neither a path nor a known model");
    bad(&temp.write("empty/note.txt", ""), "note.txt: no config.json and no .gguf file");
    bad(&temp.path("empty"), "not a model");
    bad(&temp.write("short.gguf", b"GGUF\x03\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"), "file ends");
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    bad(&temp.nano_with("model.safetensors", half), "model.safetensors: data: the tensors end at");
    bad(&temp.nano_with("tokenizer.json", half), "not JSON: EOF");
    let config = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{text}");
            text.replace(from, to).into_bytes()
        }
    };
    bad(&temp.nano_with("config.json", config("\"llama\"", "\"mamba9\"")), "mamba9");
    bad(&temp.nano_with("config.json", config("\"hidden_size\": 128", "\"hidden_size\": 256")), "shape");
}

#[test]
fn bad_data() {
    let temp = Temp::new("data");
    let out = temp.path("out");
    let bad = |data: &str, part: &str| refused(&["train", "--model", NANO, "--data", data, "--out", &out], part);
    bad(&temp.path("nowhere.jsonl"), "nowhere.jsonl: No such file");
    bad(&temp.write("empty.jsonl", ""), "no record");
    bad(&temp.write("broken.jsonl", records(2) + "{\"prompt\": \"x\", \n"), "line 3: not JSON");
    bad(&temp.write("columns.csv", "question,reply\na,b\n"), "it has `question`, `reply`, and wants");
    bad(&temp.write("data.xyz", "?"), "data.xyz: the name does not say");
    bad(&temp.write("unlearnable.jsonl", r#"{"messages":[{"role":"user","content":"hello"}]}"#), "nothing to learn");
    let named = temp.data();
    let args = ["train", "--model", NANO, "--data", &named, "--out", &out, "--prompt-column", "question"];
    refused(&args, "there is no `question`; the record has `prompt`, `completion`");
    let skipping = temp.write("some.jsonl", records(12) + "nonsense\n");
    let said = train(&skipping, &temp.path("skipped"), &["--skip-bad-records", "--dry-run"]);
    assert!(said.contains("1 bad record left out"), "{said}");
}

#[test]
fn bad_settings() {
    let temp = Temp::new("settings");
    let (data, out) = (temp.data(), temp.path("out"));
    let bad = |more: &[&str], part: &str| {
        refused(&[&["train", "--model", NANO, "--data", &data, "--out", &out], more].concat(), part);
    };
    bad(&["--method", "ia3", "--rank", "8"], "--rank: was given, and is no setting of ia3");
    bad(&["--rank", "0"], "--rank");
    bad(&["--target-modules", "c_attn"], "'c_attn' matches no linear");
    bad(&["--lr", "-1"], "--lr: is -1");
    bad(&["--batch-size", "1000000"], "65535 tokens");
    bad(&["--grad-accum", "18446744073709551615"], "at most 4096");
    bad(&["--kept-blocks", "1", "--batch-size", "250", "--memory-gib", "0.1"], "allowed are 102.4 MiB");
    // Memory: what would help, and is not set already.
    let short = |more: &[&str], part: &str| bad(&[&["--memory-gib", "0.01"], more].concat(), part);
    short(&["--kept-blocks", "1"], "--seq-len or --kept-blocks, set --activations to bf16, or allow more with");
    short(&["--kept-blocks", "1", "--activations", "bf16"], "--seq-len or --kept-blocks, or allow more with");
    short(&["--batch-size", "1", "--rank", "64"], ": lower --seq-len or --rank, set --optim");
    short(&["--batch-size", "1", "--method", "full"], ": lower --seq-len, set --optim to adamw_8bit, or allow");
    short(&["--rank", "64"], "--seq-len or --rank, set --optim to adamw_8bit, or allow more with");
    for method in ["full", "last-k", "lisa"] {
        short(&["--method", method], "--batch-size or --seq-len, set --optim to adamw_8bit, or allow more with");
        short(&["--method", method, "--optim", "adamw_8bit"], "--batch-size or --seq-len, or allow more with");
    }
    bad(&["--seq-len", "100000"], "512 positions");
    bad(&["--seq-len", "500", "--method", "prompt"], "behind 16 virtual tokens, the model knows 512 positions");
    bad(&["--last-k", "7", "--method", "last-k"], "the model has 6 blocks");
    bad(&["--memory-gib", "0.001"], "--memory-gib");
    bad(&["--kept-blocks", "99"], "6 blocks");
    bad(&["--init-adapter", &temp.path("none")], "adapter_config.json");
    bad(&["--init-adapter", &format!("{GOLDEN}/tiny_lora")], "the adapter was trained on 'tiny'");
    bad(&["--log-json", &temp.path("no/such/log")], "no/such/log");
    refused(&["train", "--model", NANO, "--data", &data, "--out", &format!("{data}/out")], "is a file, not a folder");
    let ran = luthier(&["train", "--model", NANO, "--data", &data, "--out", &data]);
    assert!(ran.code == Some(1) && ran.stderr.contains("is a file"), "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(&data).unwrap(), records(40));
    refused(&["generate", "--model", NANO, "--prompt", "x", "--top-p", "2"], "--top-p");
    refused(&["generate", "--model", NANO, "--prompt", ""], "no tokens");
    assert!(nano(&["generate"], &["--prompt", "- a list", "--max-new-tokens", "1", "--device", "cpu"]).ends_with('\n'));
}

/// An adapter is not replaced unawares.
#[test]
fn an_adapter_in_the_way() {
    let temp = Temp::new("overwrite");
    let (data, out) = (temp.data(), temp.path("out"));
    let args = ["train", "--model", NANO, "--data", &data, "--out", &out, "--device", "cpu", "--steps", "1"];
    assert_eq!(luthier(&args).code, Some(0));
    let adapter = || std::fs::read(temp.0.join("out/adapter_model.safetensors")).unwrap();
    let before = adapter();
    let ran = luthier(&[&args[..], &["--lr", "0.01", "--val-fraction", "0"]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("holds an adapter"), "{}", ran.stderr);
    assert!(adapter() == before);
    let ran = luthier(&[&args[..], &["--lr", "0.01", "--val-fraction", "0", "--overwrite"]].concat());
    assert!(ran.code == Some(0) && adapter() != before, "{}", ran.stderr);
}

/// The small model is part of the program: it needs no folder near by.
#[test]
fn the_bundled_model_is_found_anywhere() {
    let temp = Temp::new("bundled");
    std::fs::create_dir(temp.0.join("nano")).unwrap();
    let program = env!("CARGO_BIN_EXE_luthier");
    let ran = std::process::Command::new(program)
        .args(["generate", "--model", "nano", "--prompt", "list", "--max-new-tokens", "2", "--device", "cpu"])
        .current_dir(&temp.0)
        .env("LUTHIER_CACHE", temp.0.join("cache"))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(temp.0.join("cache/nano/model.safetensors").exists());
}

#[test]
fn errors_for_programs_and_usage() {
    let ran = luthier(&["eval", "--model", NANO, "--data", "nowhere.jsonl", "--json"]);
    let error = &json_lines(&ran.stderr)[0]["error"];
    assert_eq!((ran.code, &error["code"], ran.stdout.as_str()), (Some(1), &Value::from("io"), ""));
    assert!(error["message"].as_str().unwrap().contains("nowhere.jsonl") && error["hint"].is_string());
    assert_eq!(luthier(&["train"]).code, Some(2));
    assert_eq!(luthier(&["train", "--no-such-flag"]).code, Some(2));
    let adapter = format!("{GOLDEN}/tiny_lora");
    let both =
        luthier(&["train", "--model", NANO, "--data", "x", "--out", "y", "--init-adapter", &adapter, "--rank", "4"]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
}

/// Ctrl-C: the step ends, the adapter is written, the program says so.
#[cfg(unix)]
#[test]
fn an_interrupted_run_is_saved() {
    let temp = Temp::new("interrupt");
    let (data, out, log) = (temp.data(), temp.path("a"), temp.path("log.jsonl"));
    let args = ["train", "--model", NANO, "--data", &data, "--out", &out, "--log-json", &log, "--steps", "100000"];
    let child = Command::new(env!("CARGO_BIN_EXE_luthier"))
        .args([&args[..], &QUICK].concat())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped: the adapter of step") && said.contains("--resume goes on"), "{said}");
    assert_eq!(std::fs::read_dir(temp.0.join("a/checkpoints")).unwrap().count(), 1);
    assert!(temp.0.join("a/adapter_model.safetensors").exists());
}

#[test]
fn adapters_and_merged_models_go_to_other_programs_and_come_back() {
    let temp = Temp::new("exits");
    let (data, out) = (temp.data(), temp.path("a"));
    train(&data, &out, &["--steps", "20"]);
    let adapted = loss(&data, &["--adapter", &out]);
    for (format, name) in [("gguf", "a.gguf"), ("mlx", "mlx"), ("peft", "peft")] {
        let to = temp.path(name);
        let said = nano(&["export", "--format", format], &["--adapter", &out, "--out", &to, "--device", "cpu"]);
        assert!(said.contains("the adapter (") && said.contains("checked     read back"), "{said}");
        assert_eq!(loss(&data, &["--adapter", &to]), adapted, "{format}");
    }
    let gguf = temp.path("m.gguf");
    let said = nano(&["merge"], &["--adapter", &out, "--out", &gguf, "--dtype", "q8_0", "--device", "cpu"]);
    assert!(said.contains("q8_0") && said.contains("ollama create m -f"), "{said}");
    let modelfile = std::fs::read_to_string(temp.path("m.Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./m.gguf\n"), "{modelfile}");
    let eval = luthier(&["eval", "--model", &gguf, "--data", &data, "--device", "cpu", "--json"]);
    let alone = json_lines(&eval.stdout)[0]["loss"].as_f64().unwrap();
    assert!((alone - adapted).abs() < 0.02, "{alone}, {adapted}");
    let mut names: Vec<String> =
        std::fs::read_dir(&temp.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "a.gguf", "data.jsonl", "m.Modelfile", "m.gguf", "mlx", "peft"], "nothing else is left");

    refused(&["merge", "--model", NANO, "--adapter", &out, "--out", &gguf], "is there already");
    refused(&["export", "--model", NANO, "--adapter", &out, "--out", &temp.path("x"), "--format", "gguf"], "--out");
    let folder = temp.path("no");
    refused(&["merge", "--model", NANO, "--adapter", &out, "--out", &folder, "--dtype", "q4_0"], "--dtype: is q4_0");
    assert!(!Path::new(&folder).exists());
    refused(&["eval", "--model", NANO, "--adapter", &gguf, "--data", &data], "general.type is model");
}

#[test]
fn four_bits_that_lose_the_adapter_are_spoken_of() {
    let temp = Temp::new("drift");
    let (data, out) = (temp.data(), temp.path("a"));
    train(&data, &out, &["--steps", "2"]);
    let merge = |dtype: &str| {
        let to = temp.path(&format!("{dtype}.gguf"));
        nano(&["merge"], &["--adapter", &out, "--out", &to, "--dtype", dtype, "--device", "cpu"])
    };
    assert!(merge("q4_0").contains("note        q4_0 rounds away a part of what was learned"));
    assert!(!merge("f16").contains("note"));
}

#[test]
fn adapters_are_merged_into_one() {
    let temp = Temp::new("several");
    let (data, a, b) = (temp.data(), temp.path("a"), temp.path("b"));
    train(&data, &a, &["--steps", "20"]);
    train(&data, &b, &["--steps", "10", "--seed", "5"]);
    let merge = |more: &[&str]| {
        let said = nano(&["merge-adapters", &a, &b], more);
        (loss(&data, &["--adapter", more[1]]), said)
    };
    let (only, _) = merge(&["--out", &temp.path("first"), "--weights", "1,0", "--combination", "cat"]);
    assert!((only - loss(&data, &["--adapter", &a])).abs() < 1e-5, "a weight of 0 takes an adapter out");
    let (exact, said) = merge(&["--out", &temp.path("cat"), "--combination", "cat"]);
    assert!(said.contains("one adapter of 2, of rank 16"), "{said}");
    let (best, said) = merge(&["--out", &temp.path("svd"), "--rank", "16"]);
    assert!(said.contains("keeps 100.00 %") && (best - exact).abs() < 1e-4, "{said} {best} {exact}");
    let args = ["merge-adapters", &a, &b, "--model", NANO, "--out", &temp.path("no")];
    refused(&[&args[..], &["--weights", "1"]].concat(), "--weights: are 1, the adapters 2");
    refused(&[&args[..], &["--combination", "cat", "--rank", "4"]].concat(), "--rank: is 4");
}

#[test]
fn a_merged_model_answers_as_the_adapted_one() {
    let temp = Temp::new("merge");
    let (data, out, merged) = (temp.data(), temp.path("a"), temp.path("merged"));
    train(&data, &out, &["--steps", "20"]);
    let args = ["--adapter", &out, "--out", &merged];
    let said = nano(&["merge"], &[&args[..], &["--dtype", "f32"]].concat());
    assert!(said.contains("the merged model"), "{said}");
    let mut names: Vec<String> =
        std::fs::read_dir(&merged).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names, [&expected[..], &["tokenizer_config.json"]].concat());
    let eval = luthier(&["eval", "--model", &merged, "--data", &data, "--device", "cpu", "--json"]);
    let (alone, adapted) = (json_lines(&eval.stdout)[0]["loss"].as_f64().unwrap(), loss(&data, &["--adapter", &out]));
    assert!((alone - adapted).abs() < 1e-4 && adapted < 0.5 * loss(&data, &[]), "{alone}, {adapted}");

    let again = luthier(&[&["merge", "--model", NANO], &args[..]].concat());
    assert!(again.code == Some(1) && again.stderr.contains("is not empty"), "{}", again.stderr);
    let other = format!("{GOLDEN}/tiny_lora");
    refused(&["merge", "--model", NANO, "--adapter", &other, "--out", &temp.path("no")], "trained on 'tiny'");
}

/// Log lines without how fast they were.
fn log_lines(path: &str) -> Vec<Value> {
    let mut lines = json_lines(&std::fs::read_to_string(path).unwrap());
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("tokens_per_sec");
    }
    lines
}

const KILLED: [&str; 12] = [
    "--steps",
    "40",
    "--eval-every",
    "9",
    "--save-steps",
    "5",
    "--dropout",
    "0.1",
    "--grad-accum",
    "2",
    "--warmup-steps",
    "4",
];

/// Starts a run and kills it as soon as it has a checkpoint, as a crash would.
fn killed(args: &[&str], checkpoints: &Path) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_luthier"))
        .args(args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !checkpoints.join("checkpoint-10.safetensors").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_goes_on_as_if_it_had_not_been() {
    let temp = Temp::new("kill");
    let (data, log_a, log_b) = (temp.data(), temp.path("a.jsonl"), temp.path("b.jsonl"));
    train(&data, &temp.path("a"), &[&KILLED[..], &["--log-json", &log_a]].concat());
    let out = temp.path("b");
    let args = [&["--data", &data, "--out", &out, "--log-json", &log_b], &QUICK[..], &KILLED].concat();
    let checkpoints = temp.0.join("b/checkpoints");
    killed(&[&["train", "--model", NANO], &args[..]].concat(), &checkpoints);

    let ran = luthier(&[&["train", "--model", NANO], &args[..]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("--resume"), "not run over: {}", ran.stderr);
    let ran = luthier(&[&["train", "--model", NANO, "--resume", "--seed", "1"], &args[..]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("--seed: 1, the checkpoint's is 0"), "{}", ran.stderr);

    // The newest is torn, as after a power cut: the one before is gone on from.
    let mut names: Vec<_> = std::fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    assert_eq!(names.len(), 2, "{names:?}");
    names
        .sort_by_key(|path| path.file_stem().unwrap().to_str().unwrap()["checkpoint-".len()..].parse::<u64>().unwrap());
    let bytes = std::fs::read(&names[1]).unwrap();
    std::fs::write(&names[1], &bytes[..bytes.len() / 2]).unwrap();
    let said = nano(&["train"], &[&args[..], &["--resume"]].concat());
    assert!(said.contains("goes on    after step"), "{said}");
    for file in ["adapter_model.safetensors", "run.json"] {
        let [a, b] = ["a", "b"].map(|run| std::fs::read(temp.0.join(run).join(file)).unwrap());
        assert!(a == b, "{file} is another");
    }
    assert_eq!(log_lines(&log_b), log_lines(&log_a));
    assert!(!checkpoints.exists(), "a finished run needs none");
    let ran = luthier(&[&["train", "--model", NANO], &args[..], &["--resume"]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("there is no checkpoint in"), "{}", ran.stderr);
}

#[test]
fn a_finished_run_can_be_run_again() {
    let temp = Temp::new("replay");
    let data = temp.write("some.jsonl", records(40) + "nonsense\n");
    let adapter = |name: &str| std::fs::read(temp.0.join(name).join("adapter_model.safetensors")).unwrap();
    train(&data, &temp.path("a"), &["--steps", "6", "--eval-every", "2", "--dropout", "0.1", "--skip-bad-records"]);
    let run = temp.path("a/run.json");
    let record: Value = serde_json::from_slice(&std::fs::read(&run).unwrap()).unwrap();
    assert_eq!((&record["data"]["name"], &record["options"]["steps"]), (&data.as_str().into(), &6.into()));
    assert_eq!(record["results"]["best"]["step"].as_u64(), Some(6), "{record}");
    let again = |out: &str, more: &[&str]| {
        let out = temp.path(out);
        luthier(&[&["train", "--from", &run, "--device", "cpu", "--out", &out], more].concat())
    };
    let ran = again("b", &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(adapter("b") == adapter("a"));

    // As the page writes it: names that say nothing here, and a run that was stopped after its fourth step.
    let page = |step: u64| {
        let mut page = record.clone();
        page["model"]["name"] = "a/model-of-the-hub".into();
        page["data"]["name"] = "pasted.jsonl".into();
        page["results"]["step"] = step.into();
        temp.write("a/run.json", page.to_string());
    };
    page(6);
    let ran = again("c", &["--model", NANO]);
    assert!(ran.code == Some(1) && ran.stderr.contains("--data: the run's file 'pasted.jsonl'"), "{}", ran.stderr);
    let ran = again("c", &["--model", NANO, "--data", &data]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(adapter("c") == adapter("a"));
    page(4);
    let ran = again("d", &["--model", NANO, "--data", &data]);
    assert!(ran.code == Some(0) && ran.stdout.contains("step 4"), "{} {}", ran.stdout, ran.stderr);
    let ran = again("e", &["--model", NANO, "--data", &temp.data()]);
    assert!(ran.code == Some(1) && ran.stderr.contains("sha256"), "other data: {}", ran.stderr);
    let ran = again("e", &["--model", NANO, "--data", &data, "--lr", "1"]);
    assert_eq!(ran.code, Some(2), "options are the run's: {}", ran.stderr);
    let ran = luthier(&["train", "--from", &data, "--out", &temp.path("e")]);
    assert!(ran.code == Some(1) && ran.stderr.contains("no record of a run"), "{}", ran.stderr);
}
