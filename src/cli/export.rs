//! `luthier export`: an adapter in the files of another program, read back and compared before they are there.

use super::out::{Out, agreement};
use super::{DeviceArg, ModelArg, say, size};
use luthier::adapter::Format;
use luthier::session::Likely;
use luthier::weights::Source;
use luthier::{Error, Result};
use pollster::block_on;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// An adapter: a folder in PEFT's or mlx-lm's layout, or a .gguf file.
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// Folder for the adapter; for llama.cpp a file that ends in .gguf.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Whose files: peft, gguf (llama.cpp, Ollama) or mlx. Without it, gguf where --out ends in .gguf, else peft.
    #[arg(long, value_enum, hide_possible_values = true, value_name = "peft|gguf|mlx")]
    format: Option<Format>,
    #[command(flatten)]
    device: DeviceArg,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let single = args.out.extension().is_some_and(|e| e == "gguf");
    let format = args.format.unwrap_or(if single { Format::Gguf } else { Format::Peft });
    if single != (format == Format::Gguf) {
        let what = format!("'{}' does not go with --format {format:?}", args.out.display()).to_lowercase();
        return Err(Error::setting(
            "out",
            what,
            "an adapter for llama.cpp is a file that ends in .gguf, others are folders",
        ));
    }
    let out = if single { Out::file(&args.out)? } else { Out::folder(&args.out)? };
    let mut session = args.model.session(args.device.open()?, Some(&args.adapter), &Likely::NOTHING)?;
    let files = block_on(session.exported(format, &out.stem()))?;
    let sources: Vec<Source> = files.iter().map(|(n, b)| Source::bytes(n.as_str(), b.as_slice())).collect();
    let checked = block_on(session.check_adapter(&sources))?;
    let mut out = out.begin()?;
    for (name, bytes) in &files {
        out.write(name, bytes)?;
    }
    let total = out.finish()?;
    say(format!("the adapter ({}) is in {}", size(total), args.out.display()));
    say(agreement(&checked));
    let path = args.out.display();
    let base = &session.published;
    match format {
        Format::Peft => say(format!("peft        PeftModel.from_pretrained(base, \"{path}\")")),
        Format::Mlx => say(format!("mlx-lm      mlx_lm.generate --model {base} --adapter-path {path} --prompt ...")),
        Format::Gguf => {
            say(format!("llama.cpp   llama-cli -m BASE.gguf --lora {path}"));
            say(format!("Ollama      in a Modelfile: ADAPTER ./{path}"))
        }
    };
    Ok(ExitCode::SUCCESS)
}
