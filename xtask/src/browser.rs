//! Finding and starting browsers: the user's own, or a headless Chromium that ends with us.

use crate::shell::{Outcome, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Software WebGPU is opt-in in Chromium (the unsafe and swiftshader flags); the rest keeps it off the network, quiet,
/// and working as root in a container.
const FLAGS: [&str; 15] = [
    "--headless=new",
    "--no-sandbox",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--window-size=1366,768",
    "--enable-logging=stderr",
];

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

/// A headless browser showing one page. Dropping it ends the browser and removes its profile.
pub struct Headless {
    child: Child,
    profile: PathBuf,
}

impl Headless {
    pub fn start(url: &str) -> Outcome<Self> {
        let program = find().ok_or("no Chromium or Chrome found: install one, or set CHROMIUM to its program")?;
        // Under target/ and not in the system's temporary folder, which a browser packed as a snap cannot see.
        let profile = target_dir().join(format!("browser-profile-{}", std::process::id()));
        fs::create_dir_all(&profile)?;
        let log = fs::File::create(log_file(&profile))?;
        let child = command(&program, &profile)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Headless { child, profile })
    }

    /// Why the browser is no longer there, if it is not.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("the browser ended by itself ({status})")),
            Err(error) => Some(format!("the browser cannot be watched: {error}")),
        }
    }

    /// The end of what the browser wrote: its own trouble and the page's console, not its talk of a missing desktop.
    pub fn log_tail(&self) -> String {
        let log = fs::read(log_file(&self.profile)).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(":dbus/")).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Headless {
    fn drop(&mut self) {
        // Its helpers end when their pipes to it close. Nothing can be done about a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A helper may still write while it ends, so a folder that does not go at once gets a few more tries.
        for _ in 0..20 {
            if fs::remove_dir_all(&self.profile).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Where there is a shell, it leaves a watcher behind before it becomes the browser: our end of its input closes even
/// if we are killed, and then the watcher ends the browser and removes the profile.
const WATCHED: &str =
    r#"exec 3<&0; (cat <&3 >/dev/null; kill -9 $$; sleep 3; rm -rf "$0") & exec "$@" 3<&- </dev/null"#;

fn command(program: &Path, profile: &Path) -> Command {
    if !cfg!(unix) {
        return Command::new(program);
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", WATCHED]).arg(profile).arg(program);
    shell
}

fn log_file(profile: &Path) -> PathBuf {
    profile.join("luthier-browser.log")
}
