//! The page: the engine as wasm, then what npm and Vite make of `www/`. Node.js is the one thing it needs beside Rust.

use crate::node;
use crate::shell::{Outcome, check, root};
use crate::wasm;
use std::fs;
use std::path::{Path, PathBuf};

/// Builds everything into `www/dist`, a folder for any static host, and returns it.
pub fn build() -> Outcome<PathBuf> {
    // Asked first: the build takes minutes.
    node::require()?;
    wasm::build()?;
    install()?;
    check(node::npm(&["run", "build"]).current_dir(www()))?;
    Ok(www().join("dist"))
}

pub fn www() -> PathBuf {
    root().join("www")
}

/// The packages that `package-lock.json` names, unless they are there already.
fn install() -> Outcome {
    let installed = www().join("node_modules/.package-lock.json");
    if modified(&installed) > modified(&www().join("package-lock.json")) {
        return Ok(());
    }
    check(node::npm(&["ci", "--no-audit", "--no-fund"]).current_dir(www()))
}

pub fn modified(file: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(file).and_then(|data| data.modified()).ok()
}
