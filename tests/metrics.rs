//! The metrics of `eval` against the packages and scripts that define them (`golden/make_metrics.py`).

use luthier::data::{ReadOptions, read};
use luthier::eval::score::sum;
use luthier::eval::{Answered, System};
use luthier::eval::{Item, Judge, Task, api, call, compare, items};
use serde_json::Value;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Items that expect the given answers.
fn expecting(answers: &[&str]) -> Vec<Item> {
    let line = |(i, answer): (usize, &&str)| serde_json::json!({ "prompt": format!("q{i}"), "completion": answer });
    let text: String = answers.iter().enumerate().map(|x| format!("{}\n", line(x))).collect();
    items(&read("made.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap(), &text).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

fn close(what: &str, got: f64, want: &Value) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() < 1e-9 * want.abs().max(1.0), "{what}: {got}, not {want}");
}

/// The figures of a task for some answers, by name.
fn figures(judge: &Judge, items: &[Item], answers: &[&str]) -> Vec<(&'static str, f64)> {
    let marks: Vec<_> = items.iter().zip(answers).map(|(item, answer)| judge.mark(item, answer)).collect();
    let sums = sum(judge.width, marks.iter().map(|m| &m.counts));
    judge.figures.iter().map(|f| (f.name, f.value(&sums))).collect()
}

fn of(all: &[(&str, f64)], name: &str) -> f64 {
    all.iter().find(|(n, _)| *n == name).unwrap().1
}

#[test]
fn labels_as_scikit_learn() {
    for case in golden()["labels"].as_array().unwrap() {
        let (expected, answered) = (texts(&case["expected"]), texts(&case["answered"]));
        let items = expecting(&expected);
        // A label that is only answered is known from the training data.
        let known = expecting(&texts(&case["labels"]));
        let judge = Judge::new(Task::Classification, "made", &items, &known, Vec::new()).unwrap();
        let all = figures(&judge, &items, &answered);
        close("accuracy", of(&all, "accuracy") / 100.0, &case["accuracy"]);
        close("macro F1", of(&all, "macro_f1") / 100.0, &case["macro_f1"]);
        let answers = items.iter().zip(&answered);
        let answers = answers.map(|(i, a)| Answered { answer: a.to_string(), mark: judge.mark(i, a) }).collect();
        let report = compare(&judge, &[System { name: "x".into(), note: None, answers }], 0);
        let (labels, rows) = report.confusion.unwrap();
        assert_eq!(labels, texts(&case["labels"]));
        let wanted: Vec<Vec<u64>> = serde_json::from_value(case["confusion"].clone()).unwrap();
        let rows: Vec<Vec<u64>> = rows.iter().map(|row| row[..labels.len()].to_vec()).collect();
        assert_eq!(rows, wanted);
    }
}

#[test]
fn translations_as_sacrebleu() {
    let golden = golden();
    let sentences = golden["translations"]["sentences"].as_array().unwrap();
    let (mut all, mut every) = (Vec::new(), Vec::new());
    for case in sentences {
        let (answer, expected) = (case["answer"].as_str().unwrap(), case["expected"].as_str().unwrap());
        let items = expecting(&[expected]);
        let judge = Judge::new(Task::Translation, "made", &items, &[], Vec::new()).unwrap();
        let one = figures(&judge, &items, &[answer]);
        close(&format!("chrF of {answer:?}"), of(&one, "chrf"), &case["chrf"]);
        close(&format!("BLEU of {answer:?}"), of(&one, "bleu"), &case["bleu"]);
        all.push(answer);
        every.push(expected);
    }
    let items = expecting(&every);
    let judge = Judge::new(Task::Translation, "made", &items, &[], Vec::new()).unwrap();
    let corpus = figures(&judge, &items, &all);
    close("chrF of the corpus", of(&corpus, "chrf"), &golden["translations"]["corpus"]["chrf"]);
    close("BLEU of the corpus", of(&corpus, "bleu"), &golden["translations"]["corpus"]["bleu"]);
}

#[test]
fn function_calls_as_the_leaderboard() {
    let golden = golden();
    let cases = golden["calls"].as_array().unwrap();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let answer = case["answer"].as_str().unwrap();
            let found = call::wrong(answer, &case["functions"], &case["truth"]);
            (found.is_none() != case["right"].as_bool().unwrap()).then(|| format!("{answer}: {found:?}"))
        })
        .collect();
    assert!(wrong.is_empty() && cases.len() > 90, "{}", wrong.join("\n"));
}

#[test]
fn api_calls_as_gorilla() {
    let golden = golden();
    let cases = golden["api_calls"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let line = |call: &str| serde_json::json!({ "api_call": call, "domain": "any" }).to_string() + "\n";
        let apis = api::list(&texts(&case["apis"]).iter().map(|c| line(c)).collect::<String>()).unwrap();
        let found = api::find(case["answer"].as_str().unwrap(), &apis).map_or(-1, |at| at as i64);
        if found != case["found"].as_i64().unwrap() {
            wrong.push(format!("{}: {found}, not {}", case["answer"], case["found"]));
        }
    }
    assert!(wrong.is_empty() && cases.len() > 40, "{}", wrong.join("\n"));
}

#[test]
fn json_facts_and_commands() {
    let items = expecting(&[r#"{"a": 1, "b": {"c": "x", "d": [1, 2]}}"#, r#"{"a": 2}"#]);
    let judge = Judge::new(Task::Extraction, "made", &items, &[], Vec::new()).unwrap();
    let all = figures(&judge, &items, &[r#" {"b": {"d": [2, 3], "c": "x"}, "a": 1.0} "#, "a: 2"]);
    // Matched are a, b/c and one of b/d[]: 3 of 4 answered, of 5 expected.
    let near = |name: &str, want: f64| assert!((of(&all, name) - want).abs() < 1e-9, "{name}: {all:?}");
    near("exact_match", 0.0);
    near("valid_json", 50.0);
    near("field_precision", 75.0);
    near("field_recall", 60.0);
    near("field_f1", 100.0 * 6.0 / 9.0);

    let items = expecting(&["The 12 years", "Ann Lee", "no"]);
    let judge = Judge::new(Task::Facts, "made", &items, &[], Vec::new()).unwrap();
    let all = figures(&judge, &items, &["12 years!", "It was ann lee.", "nobody"]);
    let near = |name: &str, want: f64| assert!((of(&all, name) - want).abs() < 1e-9, "{name}: {all:?}");
    near("exact_match", 100.0 / 3.0);
    near("contains", 200.0 / 3.0);

    let items = expecting(&["larder put 'red apples' --shelf 3", "ls -l --color=auto", "rm -r x"]);
    let judge = Judge::new(Task::Commands, "made", &items, &[], Vec::new()).unwrap();
    let answers = ["larder put --shelf=3 \"red apples\"", "ls  -l  --color auto", "mv -f x"];
    let all = figures(&judge, &items, &answers);
    let near = |name: &str, want: f64| assert!((of(&all, name) - want).abs() < 1e-9, "{name}: {all:?}");
    near("exact_match", 100.0 / 3.0);
    near("same_command", 200.0 / 3.0);
    near("same_program", 200.0 / 3.0);
    near("flag_f1", 75.0);
}

#[test]
fn data_that_do_not_fit_their_task_are_refused() {
    let refused = |task: Task, answers: &[&str]| {
        Judge::new(task, "made.jsonl", &expecting(answers), &[], Vec::new()).err().map(|e| e.to_string())
    };
    assert!(
        refused(Task::Extraction, &["{}", "{a"]).unwrap().starts_with("made.jsonl:2: the expected answer is no JSON")
    );
    assert!(refused(Task::Classification, &["one", "two", "three"]).unwrap().contains("3 different answers"));
    assert!(refused(Task::ApiCalls, &["f()"]).unwrap().contains("--apis"));
    assert!(refused(Task::Bfcl, &["f()"]).unwrap().contains("functions"));
    assert!(refused(Task::Classification, &["one", "two", "one"]).is_none());
}
