//! What the tests need beside the Rust toolchain, and how each system installs it.

use crate::shell::{Outcome, check};
use crate::{browser, node};
use std::path::Path;
use std::process::Command;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Need {
    /// Something that runs the shaders natively; a software driver is enough. macOS and Windows bring theirs.
    VulkanDriver,
    Browser,
    Node,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Need::VulkanDriver => "a Vulkan driver (a software one will do)",
            Need::Browser => "Chromium or Chrome",
            Need::Node => "Node.js 20.19 or newer with npm",
        }
    }

    fn met(self) -> bool {
        match self {
            Need::VulkanDriver => !cfg!(target_os = "linux") || vulkan_driver(),
            Need::Browser => browser::find().is_some(),
            Need::Node => node::is_there(),
        }
    }
}

fn vulkan_driver() -> bool {
    let folders = ["/usr/share", "/usr/local/share", "/etc", "/run/opengl-driver/share"];
    let installed =
        |folder| Path::new(folder).join("vulkan/icd.d").read_dir().is_ok_and(|mut files| files.next().is_some());
    std::env::var_os("VK_DRIVER_FILES").or(std::env::var_os("VK_ICD_FILENAMES")).is_some()
        || folders.into_iter().any(installed)
}

/// How a system installs: the command, and its packages for the needs.
struct Installer {
    system: &'static str,
    command: &'static str,
    vulkan: &'static str,
    browser: &'static str,
    node: &'static str,
}

const INSTALLERS: [Installer; 5] = [
    Installer {
        system: "debian",
        command: "apt-get install -y",
        vulkan: "mesa-vulkan-drivers",
        browser: "chromium",
        node: "nodejs npm",
    },
    Installer {
        system: "ubuntu",
        command: "apt-get install -y",
        vulkan: "mesa-vulkan-drivers",
        browser: "chromium-browser",
        node: "nodejs npm",
    },
    Installer {
        system: "fedora",
        command: "dnf install -y",
        vulkan: "mesa-vulkan-drivers",
        browser: "chromium",
        node: "nodejs",
    },
    Installer {
        system: "arch",
        command: "pacman -S --needed",
        vulkan: "vulkan-swrast",
        browser: "chromium",
        node: "nodejs npm",
    },
    Installer { system: "macos", command: "brew install", vulkan: "", browser: "--cask chromium", node: "node" },
];

impl Installer {
    fn here() -> Option<&'static Installer> {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let id = release.lines().find_map(|line| line.strip_prefix("ID=")).map(|id| id.trim_matches('"'));
        let system = if cfg!(target_os = "macos") { "macos" } else { id? };
        INSTALLERS.iter().find(|installer| installer.system == system)
    }

    fn line(&self, needs: &[Need]) -> String {
        let package = |need: &Need| match need {
            Need::VulkanDriver => self.vulkan,
            Need::Browser => self.browser,
            Need::Node => self.node,
        };
        [self.command].into_iter().chain(needs.iter().map(package)).collect::<Vec<_>>().join(" ")
    }
}

fn missing() -> Vec<Need> {
    [Need::VulkanDriver, Need::Browser, Need::Node].into_iter().filter(|need| !need.met()).collect()
}

/// Installs what is missing where that needs no question (Debian and its like, as root); otherwise says what to run.
/// Returns what is still missing, which only `skip_missing` allows.
pub fn prepare(skip_missing: bool) -> Outcome<Vec<Need>> {
    let needs = missing();
    if needs.is_empty() {
        return Ok(needs);
    }
    let installer = Installer::here();
    if let Some(apt) = installer.filter(|installer| installer.command.starts_with("apt-get") && is_root()) {
        install(apt, &needs)?;
    }
    let needs = missing();
    if skip_missing {
        needs.iter().for_each(|need| println!("SKIPPED what needs {}: --skip-missing", need.name()));
    } else if !needs.is_empty() {
        return Err(advice(&needs, installer).into());
    }
    Ok(needs)
}

fn install(apt: &Installer, needs: &[Need]) -> Outcome {
    let line = apt.line(needs);
    println!("installing what is missing: {line}");
    check(Command::new("apt-get").args(["update", "-qq"]))?;
    check(Command::new("sh").args(["-c", &line]).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn advice(needs: &[Need], installer: Option<&Installer>) -> String {
    let names: Vec<_> = needs.iter().map(|need| need.name()).collect();
    let sudo = if cfg!(target_os = "macos") || is_root() { "" } else { "sudo " };
    let how = installer.map_or("Install it the way this system does".into(), |installer| {
        format!("Run\n\n    {sudo}{}\n", installer.line(needs))
    });
    format!(
        "the tests need {}.\n{how}\nand start again, or go on without: cargo xtask test --skip-missing\n\
         (`cargo test` needs none of them.)",
        names.join(" and ")
    )
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_lines() {
        let debian = &INSTALLERS[0];
        let both = [Need::VulkanDriver, Need::Browser];
        assert_eq!(debian.line(&both), "apt-get install -y mesa-vulkan-drivers chromium");
        assert_eq!(debian.line(&both[1..]), "apt-get install -y chromium");
    }

    #[test]
    fn advice_names_the_command_and_the_way_on() {
        let text = advice(&[Need::Browser], Some(&INSTALLERS[0]));
        assert!(text.contains("apt-get install -y chromium") && text.contains("--skip-missing"), "{text}");
        assert!(advice(&[Need::Browser], None).contains("Chromium or Chrome"));
    }
}
