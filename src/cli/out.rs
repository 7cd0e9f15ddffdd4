//! Where exported files go: written aside, and in their place only when all are complete and have been checked.

use super::count;
use luthier::model::agreement::Agreement;
use luthier::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A place that is free.
pub struct Out {
    path: PathBuf,
    /// One file (and what lies beside it), not a folder of its own.
    single: bool,
}

impl Out {
    /// A folder that is new or empty: what holds something is not written over, it may be the base itself.
    pub fn folder(path: &Path) -> Result<Out> {
        let used = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        if used || path.is_file() {
            let what = format!("'{}' is {}", path.display(), if used { "not empty" } else { "a file" });
            return Err(Error::setting("out", what, "name a new folder"));
        }
        Ok(Out { path: path.into(), single: false })
    }

    pub fn file(path: &Path) -> Result<Out> {
        if path.exists() {
            return Err(Error::setting("out", format!("'{}' is there already", path.display()), "name a new file"));
        }
        Ok(Out { path: path.into(), single: true })
    }

    /// The name without its ending.
    pub fn stem(&self) -> String {
        let path = if self.single { self.path.with_extension("") } else { self.path.clone() };
        path.file_name().map_or("adapter".into(), |name| name.to_string_lossy().into_owned())
    }

    pub fn begin(self) -> Result<Aside> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = self.path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        std::fs::create_dir_all(&aside).map_err(|e| Error::io(aside.display().to_string(), e))?;
        Ok(Aside { out: self, path: aside, files: Vec::new(), bytes: 0 })
    }
}

/// Files written aside in a folder of their own, which is gone when this is.
pub struct Aside {
    out: Out,
    path: PathBuf,
    files: Vec<(String, File)>,
    bytes: u64,
}

impl Aside {
    /// The next bytes of a file; one file after the other.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let failed = |e| Error::io(self.path.join(name).display().to_string(), e);
        if self.files.last().is_none_or(|(last, _)| last != name) {
            let file = File::create(self.path.join(name)).map_err(failed)?;
            self.files.push((name.to_string(), file));
        }
        let (_, file) = self.files.last_mut().expect("one was just opened");
        self.bytes += bytes.len() as u64;
        file.write_all(bytes).map_err(failed)
    }

    /// The files so far, to be read back: the folder, or the one file.
    pub fn written(&self) -> PathBuf {
        match &self.files[..] {
            [(name, _)] if self.out.single => self.path.join(name),
            _ => self.path.clone(),
        }
    }

    /// Puts everything in its place; the bytes of it all.
    pub fn finish(self) -> Result<u64> {
        let to = if self.out.single { self.out.path.parent().unwrap_or(Path::new("")) } else { &self.out.path };
        let failed = |path: &Path, e| Error::io(path.display().to_string(), e);
        if !self.out.single {
            std::fs::create_dir_all(to).map_err(|e| failed(to, e))?;
        }
        for (name, file) in &self.files {
            let path = to.join(name);
            file.sync_all()
                .and_then(|()| std::fs::rename(self.path.join(name), &path))
                .map_err(|e| failed(&path, e))?;
        }
        Ok(self.bytes)
    }
}

impl Drop for Aside {
    /// Half an export is none.
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// What the comparison with the live model found.
pub fn agreement(a: &Agreement) -> String {
    format!(
        "checked     read back, on {}: KL {:.1e} nats from the live model (the adapter moves it by {:.1e}), \
         the same next token at {:.0} %, loss {:.4}, live {:.4}",
        count(a.tokens, "token"),
        a.kl,
        a.moved,
        100.0 * a.same_choice,
        a.other_loss,
        a.loss
    )
}
