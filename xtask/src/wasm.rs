//! The crate as wasm with its JavaScript glue, for `www/luthier-web`.

use crate::shell::{Outcome, cargo, check, root, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";

/// The engine for every browser, and for those with relaxed SIMD: a module with one unknown instruction is no module at
/// all, so the page loads the one or the other. Names of files, and the crate's features.
const ENGINES: [(&str, &[&str]); 2] = [("luthier", &[]), ("luthier_relaxed", &["--features", "relaxed-simd"])];

/// Builds the engines into `www/luthier-web/pkg` and returns that folder.
pub fn build() -> Outcome<PathBuf> {
    let package = root().join("www/luthier-web/pkg");
    add_target()?;
    if package.exists() {
        fs::remove_dir_all(&package).map_err(|error| format!("cannot clear {}: {error}", package.display()))?;
    }
    for (name, features) in ENGINES {
        let build = ["build", "--lib", "--target", TARGET, "--profile", "wasm"];
        check(&mut cargo(&[&build, features].concat()))?;
        bind(&target_dir().join("wasm32-unknown-unknown/wasm/luthier.wasm"), name, &package)?;
    }
    Ok(package)
}

/// rustup adds a missing target to a toolchain that is already there only when asked; other set-ups bring it along.
fn add_target() -> Outcome {
    let mut list = Command::new("rustup");
    match list.args(["target", "list", "--installed"]).current_dir(root()).output() {
        Ok(installed) if !String::from_utf8_lossy(&installed.stdout).contains(TARGET) => {
            check(Command::new("rustup").args(["target", "add", TARGET]).current_dir(root()))
        }
        _ => Ok(()),
    }
}

/// wasm-bindgen as a library: its version is then Cargo.lock's, and no program has to be installed.
fn bind(wasm: &Path, name: &str, to: &Path) -> Outcome {
    let mut bindgen = Bindgen::new();
    bindgen.input_path(wasm).out_name(name).typescript(true).web(true)?;
    bindgen.generate(to).map_err(|error| format!("wasm-bindgen on {}: {error:#}", wasm.display()))?;
    Ok(())
}
