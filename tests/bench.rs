//! The bench runs and reports; what it measures is nobody's promise.

#[path = "../benches/main.rs"]
mod bench;

use clap::Parser;
use serde_json::Value;

fn run(line: &[&str]) -> Value {
    let file = std::env::temp_dir().join(format!("luthier-bench-{}-{}.json", std::process::id(), line.len()));
    let json = ["--json", file.to_str().unwrap()];
    let args = bench::Args::parse_from(["bench"].iter().chain(line).chain(&json));
    assert_eq!(bench::run(&args).unwrap(), 0, "{line:?}: cases failed");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_column_is_filled_and_the_json_is_whole() {
    let cases = ["steps small", "kernels softcap.forward", "kernels gain."];
    let report = run(&[&cases[..], &["--device", "cpu", "--quick", "--steps", "1"]].concat());
    assert!(report["limits"]["gflops"].as_f64() > Some(0.1) && report["limits"]["gbytes"].as_f64() > Some(0.01));
    assert_eq!(report["kind"], "cpu");
    let steps = report["steps"].as_array().unwrap();
    let methods: Vec<_> = steps.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["lora-r8", "full"]);
    let numbers = ["median_ms", "best_ms", "tokens_per_s", "gflops", "of_limit", "mib", "dispatches", "first_ms"];
    for (row, key) in steps.iter().flat_map(|row| numbers.map(|key| (row, key))) {
        assert!(row[key].as_f64() > Some(0.0), "{key} of {row}");
    }
    // The first loss of a random net is that of guessing among 256 tokens.
    assert!((steps[0]["loss_first"].as_f64().unwrap() - 256f64.ln()).abs() < 0.1, "{}", steps[0]);
    let kernels: Vec<_> = report["kernels"].as_array().unwrap().iter().map(|row| &row["kernel"]).collect();
    assert_eq!(kernels, ["gain.forward", "gain.backward", "softcap.forward"]);
    assert_eq!(report["not_run"], serde_json::json!([]));
}

/// Our side of each comparison with a peer is a case that there is; in the browser it is a program of its own.
#[test]
fn every_peer_has_a_case_of_ours() {
    let names = bench::list(&bench::Args::parse_from(["bench", "steps", "--device", "cpu"])).unwrap();
    let peers = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/xtask/src/bench.rs")).unwrap();
    let ours = peers.lines().filter_map(|line| line.trim().strip_prefix("ours: \"")?.strip_suffix("\","));
    let ours: Vec<_> = ours.filter(|ours| *ours != "luthier").collect();
    assert!(ours.len() >= 5, "{ours:?}");
    for case in ours {
        assert!(names.iter().any(|name| name.starts_with(case)), "{case} is none of {names:?}");
    }
}

/// What does not fit, in time or memory, is listed with both numbers.
#[test]
fn nothing_is_dropped_in_silence() {
    let report = run(&["steps small", "--device", "cpu", "--quick", "--memory-gib", "0.001"]);
    let missing = report["not_run"].as_array().unwrap();
    assert_eq!(missing.len(), 2, "{report}");
    let why = missing[0]["why"].as_str().unwrap();
    assert!(why.contains("does not fit") && why.contains("MiB"), "{why}");
    let report = run(&["steps llama", "--device", "cpu", "--budget", "0.001"]);
    let why = report["not_run"][0]["why"].as_str().unwrap();
    assert!(why.contains("needs about") && report.get("steps").is_none(), "{report}");
}
