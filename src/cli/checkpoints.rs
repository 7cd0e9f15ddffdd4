//! `OUT/checkpoints`: where a run stands, so that it survives a kill, a crash or a power cut. Each file is written
//! aside, flushed and renamed; the last two are kept, and none once the run has its adapter.

use luthier::train::Checkpoint;
use luthier::weights::atomic_write;
use luthier::{Error, Result};
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const KEPT: usize = 2;
/// Between checkpoints where no number of steps is given.
const EVERY: Duration = Duration::from_secs(60);

pub struct Checkpoints {
    folder: PathBuf,
    /// `--save-steps`
    steps: Option<u64>,
    last: Instant,
}

impl Checkpoints {
    pub fn new(out: &Path, steps: Option<u64>) -> Checkpoints {
        Checkpoints { folder: out.join("checkpoints"), steps, last: Instant::now() }
    }

    /// Files by step, the oldest first.
    fn list(&self) -> Vec<(u64, PathBuf)> {
        let step =
            |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.strip_suffix(ENDING)?.parse().ok();
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<(u64, PathBuf)> = entries.filter_map(|path| Some((step(&path)?, path))).collect();
        found.sort();
        found
    }

    /// A new run must not run over one that could still go on.
    pub fn refuse_unfinished(&self) -> Result<()> {
        let Some((step, _)) = self.list().pop() else { return Ok(()) };
        let what = format!("'{}' holds a run that stopped after step {step}", self.folder.display());
        Err(Error::setting("out", what, "go on with --resume, or remove that folder to start anew"))
    }

    /// The newest that is whole; those that are not are named on stderr.
    pub fn newest(&self) -> Result<Checkpoint> {
        let mut broken = None;
        for (_, path) in self.list().into_iter().rev() {
            let name = path.display().to_string();
            let bytes = std::fs::read(&path).map_err(|e| Error::io(&name, e));
            match bytes.and_then(|bytes| block_on(Checkpoint::read(&name, bytes))) {
                Ok(checkpoint) => return Ok(checkpoint),
                Err(error) => {
                    eprintln!("note: {error}");
                    broken.get_or_insert(error);
                }
            }
        }
        let nothing = || {
            let what = format!("there is no checkpoint in '{}'", self.folder.display());
            Error::setting("resume", what, "leave --resume out to start the run")
        };
        Err(broken.unwrap_or_else(nothing))
    }

    /// Whether it is time for one after this step.
    pub fn due(&self, step: u64) -> bool {
        match self.steps {
            Some(every) => every > 0 && step.is_multiple_of(every),
            None => self.last.elapsed() > EVERY,
        }
    }

    pub fn write(&mut self, step: u64, bytes: &[u8]) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io(self.folder.display().to_string(), e))?;
        atomic_write(self.folder.join(format!("checkpoint-{step}{ENDING}")), bytes)?;
        self.last = Instant::now();
        let list = self.list();
        // One too many does no harm.
        list.iter().rev().skip(KEPT).for_each(|(_, path)| drop(std::fs::remove_file(path)));
        Ok(())
    }

    /// The run is over: only what this program wrote is removed, and the folder where nothing else is in it.
    pub fn clear(&self) {
        let aside = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let aside = aside.filter(|path| path.extension().is_some_and(|e| e == "tmp"));
        for path in self.list().into_iter().map(|(_, path)| path).chain(aside) {
            let _ = std::fs::remove_file(path);
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

const ENDING: &str = ".safetensors";
