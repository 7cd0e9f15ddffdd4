//! The folder of what can be had again: downloaded models, and the shaders that were measured to be fastest.

use crate::error::{Error, Result};
use std::path::PathBuf;

/// `$LUTHIER_CACHE`, or `~/.cache/luthier`.
pub fn dir() -> Result<PathBuf> {
    let set = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE")).map(|home| home.join(".cache").join("luthier"));
    set("LUTHIER_CACHE").or_else(home).ok_or_else(|| Error::Io {
        path: "cache".into(),
        what: "there is no home folder to keep a cache in".into(),
        hint: "set LUTHIER_CACHE to a folder".into(),
    })
}
