//! The page: the crate as wasm with its JavaScript glue, and the files it reads, in one folder to be served as it is.

use crate::shell::{Outcome, cargo, check, root, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";

/// Builds everything into `target/www/demo` and returns that folder.
pub fn build() -> Outcome<PathBuf> {
    let page = target_dir().join("www/demo");
    if page.exists() {
        fs::remove_dir_all(&page).map_err(|error| format!("cannot clear {}: {error}", page.display()))?;
    }
    add_target()?;
    check(&mut cargo(&["build", "--lib", "--target", TARGET, "--profile", "wasm"]))?;
    bind(&target_dir().join("wasm32-unknown-unknown/wasm/luthier.wasm"), &page.join("pkg"))?;
    copy_files(&root().join("www/demo"), &page, "")?;
    copy_files(&root().join("models/nano"), &page.join("models/nano"), "")?;
    copy_files(&root().join("demo"), &page.join("demo"), ".jsonl")?;
    copy_files(&root().join("demo/gallery"), &page.join("demo/gallery"), "")?;
    Ok(page)
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
fn bind(wasm: &Path, to: &Path) -> Outcome {
    let mut bindgen = Bindgen::new();
    bindgen.input_path(wasm).out_name("luthier").typescript(true).web(true)?;
    // So that `init()` finds the wasm beside its JavaScript.
    bindgen.omit_default_module_path(false);
    bindgen.generate(to).map_err(|error| format!("wasm-bindgen on {}: {error:#}", wasm.display()))?;
    Ok(())
}

/// Copies the files of one folder (not of folders in it) whose names end in `suffix`; having none is an error.
fn copy_files(from: &Path, to: &Path, suffix: &str) -> Outcome {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).map_err(|error| format!("the page needs {}: {error}", from.display()))?;
    let mut copied = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if entry.path().is_file() && name.to_string_lossy().ends_with(suffix) {
            // Not `fs::copy`: it would make the copy of a read-only file read-only.
            fs::write(to.join(&name), fs::read(entry.path())?)?;
            copied += 1;
        }
    }
    if copied == 0 { Err(format!("the page needs {}/*{suffix}: there is none", from.display()).into()) } else { Ok(()) }
}
