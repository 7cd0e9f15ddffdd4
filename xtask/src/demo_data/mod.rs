//! The data of the demo and of the page's gallery: a few small sets, each in a file of its own, all composed here.
//! The same files come out every time.

mod facts;
mod german;
mod larder;
mod orders;
mod random;
mod sentiment;

use random::Random;
use serde_json::{Value, json};
use std::path::Path;

/// Prompts of a set that the page shows before and after tuning.
const PROBES: usize = 4;

/// What to say, and the answer to learn.
type Row = (String, String);

/// One sample of the gallery.
struct Set {
    id: &'static str,
    title: &'static str,
    /// One sentence: what is learned.
    about: &'static str,
    task: &'static str,
    train: Part,
    /// What the training data lack, and rows that ask for it.
    heldout: Vec<(&'static str, Part)>,
    /// The options of a training run that differ from their defaults.
    options: Value,
}

struct Part {
    /// Its path in `demo/`.
    file: &'static str,
    rows: Vec<Row>,
}

fn sets() -> Vec<Set> {
    vec![larder::set(), facts::set(), sentiment::set(), orders::set(), german::set()]
}

/// Writes all files into `dir`, which is made if it is not there.
pub fn write(dir: &Path) -> std::io::Result<()> {
    for (file, text) in files() {
        let path = dir.join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        std::fs::write(path, text)?;
    }
    Ok(())
}

/// Every file by its path in `demo/`, with what stands in it.
fn files() -> Vec<(&'static str, String)> {
    let sets = sets();
    let index: Vec<Value> = sets.iter().map(entry).collect();
    let index = serde_json::to_string_pretty(&index).expect("values of strings and numbers") + "\n";
    let parts = sets.iter().flat_map(Set::parts).map(|part| (part.file, part.lines()));
    parts.chain([("gallery/index.json", index)]).collect()
}

/// What the page knows of a set.
fn entry(set: &Set) -> Value {
    let heldout: Vec<Value> =
        set.heldout.iter().map(|(title, part)| json!({ "title": title, "file": part.file })).collect();
    json!({
        "id": set.id,
        "title": set.title,
        "about": set.about,
        "task": set.task,
        "train": set.train.file,
        "heldout": heldout,
        "probes": set.probes(),
        "options": set.options,
    })
}

impl Set {
    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.train).chain(self.heldout.iter().map(|(_, part)| part))
    }

    /// Held-out prompts, evenly spread over what is hardest, the last list: nobody chose them.
    fn probes(&self) -> Vec<&str> {
        let rows = self.heldout.last().map_or(&[][..], |(_, part)| &part.rows);
        rows.iter().step_by(rows.len().div_ceil(PROBES).max(1)).map(|(prompt, _)| prompt.as_str()).collect()
    }
}

impl Part {
    fn lines(&self) -> String {
        self.rows
            .iter()
            .map(|(prompt, completion)| format!("{}\n", json!({ "prompt": prompt, "completion": completion })))
            .collect()
    }
}

/// Takes one of every `[a|b]`.
fn choose(phrasing: &str, random: &mut Random) -> String {
    let mut out = String::new();
    let mut rest = phrasing;
    while let Some((before, after)) = rest.split_once('[') {
        let (choices, behind) = after.split_once(']').expect("every [ has its ]");
        let choices: Vec<&str> = choices.split('|').collect();
        out.push_str(before);
        out.push_str(random.pick(&choices));
        rest = behind;
    }
    (out + rest).trim_end().to_string()
}

/// All there is to choose from.
fn choices(phrasing: &str) -> Vec<String> {
    let Some((before, (choices, behind))) =
        phrasing.split_once('[').and_then(|(before, rest)| Some((before, rest.split_once(']')?)))
    else {
        return vec![phrasing.to_string()];
    };
    choices.split('|').flat_map(|choice| self::choices(&format!("{before}{choice}{behind}"))).collect()
}

fn capitalized(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::root;
    use std::collections::HashSet;

    #[test]
    fn the_files_in_the_tree_are_what_is_written_here() {
        let demo = root().join("demo");
        for (file, text) in files() {
            let there = std::fs::read_to_string(demo.join(file)).unwrap_or_default();
            assert!(there == text, "demo/{file} differs: `cargo xtask demo-data` writes it");
        }
        let known: HashSet<_> = files().iter().map(|(file, _)| demo.join(file)).collect();
        for entry in std::fs::read_dir(demo.join("gallery")).unwrap() {
            let path = entry.unwrap().path();
            assert!(known.contains(&path), "{} belongs to no set", path.display());
        }
    }

    #[test]
    fn a_prompt_stands_once_in_a_set() {
        for set in sets() {
            let mut seen = HashSet::new();
            for (prompt, completion) in set.parts().flat_map(|part| &part.rows) {
                assert!(seen.insert(prompt), "{}: {prompt}", set.id);
                assert!(!completion.is_empty() && !prompt.contains(['[', '|', '{']), "{}: {prompt}", set.id);
            }
        }
    }

    #[test]
    fn sets_are_small_but_not_tiny() {
        for set in sets() {
            assert!((150..=600).contains(&set.train.rows.len()), "{}: {} rows", set.id, set.train.rows.len());
            for (title, part) in &set.heldout {
                assert!((40..=80).contains(&part.rows.len()), "{}, {title}: {} rows", set.id, part.rows.len());
            }
            assert!((3..=5).contains(&set.probes().len()), "{}", set.id);
        }
    }

    #[test]
    fn choices_are_all_taken() {
        assert_eq!(choices("a [b|c] [d|]"), ["a b d", "a b ", "a c d", "a c "]);
    }
}
