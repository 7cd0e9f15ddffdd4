//! `luthier merge`: the base with the adapter added in, as a Hugging Face folder or a GGUF file.

use super::out::{Out, agreement};
use super::{DeviceArg, ModelArg, hidden_bar, say, show_bytes, size};
use luthier::adapter::merge::{Dtype, ModelFormat, Target};
use luthier::session::{Likely, Session, modelfile};
use luthier::weights::{ModelFiles, hub};
use luthier::{Error, Result};
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// An adapter: a folder in PEFT's or mlx-lm's layout, or a .gguf file.
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// Folder for the merged model, or a file that ends in .gguf.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// hf: a Hugging Face folder; gguf: a file for llama.cpp, and a Modelfile for Ollama. Without it, as --out ends.
    #[arg(long, value_enum, hide_possible_values = true, value_name = "hf|gguf")]
    format: Option<ModelFormat>,
    /// How the weights are written: f32, f16 or bf16, and in GGUF also q8_0, q4_0 or q4_1. [default: bf16; gguf: f16]
    #[arg(long, value_enum, hide_possible_values = true)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    device: DeviceArg,
}

/// The share of what the adapter does that may be rounded away before something is said.
const NOTABLE: f64 = 0.1;

pub fn run(args: Args) -> Result<ExitCode> {
    let single = args.out.extension().is_some_and(|e| e == "gguf");
    let format = args.format.unwrap_or(if single { ModelFormat::Gguf } else { ModelFormat::Hf });
    if single != (format == ModelFormat::Gguf) {
        let what = format!("'{}' does not go with --format {format:?}", args.out.display()).to_lowercase();
        return Err(Error::setting("out", what, "a GGUF model is a file that ends in .gguf, another one a folder"));
    }
    let out = if single { Out::file(&args.out)? } else { Out::folder(&args.out)? };
    let dtype = args.dtype.unwrap_or(if single { Dtype::F16 } else { Dtype::Bf16 });
    let target = Target::new(format, dtype, &out.stem());
    let beside = single.then(|| args.out.with_file_name(format!("{}.Modelfile", target.name)));
    beside.as_deref().map_or(Ok(()), |file| Out::file(file).map(drop))?;
    let mut session = args.model.session(args.device.open()?, Some(&args.adapter), &Likely::NOTHING)?;
    let total = block_on(session.merged_size(&target))?;
    let bar = hidden_bar();
    if total > 64 << 20 {
        show_bytes(&bar, "merging", Some(total));
    }
    let (mut aside, mut done) = (out.begin()?, 0);
    let merged = block_on(session.merged(&target, async |name, bytes| {
        done += bytes.len() as u64;
        bar.set_position(done);
        aside.write(name, bytes)
    }));
    bar.finish_and_clear();
    merged?;
    let checked = block_on(session.check_merged(&ModelFiles::open(aside.written())?, dtype))?;
    if let Some(file) = &beside {
        let gguf = format!("{}.gguf", target.name);
        aside.write(&file_name(file), modelfile(&gguf, &session.tokenizer).as_bytes())?;
    }
    let total = aside.finish()?;
    say(format!("the merged model ({}, {}) is in {}", dtype.name(), size(total), args.out.display()));
    say(agreement(&checked));
    if checked.kl > NOTABLE * checked.moved {
        say(remedy(&session, &args.model.model, dtype));
    }
    if let Some(file) = beside {
        say(format!("llama.cpp   llama-cli -m {}", args.out.display()));
        say(format!("Ollama      ollama create {} -f {}", target.name, file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Merging rounded away a part of what was learned: what keeps more of it.
fn remedy(session: &Session, model: &str, dtype: Dtype) -> String {
    let base = match hub::unquantised(model) {
        Some(base) if session.quantised() => format!(", best from the unquantised base (--model {base})"),
        _ => String::new(),
    };
    format!(
        "note        {} rounds away a part of what was learned: take --dtype q8_0 or f16{base}, or keep the adapter beside \
         its base (luthier export), which loses nothing",
        dtype.name()
    )
}
