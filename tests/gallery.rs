//! The page's samples as the page takes them: their options are options of a run, and no example is cut.

use luthier::data::{Dataset, EncodeOptions, ReadOptions, read_file};
use luthier::eval::{Task, items};
use luthier::train::TrainOptions;
use luthier::weights::ModelFiles;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The page lets an answer grow to this many tokens.
const MAX_NEW_TOKENS: usize = 48;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn index() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(demo().join("gallery/index.json")).unwrap()).unwrap()
}

fn nano() -> luthier::data::Tokenizer {
    let files = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    luthier::data::Tokenizer::new(files.tokenizer().clone()).unwrap()
}

fn files(sample: &Value) -> Vec<&str> {
    let heldout = sample["heldout"].as_array().unwrap().iter().map(|part| &part["file"]);
    std::iter::once(&sample["train"]).chain(heldout).map(|file| file.as_str().unwrap()).collect()
}

#[test]
fn options_are_options_of_a_run() {
    for sample in index() {
        let options: TrainOptions = serde_json::from_value(sample["options"].clone()).unwrap();
        options.check().unwrap();
    }
}

#[test]
fn examples_fit_into_a_row_and_answers_into_an_answer() {
    let nano = nano();
    for sample in index() {
        let options: TrainOptions = serde_json::from_value(sample["options"].clone()).unwrap();
        for file in files(&sample) {
            let records = read_file(&demo().join(file), &ReadOptions::default()).unwrap();
            let encode = EncodeOptions { seq_len: options.seq_len, use_template: true };
            let examples = Dataset::encode(&records, &nano, &encode).unwrap().examples;
            for example in examples.iter() {
                let (line, learned) = (example.line, example.targets());
                assert!(!example.truncated, "{file}:{line}: {} tokens", example.full_len);
                assert!(learned <= MAX_NEW_TOKENS, "{file}:{line}: an answer of {learned} tokens");
            }
        }
    }
}

#[test]
fn probes_are_held_out_prompts() {
    for sample in index() {
        let heldout: String =
            files(&sample)[1..].iter().map(|file| std::fs::read_to_string(demo().join(file)).unwrap()).collect();
        for probe in sample["probes"].as_array().unwrap() {
            assert!(heldout.contains(&format!("{{\"prompt\":{probe},")), "{probe}");
        }
    }
}

#[test]
fn tasks_are_guessed_from_the_data() {
    for sample in index() {
        for file in files(&sample) {
            let path = demo().join(file);
            let records = read_file(&path, &ReadOptions::default()).unwrap();
            let all = items(&records, &std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(serde_json::json!(Task::guess(&all)), sample["task"], "{file}");
        }
    }
}
