//! Node.js: whether it is there and new enough, and running what comes with it.

use crate::shell::Outcome;
use std::process::Command;

/// What Vite asks for.
const OLDEST: (u32, u32) = (20, 19);

pub fn require() -> Outcome {
    let asked = format!("Node.js {}.{} or newer", OLDEST.0, OLDEST.1);
    let how = "install it from https://nodejs.org or with your system's package manager (it brings npm)";
    match version() {
        Some(found) if parse(&found).is_some_and(|version| version >= OLDEST) => {}
        Some(found) => return Err(format!("the page needs {asked}, found {found}: {how}").into()),
        None => return Err(format!("the page needs {asked}, found none: {how}").into()),
    }
    if npm(&["--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err("the page needs npm, which some systems package apart from Node.js: install it".into())
}

pub fn is_there() -> bool {
    require().is_ok()
}

pub fn node(args: &[&str]) -> Command {
    let mut command = Command::new("node");
    command.args(args);
    command
}

/// On Windows npm is a script, which only the shell finds.
pub fn npm(args: &[&str]) -> Command {
    let mut command = if cfg!(windows) { Command::new("cmd") } else { Command::new("npm") };
    command.args(if cfg!(windows) { &["/c", "npm"][..] } else { &[] }).args(args);
    command
}

/// "v20.19.0"
fn version() -> Option<String> {
    let output = node(&["--version"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('v')?.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(parse("v20.19.0"), Some((20, 19)));
        assert!(parse("v9.11.2") < Some(OLDEST) && parse("v20.9.0") < Some(OLDEST));
        assert!(parse("v22.0.0") > Some(OLDEST) && parse("v20.19.5") >= Some(OLDEST));
        assert_eq!(parse("node"), None);
    }
}
