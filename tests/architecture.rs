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
    ("weights", &["error", "format", "num"]),
    ("data", &["digest", "error", "num", "weights"]),
    ("plan", &["format", "num"]),
    ("ops", &["format", "num", "plan", "simd"]),
    ("cpu", &["clock", "error", "format", "num", "ops", "plan"]),
    ("gpu", &["clock", "error", "format", "num", "plan"]),
    ("device", &["clock", "cpu", "error", "gpu", "plan"]),
    ("model", &["device", "digest", "error", "format", "num", "ops", "plan", "weights"]),
    ("benchmark", &["clock", "device", "error", "format", "ops", "plan"]),
    ("adapter", &["error", "model", "num", "ops", "plan", "weights"]),
    ("train", &["adapter", "clock", "data", "device", "digest", "error", "model", "ops", "plan", "weights"]),
    ("web", &["adapter", "benchmark", "data", "device", "error", "model", "session", "train", "weights"]),
];

/// Rooms that may import every other: the façade and what stands on it.
const TOP: &[&str] = &["cli", "eval", "lib", "main", "session"];

/// Methods of `adapter/`, which `model/` must not know by name. (`lora_grad` is a kernel: any low-rank factor's gradient.)
const METHODS: &[&str] = &["lora", "dora", "ia3", "prefix_tuning", "prompt_tuning", "bitfit"];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All `.rs` files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "rs"));
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
        let code = code(&file).to_lowercase().replace("lora_grad", "");
        for method in METHODS {
            assert!(!code.contains(method), "{} speaks of {method}", file.display());
        }
    }
}
