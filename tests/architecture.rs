//! The picture of the house as facts: which room may import which, and who may speak of wgpu.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A room (a folder or file of `src/`) and the rooms it may import, besides itself; lower rooms first.
const ARROWS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("digest", &[]),
    ("error", &[]),
    ("num", &[]),
    ("simd", &["num"]),
    ("format", &["num", "simd"]),
    ("cache", &["error"]),
    ("weights", &["cache", "digest", "error", "format", "num"]),
    ("data", &["digest", "error", "num", "weights"]),
    ("plan", &["format", "num"]),
    ("ops", &["format", "num", "plan", "simd"]),
    ("cpu", &["clock", "error", "format", "num", "ops", "plan"]),
    ("gpu", &["cache", "clock", "error", "format", "num", "plan"]),
    ("device", &["clock", "cpu", "error", "gpu", "plan"]),
    ("model", &["device", "digest", "error", "format", "num", "ops", "plan", "weights"]),
    ("benchmark", &["clock", "device", "error", "format", "gpu", "num", "ops", "plan"]),
    ("adapter", &["error", "model", "num", "ops", "plan", "weights"]),
    ("train", &["adapter", "clock", "data", "device", "digest", "error", "model", "ops", "plan", "weights"]),
    ("eval", &["data", "error", "num"]),
    ("web", &["adapter", "benchmark", "data", "device", "error", "eval", "model", "session", "train", "weights"]),
];

/// Rooms that may import every other: the façade and what stands on it.
const TOP: &[&str] = &["cli", "lib", "main", "session"];

/// Methods of `adapter/`, which `model/` must not know by name.
const METHODS: &[&str] = &["lora", "dora", "ia3", "prefix_tuning", "prompt_tuning", "bitfit"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn src() -> PathBuf {
    root().join("src")
}

/// All files of code below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "rs" || e == "wgsl"));
    all.sort();
    all
}

/// The room a file belongs to: the first part of its path in `src/`, without extension.
fn room(file: &Path) -> String {
    let inside = file.strip_prefix(src()).unwrap();
    Path::new(inside.iter().next().unwrap()).file_stem().unwrap().to_string_lossy().into_owned()
}

/// The code of a file: lines that are not comments.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect()
}

/// Rooms named after `crate::`, also inside braces: `use crate::{gpu, plan::Buf}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let group = group.split(|c| depth_after(&mut depth, c) < 0).next().unwrap_or("");
                found.extend(group.split(',').map(word).filter(|w| !w.is_empty()));
            }
            None => drop(found.insert(word(rest))),
        }
    }
    found
}

fn depth_after(depth: &mut i32, c: char) -> i32 {
    *depth += (c == '{') as i32 - (c == '}') as i32;
    *depth
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn allowed(room: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(name, _)| *name == room).map(|(_, to)| *to)
}

#[test]
fn imports_follow_the_arrows() {
    let rooms: BTreeSet<String> = files(&src()).iter().map(|f| room(f)).collect();
    let mut problems = Vec::new();
    for file in files(&src()) {
        let from = room(&file);
        if TOP.contains(&from.as_str()) {
            continue;
        }
        let Some(to) = allowed(&from) else {
            problems.push(format!("{}: the room {from} has no row in the table of arrows", file.display()));
            continue;
        };
        for import in imports(&code(&file)).intersection(&rooms).filter(|i| **i != from) {
            if !to.contains(&import.as_str()) {
                problems.push(format!("{}: {from} must not import {import}", file.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_room_that_is_named_exists() {
    let rooms: BTreeSet<String> = files(&src()).iter().map(|f| room(f)).collect();
    let named: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).chain(TOP.iter().copied()).collect();
    let absent: Vec<_> = named.iter().filter(|name| !rooms.contains(**name)).collect();
    assert!(absent.is_empty(), "no such rooms: {absent:?}");
}

#[test]
fn arrows_never_turn_back() {
    for (i, (room, to)) in ARROWS.iter().enumerate() {
        let below = |to: &&&str| **to == "session" || ARROWS[..i].iter().any(|(name, _)| name == *to);
        let back: Vec<_> = to.iter().filter(|to| !below(to)).collect();
        assert!(back.is_empty(), "{room} imports {back:?}, which come after it");
    }
}

#[test]
fn only_the_gpu_room_speaks_wgpu() {
    for file in files(&src()) {
        let speaks = code(&file).contains("wgpu::");
        assert!(!speaks || room(&file) == "gpu", "{} uses wgpu", file.display());
    }
}

#[test]
fn the_model_knows_no_adapter_by_name() {
    for file in files(&src().join("model")) {
        let code = code(&file).to_lowercase();
        for method in METHODS {
            assert!(!code.contains(method), "{} speaks of {method}", file.display());
        }
    }
}

/// Lines of a file, or of all code below a folder.
fn lines(path: &Path) -> usize {
    let all = if path.is_dir() { files(path) } else { vec![path.to_path_buf()] };
    let text = |file: &PathBuf| std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    all.iter().map(|file| text(file).lines().count()).sum()
}

/// What stands between backticks; a name without a folder lies beside the one before it.
fn paths(cell: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for name in cell.split('`').skip(1).step_by(2) {
        let beside = all.last().filter(|_| name.ends_with(".rs") && !name.contains('/')).and_then(|last| last.parent());
        all.push(beside.map_or_else(|| root().join(name), |folder| folder.join(name)));
    }
    all
}

/// The README's reading order says how long each part is: within 15 %, so that not every change touches it.
#[test]
fn the_readme_counts_lines() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut problems = Vec::new();
    let mut rows = 0;
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let Ok(said) = cells[2].parse::<usize>() else { continue };
        let counted: usize = paths(cells[1]).iter().map(|path| lines(path)).sum();
        rows += 1;
        if said.abs_diff(counted) * 100 > 15 * counted {
            problems.push(format!("{}: {said} lines in the README, {counted} in the files", cells[1]));
        }
    }
    assert!(rows > 5, "the README has no table of lines");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A skipped test says so whether or not output is captured: `print!` and its kin are, where a test passes.
#[test]
fn skips_are_seen() {
    for file in files(&root().join("tests")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let hidden = text.lines().find(|line| line.contains("println!(\"SKIPPED"));
        assert!(hidden.is_none(), "{}: {hidden:?}", file.display());
    }
}
