//! Public data sets as the lines that `luthier train` and `luthier eval` read. The data themselves are fetched by
//! whoever runs a recipe, under their own licences; nothing of them is kept here.

use crate::shell::Outcome;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What `cargo xtask recipe-data` knows: name, what the source is, how it is read.
type Convert = fn(&Path) -> Outcome<Vec<(&'static str, Vec<Value>)>>;
const KINDS: [(&str, Convert); 8] = [
    ("bfcl", bfcl),
    ("apibench", apibench),
    ("sst2", sst2),
    ("viggo", viggo),
    ("viggo-acts", viggo_acts),
    ("tatoeba", tatoeba),
    ("tldr", tldr),
    ("nl2bash", nl2bash),
];

/// Converts the source into files of JSON lines in a folder.
pub fn run(kind: &str, source: &str, out: &str) -> Outcome {
    let Some((_, convert)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        let known = KINDS.map(|(name, _)| name).join(", ");
        return Err(format!("`cargo xtask recipe-data` knows {known}, not {kind}").into());
    };
    std::fs::create_dir_all(out)?;
    for (name, lines) in convert(Path::new(source))? {
        let (path, text) =
            (Path::new(out).join(name), lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        let aside = path.with_extension("tmp");
        std::fs::write(&aside, text)?;
        std::fs::rename(&aside, &path)?;
        println!("{}: {} lines", path.display(), lines.len());
    }
    Ok(())
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()).into())
}

fn json_lines(path: &Path) -> Outcome<Vec<Value>> {
    let parse = |line: &str| serde_json::from_str(line).map_err(|e| format!("{}: {e}", path.display()).into());
    read(path)?.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

fn pair(prompt: &str, completion: &str) -> Value {
    json!({ "prompt": prompt, "completion": completion })
}

/// FNV-1a, its halves folded: the low bits alone mix badly.
fn hash(text: &str) -> u64 {
    let all = text.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    all >> 32
}

/// In an order that follows from the lines alone, so that the first lines of a file are a fair sample of it.
fn shuffled(mut lines: Vec<Value>) -> Vec<Value> {
    lines.sort_by_cached_key(|line| hash(&line.to_string()));
    lines
}

/// Training and test lines: one in `parts` for the test, by a hash of what is told apart, so that lines that agree in
/// it are on one side.
fn parted(lines: Vec<Value>, parts: u64, key: impl Fn(&Value) -> String) -> Vec<(&'static str, Vec<Value>)> {
    let (test, train) = lines.into_iter().partition(|line| hash(&key(line)).is_multiple_of(parts));
    vec![("train.jsonl", shuffled(train)), ("test.jsonl", shuffled(test))]
}

/// The Berkeley Function-Calling Leaderboard (v4): a folder with `BFCL_v4_*.json` and `possible_answer/`. A test only.
fn bfcl(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let mut files = Vec::new();
    for (name, out) in
        [("simple_python", "simple.jsonl"), ("multiple", "multiple.jsonl"), ("irrelevance", "irrelevance.jsonl")]
    {
        let file = format!("BFCL_v4_{name}.json");
        let answers = source.join("possible_answer").join(&file);
        let truths = if name == "irrelevance" { Vec::new() } else { json_lines(&answers)? };
        let items = json_lines(&source.join(&file))?;
        let lines = items.iter().enumerate().map(|(i, item)| {
            let truth = truths.get(i).map_or(json!([]), |t| t["ground_truth"].clone());
            let answer = truth[0].as_object().map_or("None of the functions fits.".into(), call);
            let system = format!(
                "You may call these functions: {}\nAnswer with one call in a list, such as [name(argument=value)], or \
                 say that none of them fits.",
                item["function"]
            );
            let mut messages = vec![json!({ "role": "system", "content": system })];
            messages.extend(item["question"][0].as_array().into_iter().flatten().cloned());
            messages.push(json!({ "role": "assistant", "content": answer }));
            json!({ "messages": messages, "functions": item["function"], "ground_truth": truth })
        });
        files.push((out, lines.collect()));
    }
    Ok(files)
}

/// A ground truth as the call that uses the first of the allowed values each; `""` allows to leave a parameter out.
fn call(truth: &Map<String, Value>) -> String {
    let Some((name, arguments)) = truth.iter().next() else { return "[]".into() };
    let given = arguments.as_object().into_iter().flatten();
    let given = given.filter_map(|(k, allowed)| Some((k, allowed.as_array()?.iter().find(|v| **v != "")?)));
    let given: Vec<String> = given.map(|(k, v)| format!("{k}={}", python(&first_allowed(v)))).collect();
    format!("[{name}({})]", given.join(", "))
}

/// Within allowed dictionaries, every key has a list of values of its own.
fn first_allowed(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let one = |(k, allowed): (&String, &Value)| match allowed.as_array() {
                Some(list) => list.first().filter(|v| **v != "").map(|v| (k.clone(), v.clone())),
                None => Some((k.clone(), allowed.clone())),
            };
            Value::Object(map.iter().filter_map(one).collect())
        }
        Value::Array(items) => items.iter().map(first_allowed).collect(),
        other => other.clone(),
    }
}

fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{}: {}", json!(k), python(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

/// Gorilla's APIBench, its Torch Hub part: a folder with `torchhub_train.json` and `torchhub_eval.json`. The calls of
/// one API in five are kept out of `train_seen.jsonl`; the tests that ask for them are `test_unseen.jsonl`.
fn apibench(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let line = |item: &Value| {
        let code = item["code"].as_str()?;
        let behind = code.split_once("Instruction").map_or(code, |(_, behind)| behind);
        let asked = behind.split_once("Output").map_or(behind, |(asked, _)| asked);
        let asked = asked.trim_matches(|c: char| " ':,\"\n#\\".contains(c));
        let (call, domain) = (item["api_data"]["api_call"].as_str()?, item["api_data"]["domain"].as_str()?);
        let answer = format!("<<<domain>>>: {domain}\n<<<api_call>>>: {call}\n<<<api_provider>>>: PyTorch");
        Some(json!({ "prompt": asked, "completion": answer, "domain": domain }))
    };
    let lines = |name: &str| -> Outcome<Vec<Value>> {
        Ok(shuffled(json_lines(&source.join(name))?.iter().filter_map(line).collect()))
    };
    let (train, test) = (lines("torchhub_train.json")?, lines("torchhub_eval.json")?);
    let unseen = |line: &&Value| hash(&line["completion"].to_string()).is_multiple_of(5);
    let part = |of: &[Value], is: bool| of.iter().filter(|line| unseen(line) == is).cloned().collect();
    Ok(vec![
        ("train_seen.jsonl", part(&train, false)),
        ("test_seen.jsonl", part(&test, false)),
        ("test_unseen.jsonl", part(&test, true)),
        ("train.jsonl", train),
        ("test.jsonl", test),
    ])
}

/// SST-2, the Stanford Sentiment Treebank's sentences with two labels: a folder with `train.tsv` and `test.tsv`.
fn sst2(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let mut files = Vec::new();
    for (name, out) in [("train.tsv", "train.jsonl"), ("test.tsv", "test.jsonl")] {
        let line = |line: &str| {
            let (sentence, label) = line.rsplit_once('\t')?;
            let label = if label.trim() == "1" { "positive" } else { "negative" };
            Some(pair(&format!("Positive or negative? {}", sentence.trim()), label))
        };
        files.push((out, shuffled(read(&source.join(name))?.lines().filter_map(line).collect())));
    }
    Ok(files)
}

/// ViGGO: a folder with `train.csv`, `valid.csv` and `test.csv`; sentences become JSON.
fn viggo(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    viggo_files(source, |meaning, sentence| Some(pair(sentence, &meaning_json(meaning)?.to_string())))
}

/// ViGGO's sentences and which of nine kinds of utterance each is (inform, request, give_opinion …).
fn viggo_acts(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let act = |meaning: &str| Some(meaning.split_once('(')?.0.trim().replace('_', " "));
    viggo_files(source, |meaning, sentence| Some(pair(&format!("Kind of utterance: {sentence}"), &act(meaning)?)))
}

fn viggo_files(source: &Path, line: impl Fn(&str, &str) -> Option<Value>) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let mut files = Vec::new();
    for (name, out) in [("train.csv", "train.jsonl"), ("valid.csv", "valid.jsonl"), ("test.csv", "test.jsonl")] {
        let rows = csv(&read(&source.join(name))?);
        let line = |row: &Vec<String>| match &row[..] {
            [meaning, sentence] => line(meaning, sentence),
            _ => None,
        };
        files.push((out, shuffled(rows.iter().skip(1).filter_map(line).collect())));
    }
    Ok(files)
}

/// `inform(name[Dirt], genres[driving, sport])` as `{"act": "inform", "name": "Dirt", …}`.
fn meaning_json(text: &str) -> Option<Value> {
    let (act, rest) = text.trim().strip_suffix(')')?.split_once('(')?;
    let mut fields = Map::from_iter([("act".to_string(), json!(act))]);
    for part in rest.split("],").map(|part| part.trim().trim_end_matches(']')).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('[').unwrap_or((part, ""));
        fields.insert(name.trim().into(), json!(value));
    }
    Some(Value::Object(fields))
}

/// Rows of cells; cells in quotes may hold commas, line ends and doubled quotes.
fn csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().filter(|c| *c != '\r').peekable();
    while let Some(c) = chars.next() {
        match (c, quoted) {
            ('"', true) if chars.peek() == Some(&'"') => cell.extend(chars.next()),
            ('"', _) => quoted = !quoted,
            (',', false) => row.push(std::mem::take(&mut cell)),
            ('\n', false) => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            (c, _) => cell.push(c),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows
}

/// Sentence pairs, JSON lines with `eng` and another language.
fn tatoeba(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let line = |item: &Value| {
        let (_, other) = item.as_object()?.iter().find(|(name, _)| *name != "eng")?;
        Some(pair(item["eng"].as_str()?, other.as_str()?))
    };
    let lines = json_lines(source)?.iter().filter_map(line).collect();
    Ok(parted(lines, 10, |line| line["prompt"].to_string()))
}

/// tldr-pages: JSON lines with `tool`, `prompt` and `command_plain`. A quarter is for the test: the set is small.
fn tldr(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let line = |item: &Value| {
        let program = item["tool"].as_str()?.split(' ').next()?;
        Some(pair(&format!("{program}: {}", item["prompt"].as_str()?), item["command_plain"].as_str()?))
    };
    let lines = json_lines(source)?.iter().filter_map(line).collect();
    Ok(parted(lines, 4, |line| line["prompt"].to_string()))
}

/// NL2Bash: JSON lines with `prompt` and `command`. The same command is never on both sides.
fn nl2bash(source: &Path) -> Outcome<Vec<(&'static str, Vec<Value>)>> {
    let line = |item: &Value| Some(pair(item["prompt"].as_str()?, item["command"].as_str()?));
    let lines = json_lines(source)?.iter().filter_map(line).collect();
    Ok(parted(lines, 10, |line| line["completion"].to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meanings_and_tables() {
        let meaning = "inform(name[Dirt: Showdown], genres[driving/racing, sport], has_mac_release[no])";
        let wanted = json!({ "act": "inform", "name": "Dirt: Showdown", "genres": "driving/racing, sport", "has_mac_release": "no" });
        assert_eq!(meaning_json(meaning), Some(wanted));
        assert_eq!(csv("a,\"b \"\"c\"\", d\"\nx,y"), [["a", "b \"c\", d"], ["x", "y"]]);
    }

    #[test]
    fn a_truth_as_a_call() {
        let truth = json!({ "f.g": { "a": [1, 2], "b": ["", "x"], "c": [[{ "k": [true] }]], "d": ["it's"] } });
        assert_eq!(call(truth.as_object().unwrap()), r#"[f.g(a=1, b="x", c=[{"k": True}], d="it's")]"#);
    }
}
