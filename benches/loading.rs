//! Loading: a model's file onto the device, beside a plain read of the same file just before.

use super::nets::{self, Net};
use super::report::{Column, Row, row};
use super::{Case, Machine};
use luthier::clock::Instant;
use luthier::device::Device;
use luthier::model::Base;
use luthier::weights::ModelFiles;
use luthier::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const COLUMNS: &[Column] = &[
    Column::text("file", "file", 30),
    Column::text("cache", "cache", 7),
    Column::number("mib", "MiB", 0),
    Column::number("read_mb_per_s", "read MB/s", 0),
    Column::number("load_mb_per_s", "load MB/s", 0),
    Column::share("of_read", "of read"),
];

pub fn cases(machine: &Machine) -> Vec<Case> {
    let case = |name: String, importance: u8, run: super::Run| Case {
        name: format!("load {name}"),
        section: "load",
        columns: COLUMNS,
        importance,
        gflop: 0.0,
        run,
    };
    let mut all = Vec::new();
    if let Some(path) = machine.args.model.clone() {
        all.push(case(path.display().to_string(), 0, Box::new(move |machine| measure(machine, &path))));
    } else {
        // What a machine with little memory can hold, too; and what says more of the disk.
        for (importance, net) in [(1, nets::SMOLLM2), (3, nets::LLAMA_1B)] {
            all.push(case(
                format!("{} safetensors", net.name),
                importance,
                Box::new(move |machine| {
                    let folder = Folder::write(&net)?;
                    measure(machine, &folder.0)
                }),
            ));
        }
    }
    all.retain(|case| machine.args.wants(&case.name));
    all
}

/// Both with the file out of the system's cache, where it can be put out, and then from it.
fn measure(machine: &Machine, path: &Path) -> Result<Vec<Row>> {
    let weights = weights(path)?;
    let mut rows = Vec::new();
    if weights.iter().all(|file| forget(file)) {
        let read = read(&weights)?;
        for file in &weights {
            forget(file);
        }
        rows.push(figures(path, "cold", read, load(machine, path)?));
    }
    let read = read(&weights)?;
    rows.push(figures(path, "warm", read, load(machine, path)?));
    Ok(rows)
}

fn figures(path: &Path, cache: &str, (bytes, read_ms): (u64, f64), load_ms: f64) -> Row {
    let rate = |ms: f64| bytes as f64 / ms / 1e3;
    row([
        ("file", path.file_name().unwrap_or_default().to_string_lossy().into_owned().into()),
        ("cache", cache.into()),
        ("mib", (bytes >> 20).into()),
        ("read_mb_per_s", rate(read_ms).into()),
        ("load_mb_per_s", rate(load_ms).into()),
        ("of_read", (read_ms / load_ms).into()),
    ])
}

/// Milliseconds until the model is on the device and all that was written has arrived.
fn load(machine: &Machine, path: &Path) -> Result<f64> {
    let device = machine.device()?;
    let start = Instant::now();
    let files = ModelFiles::open(path)?;
    let mut base = pollster::block_on(Base::load(&files, device, |_, _| {}))?;
    // A GPU has them when something can be read back.
    if let Device::Gpu(_) = base.device {
        pollster::block_on(base.device.read(luthier::plan::Buf(0), 0, 1))?;
    }
    Ok(start.elapsed_ms())
}

/// Bytes and milliseconds of reading the files from front to end.
fn read(files: &[PathBuf]) -> Result<(u64, f64)> {
    let start = Instant::now();
    let (mut piece, mut bytes) = (vec![0; 8 << 20], 0);
    for path in files {
        let mut file = File::open(path).map_err(|e| failed(path, e))?;
        loop {
            match file.read(&mut piece).map_err(|e| failed(path, e))? {
                0 => break,
                n => bytes += n as u64,
            }
        }
    }
    Ok((bytes, start.elapsed_ms()))
}

fn weights(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = path.read_dir().map_err(|e| failed(path, e))?.flatten().map(|entry| entry.path());
    Ok(entries.filter(|file| file.extension().is_some_and(|end| end == "safetensors")).collect())
}

/// Puts a file out of the system's cache, which GNU's dd can without being root.
fn forget(file: &Path) -> bool {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", file.display())).args(["iflag=nocache", "count=0", "status=none"]);
    dd.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), what: error.to_string(), hint: "is there room on the disk?".into() }
}

/// A model's folder for the time of a case.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn write(net: &Net) -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("luthier-bench-{}", std::process::id())).join(net.name);
        std::fs::create_dir_all(&path).map_err(|e| failed(&path, e))?;
        let folder = Folder(path);
        let spec = net.spec();
        folder.file("config.json", |file| write!(file, "{}", config(net)))?;
        folder.file("tokenizer.json", |file| write!(file, "{{}}"))?;
        let mut header = Map::new();
        let mut end = 0u64;
        for tensor in spec.file_tensors(&spec.family.hf) {
            let start = end;
            end += tensor.shape.iter().product::<u64>() * 2;
            header.insert(tensor.name, json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end] }));
        }
        folder.file("model.safetensors", |file| safetensors(file, &Value::from(header).to_string(), end))?;
        Ok(folder)
    }

    fn file(&self, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
        let path = self.0.join(name);
        let all = || {
            let mut file = BufWriter::new(File::create(&path)?);
            write(&mut file)?;
            file.into_inner().map_err(|e| e.into_error())?.sync_all()
        };
        all().map_err(|e| failed(&path, e))
    }
}

fn safetensors(file: &mut impl Write, header: &str, bytes: u64) -> std::io::Result<()> {
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // bf16 numbers around 0.02, no two pages alike.
    let mut seed = 1u32;
    let mut piece = vec![0u8; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        for word in piece.chunks_exact_mut(2) {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            word.copy_from_slice(&[(seed >> 24) as u8, 0x3c | (seed >> 16) as u8 & 0x80]);
        }
        let n = left.min(piece.len() as u64);
        file.write_all(&piece[..n as usize])?;
        left -= n;
    }
    Ok(())
}

fn config(net: &Net) -> Value {
    let spec = net.spec();
    json!({
        "model_type": "llama", "vocab_size": spec.vocab, "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn, "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads, "head_dim": spec.head_dim, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": spec.context, "tie_word_embeddings": true,
    })
}
