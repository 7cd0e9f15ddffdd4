//! `cargo xtask test`: every test there is, the real page in a real browser among them.

use crate::requirements::{self, Need};
use crate::shell::{Outcome, cargo, check, phase, target_dir};
use crate::{browser, node, page};

pub fn run(skip_missing: bool) -> Outcome {
    let required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
    if skip_missing && required {
        return Err("--skip-missing with REQUIRE_GPU=1: the one allows skipping, the other forbids it".into());
    }
    let missing = phase("requirements", || requirements::prepare(skip_missing))?;
    phase("cargo test", || check(&mut cargo(&["test", "--workspace"])))?;
    if missing.contains(&Need::Browser) || missing.contains(&Need::Node) {
        println!("=== the page in headless Chromium: SKIPPED, no browser or no Node.js");
        return Ok(());
    }
    phase("the page is built", || page::build().map(drop))?;
    phase("luthier-web is a sound package", || check(node::npm(&["run", "check"]).current_dir(page::www())))?;
    phase("the page in headless Chromium", in_browser)
}

/// One file after the other: two browsers at once would be too much for a small machine.
fn in_browser() -> Outcome {
    let folder = page::www().join("tests");
    let names = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Outcome<Vec<_>>>()?;
    names.sort();
    let mut tests = node::node(&["--test", "--test-concurrency=1", "--test-reporter=spec"]);
    tests.args(names.iter().filter(|name| name.ends_with(".test.mjs")));
    // `cargo test` has just built it.
    let luthier = target_dir().join(format!("debug/luthier{}", std::env::consts::EXE_SUFFIX));
    tests.env("LUTHIER", luthier).envs(browser::find().map(|chromium| ("CHROMIUM", chromium)));
    check(tests.current_dir(folder))
}
