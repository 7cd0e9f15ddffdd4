//! `luthier merge`: the base with the adapter added in, as a Hugging Face folder.

use super::{ModelArg, hidden_bar, say, show_bytes, size};
use luthier::adapter::merge::{Dtype, merge};
use luthier::adapter::peft;
use luthier::model::load::Opened;
use luthier::{Error, Result};
use pollster::block_on;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// An adapter's folder.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder for the merged model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How the weights are written: f32, f16 or bf16.
    #[arg(long, value_enum, hide_possible_values = true, default_value = "bf16")]
    dtype: Dtype,
}

pub fn run(args: Args) -> Result<ExitCode> {
    refuse_used(&args.out)?;
    let files = args.model.open()?;
    let spec = block_on(Opened::new(&files))?.spec;
    let (lora, flat) = peft::open(&args.adapter, &spec)?;
    let bar = hidden_bar();
    let total = spec.parameters() * args.dtype.bytes();
    if total > 64 << 20 {
        show_bytes(&bar, "merging", Some(total));
    }
    let mut folder = Folder::new(&args.out)?;
    let mut done = 0;
    let merged = block_on(merge(&files, &lora, &flat, args.dtype, async |name, bytes| {
        folder.write(name, bytes)?;
        done += bytes.len() as u64;
        bar.set_position(done);
        Ok(())
    }));
    bar.finish_and_clear();
    merged.and_then(|()| folder.finish())?;
    say(format!("the merged model ({}) is in {}", size(done), args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// A folder that holds something is not written over: it may be the base itself.
fn refuse_used(out: &Path) -> Result<()> {
    let used = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if !used && (out.is_dir() || !out.exists()) {
        return Ok(());
    }
    let what = format!("'{}' is {}", out.display(), if used { "not empty" } else { "a file" });
    Err(Error::setting("out", what, "name a new folder for the merged model"))
}

/// Files written aside in a folder, which get their names when all are complete.
struct Folder {
    path: PathBuf,
    files: Vec<(String, File)>,
    complete: bool,
}

impl Folder {
    fn new(path: &Path) -> Result<Folder> {
        std::fs::create_dir_all(path).map_err(|e| Error::io(path.display().to_string(), e))?;
        Ok(Folder { path: path.into(), files: Vec::new(), complete: false })
    }

    fn aside(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.tmp"))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let failed = |e| Error::io(self.path.join(name).display().to_string(), e);
        if self.files.last().is_none_or(|(last, _)| last != name) {
            let file = File::create(self.aside(name)).map_err(failed)?;
            self.files.push((name.to_string(), file));
        }
        let (_, file) = self.files.last_mut().expect("one was just opened");
        file.write_all(bytes).map_err(failed)
    }

    fn finish(mut self) -> Result<()> {
        for (name, file) in &self.files {
            let renamed = file.sync_all().and_then(|()| std::fs::rename(self.aside(name), self.path.join(name)));
            renamed.map_err(|e| Error::io(self.path.join(name).display().to_string(), e))?;
        }
        self.complete = true;
        Ok(())
    }
}

impl Drop for Folder {
    /// Half a model is none.
    fn drop(&mut self) {
        if !self.complete {
            self.files.iter().for_each(|(name, _)| drop(std::fs::remove_file(self.aside(name))));
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}
