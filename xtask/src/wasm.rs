//! The crate as wasm with its JavaScript glue, for `www/luthier-web`.

use crate::page::modified;
use crate::shell::{Outcome, cargo, check, root, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";

/// The engine for every browser, and for those with relaxed SIMD: a module with one unknown instruction is no module at
/// all, so the page loads the one or the other. Names of files, and the crate's features.
const ENGINES: [(&str, &[&str]); 2] = [("luthier", &[]), ("luthier_relaxed", &["--features", "relaxed-simd"])];

/// Builds the engines into `www/luthier-web/pkg`, unless they are there and fresh, and returns that folder.
pub fn build() -> Outcome<PathBuf> {
    let package = root().join("www/luthier-web/pkg");
    let engines = ENGINES.map(|(name, _)| package.join(format!("{name}_bg.wasm")));
    if is_fresh(&engines, &sources()) {
        return Ok(package);
    }
    add_target()?;
    if package.exists() {
        fs::remove_dir_all(&package).map_err(|error| format!("cannot clear {}: {error}", package.display()))?;
    }
    let start = SystemTime::now();
    for (name, features) in ENGINES {
        let build = ["build", "--lib", "--target", TARGET, "--profile", "wasm"];
        check(&mut cargo(&[&build, features].concat()))?;
        bind(&made().join("luthier.wasm"), name, &package)?;
    }
    // What is changed from now on is not in them, whenever they were written.
    engines.iter().try_for_each(|engine| fs::File::options().append(true).open(engine)?.set_modified(start))?;
    Ok(package)
}

/// Where cargo puts what it has made.
fn made() -> PathBuf {
    target_dir().join("wasm32-unknown-unknown/wasm")
}

/// Whether all engines are there, and younger than all sources. Cargo is not asked: it keeps one wasm of a library, so
/// it would compile each engine anew after the other.
fn is_fresh(engines: &[PathBuf], sources: &[PathBuf]) -> bool {
    let times = |files: &[PathBuf]| files.iter().map(|file| modified(file)).collect::<Option<Vec<_>>>();
    let (Some(engines), Some(sources)) = (times(engines), times(sources)) else { return false };
    !sources.is_empty() && engines.iter().min() > sources.iter().max()
}

/// What cargo found the last engine to be made of, and what says how it is made; nothing where none was made.
fn sources() -> Vec<PathBuf> {
    let how = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml", "xtask/src/wasm.rs"];
    match fs::read_to_string(made().join("luthier.d")) {
        Ok(made_of) => named(&made_of).into_iter().chain(how.map(|file| root().join(file))).collect(),
        Err(_) => Vec::new(),
    }
}

/// The files behind the colon of a dep-info file, in which spaces of names are escaped.
fn named(made_of: &str) -> Vec<PathBuf> {
    let files = made_of.split_once(": ").map_or("", |(_, files)| files.lines().next().unwrap_or_default());
    let names = files.replace("\\ ", "\0");
    names.split(' ').filter(|name| !name.is_empty()).map(|name| name.replace('\0', " ").into()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dep_info_names_sources() {
        let text = "/a b/luthier.wasm: /a\\ b/src/lib.rs /a\\ b/shaders/x.wgsl\n\n/c: /d\n";
        assert_eq!(named(text), ["/a b/src/lib.rs", "/a b/shaders/x.wgsl"].map(PathBuf::from));
        assert!(named("").is_empty());
    }

    #[test]
    fn engines_are_fresh_until_a_source_is_changed_or_an_engine_is_gone() {
        let folder = std::env::temp_dir().join(format!("luthier-fresh-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let at = |name: &str, seconds: u64| {
            let file = folder.join(name);
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + seconds);
            fs::File::create(&file).unwrap().set_modified(time).unwrap();
            file
        };
        let (engines, sources) = ([at("a.wasm", 10), at("b.wasm", 10)], [at("lib.rs", 5), at("x.wgsl", 9)]);
        assert!(is_fresh(&engines, &sources));
        assert!(!is_fresh(&engines, &[]), "nothing is known of what they are made of");
        at("x.wgsl", 10);
        assert!(!is_fresh(&engines, &sources));
        at("x.wgsl", 9);
        fs::remove_file(&engines[1]).unwrap();
        assert!(!is_fresh(&engines, &sources));
        fs::remove_dir_all(&folder).unwrap();
    }
}
