//! Finding a Chromium for headless runs, and opening the user's own browser.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const MAC_APPS: [&str; 2] = ["Google Chrome", "Chromium"];

/// The `CHROMIUM` variable, else the first known name on PATH, else a macOS application.
pub fn find() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("CHROMIUM") {
        return Some(given.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let on_path = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let homes = ["/".into(), std::env::var_os("HOME").unwrap_or_default()];
    let apps = homes.iter().flat_map(|home| {
        MAC_APPS.iter().map(move |app| Path::new(home).join(format!("Applications/{app}.app/Contents/MacOS/{app}")))
    });
    on_path.chain(apps).find(|file| file.is_file())
}

/// Opens the user's browser; false where there is none to open. Some systems return only when it is closed.
pub fn open(url: &str) -> bool {
    let mut command = if cfg!(target_os = "macos") {
        Command::new("open")
    } else if cfg!(windows) {
        let mut handler = Command::new("rundll32");
        handler.arg("url.dll,FileProtocolHandler");
        handler
    } else {
        Command::new("xdg-open")
    };
    let opened = command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    opened.is_ok_and(|status| status.success())
}
