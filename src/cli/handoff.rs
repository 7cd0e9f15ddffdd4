//! `luthier handoff`: a folder in which PyTorch goes on from an adapter.

use super::{ColumnArgs, ModelArg, recipe::RUN, say};
use luthier::adapter::peft;
use luthier::data::{Tokenizer, read_file};
use luthier::session::{RunRecord, handoff};
use luthier::train::TrainOptions;
use luthier::weights::{atomic_write, hub};
use luthier::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The adapter to go on from; the run.json in its folder tells the options.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The training records.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Validation records.
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Folder for all of it.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let out = &args.out;
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file() {
        let what = format!("'{}' is not empty", out.display());
        return Err(Error::setting("out", what, "name a new folder"));
    }
    let read = |file: &PathBuf| read_file(file, &args.columns.options());
    let (records, validation) = (read(&args.data)?, args.eval_data.as_ref().map(read).transpose()?);
    let chat = Tokenizer::new(args.model.open()?.tokenizer().clone())?.chat_template().is_some();
    let model = place_of(&args.model.model);
    let options = options(&args.adapter)?;
    let adapter = adapter_config(&args.adapter, &model)?;
    let write = |name: &str, bytes: &[u8]| atomic_write(out.join(name), bytes);
    std::fs::create_dir_all(out.join("adapter")).map_err(|e| Error::io(out.display().to_string(), e))?;
    write(&format!("adapter/{}", peft::CONFIG), adapter.as_bytes())?;
    write(&format!("adapter/{}", peft::WEIGHTS), &bytes(&args.adapter, peft::WEIGHTS)?)?;
    write("train.jsonl", handoff::lines(&records, chat).as_bytes())?;
    if let Some(validation) = &validation {
        write("eval.jsonl", handoff::lines(validation, chat).as_bytes())?;
    }
    for (name, text) in handoff::scripts(&options) {
        write(name, text.as_bytes())?;
    }
    write("README.md", handoff::readme(&args.model.model).as_bytes())?;
    let config = serde_json::to_string_pretty(&handoff::config(&model, &options)).expect("plain data") + "\n";
    write("config.json", config.as_bytes())?;
    say(format!("{} is ready: python {}", out.display(), out.join("train.py").display()));
    Ok(ExitCode::SUCCESS)
}

/// What `from_pretrained` takes: a published model's name, or the folder of one that is only here.
fn place_of(model: &str) -> String {
    let published = hub::published(model);
    if published != model {
        return published;
    }
    let here = hub::resolve(model, &mut |_| {})
        .and_then(|path| std::fs::canonicalize(&path).map_err(|e| Error::io(path.display().to_string(), e)));
    here.map_or(published, |path| path.display().to_string())
}

/// Of the run that made the adapter; without its run.json, the defaults.
fn options(adapter: &Path) -> Result<TrainOptions> {
    let file = adapter.join(RUN);
    let name = file.display().to_string();
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(RunRecord::parse(&name, &text)?.options),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("note: there is no {name}; the options in config.json are the defaults");
            Ok(TrainOptions::default())
        }
        Err(e) => Err(Error::io(name, e)),
    }
}

fn bytes(folder: &Path, name: &str) -> Result<Vec<u8>> {
    std::fs::read(folder.join(name)).map_err(|e| Error::io(folder.join(name).display().to_string(), e))
}

/// The adapter's configuration, which then names its base as `train.py` finds it; refused where PEFT would not read it.
fn adapter_config(folder: &Path, model: &str) -> Result<String> {
    let file = folder.join(peft::CONFIG).display().to_string();
    let mut config: Value = serde_json::from_slice(&bytes(folder, peft::CONFIG)?).map_err(|e| Error::Malformed {
        file: file.clone(),
        at: format!("line {}", e.line()),
        what: format!("not JSON: {e}"),
        hint: "name a folder with an adapter in PEFT's layout".into(),
    })?;
    if config["peft_type"].is_null() {
        let what = format!("PEFT has no method {}", config["luthier_method"].as_str().unwrap_or("of no name"));
        let hint = "luthier merge makes a model of it that PyTorch reads".into();
        return Err(Error::Unsupported { file, what, hint });
    }
    config["base_model_name_or_path"] = model.into();
    Ok(serde_json::to_string_pretty(&config).expect("plain data") + "\n")
}
