//! What test binaries share: the GPU or a skip, and the folder of shared models and data.
#![allow(dead_code)]

pub mod tolerance;

use luthier::gpu::Gpu;
use std::io::Write;
use std::path::PathBuf;

/// Says SKIPPED; with `REQUIRE_GPU=1` a skipped GPU test fails.
pub fn gpu() -> Option<Gpu> {
    gpu_with(false)
}

/// One that may compute with halves, if `halves` says so.
pub fn gpu_with(halves: bool) -> Option<Gpu> {
    match pollster::block_on(luthier::gpu::open(true, halves)) {
        Ok(Some(gpu)) => Some(gpu),
        other => {
            let why = other.err().map_or("no GPU adapter".into(), |e| e.to_string());
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but: {why}");
            skipped(&why);
            None
        }
    }
}

/// A folder of `../shared`, where it is present.
pub fn shared(path: &str) -> Option<PathBuf> {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if full.exists() {
        return Some(full);
    }
    skipped(&format!("{} is not there", full.display()));
    None
}

/// Says so where plain `cargo test` shows it: the macros' output is kept back from tests that pass.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
