//! `cargo xtask recipe NAME`: runs what the page of a recipe says, so that what it says is what was run.

use crate::shell::{Outcome, cargo, check, root, target_dir};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a page's lines stand for here.
#[derive(Default)]
struct Given {
    /// Where the data lie, in place of the page's own `SOURCE=`.
    source: Option<PathBuf>,
    /// In place of the page's model: a name of the registry, a folder or a file.
    model: Option<String>,
}

pub fn run(args: &[String]) -> Outcome {
    let (name, given) = options(args)?;
    let page = root().join("recipes").join(format!("{name}.md"));
    let text = std::fs::read_to_string(&page)
        .map_err(|_| format!("there is no recipe {name}; there are {}", names().join(", ")))?;
    let script = script(&commands(&text), &given)?;
    check(&mut cargo(&["build", "--release", "--bin", "luthier"]))?;
    let work = target_dir().join("recipes").join(&name);
    let inside = |path: &Path| work.canonicalize().is_ok_and(|work| path.starts_with(work));
    if given.source.as_deref().is_some_and(inside) || given.model.as_deref().is_some_and(|m| inside(Path::new(m))) {
        return Err(format!("{} is cleared for the run: move what it is to read out of it", work.display()).into());
    }
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    println!("in {}", work.display());
    let built = target_dir().join("release");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(built).chain(std::env::split_paths(&path)))?;
    check(Command::new("sh").args(["-e", "-c", &script]).env("PATH", path).current_dir(&work))
}

fn options(args: &[String]) -> Outcome<(String, Given)> {
    let (mut name, mut given) = (None, Given::default());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--source" => {
                let path = value()?;
                given.source = Some(Path::new(path).canonicalize().map_err(|e| format!("--source {path}: {e}"))?);
            }
            "--model" => {
                let model = value()?;
                // The recipe is run elsewhere.
                given.model =
                    Some(Path::new(model).canonicalize().map_or(model.clone(), |path| path.display().to_string()));
            }
            flag if flag.starts_with('-') => return Err(format!("`cargo xtask recipe` does not know {flag}").into()),
            other if name.is_none() => name = Some(other.to_string()),
            other => return Err(format!("one recipe at a time: {other} is one more").into()),
        }
    }
    let name = name.ok_or_else(|| format!("`cargo xtask recipe` needs a name: {}", names().join(", ")))?;
    Ok((name, given))
}

/// All recipes, by the names of their pages.
fn names() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("recipes")).into_iter().flatten().flatten();
    let pages = entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".md").map(String::from));
    let mut names: Vec<String> = pages.filter(|name| name != "README").collect();
    names.sort();
    names
}

/// The lines of a page that begin with `$`, each with the lines that go on with it.
fn commands(page: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in page.lines() {
        let part = line.trim_end_matches('\\').trim();
        match line.strip_prefix("$ ") {
            Some(command) => all.push(command.trim_end_matches('\\').trim().into()),
            None if goes_on => all.last_mut().expect("a line that goes on").push_str(&format!(" {part}")),
            None => continue,
        }
        goes_on = line.ends_with('\\');
    }
    all
}

/// The commands for `sh`, each shown before it is run.
fn script(commands: &[String], given: &Given) -> Outcome<String> {
    if commands.is_empty() {
        return Err("its page has no line that begins with `$`".into());
    }
    if let (Some(source), false) = (&given.source, commands.iter().any(|c| c.starts_with("SOURCE="))) {
        let source = source.display();
        return Err(format!("--source {source}: its page has no `SOURCE=`, its data are our own; leave it out").into());
    }
    let here = std::env::current_exe()?;
    // Nothing is parted at spaces but what the page parts.
    let mut lines = vec!["IFS=".to_string()];
    for command in commands {
        let line = match (command.strip_prefix("SOURCE="), &given.source) {
            (Some(_), Some(source)) => format!("SOURCE={}", quoted(&source.display().to_string())),
            (Some(usual), None) => {
                return Err(
                    format!("its data are not here: fetch them as its page says, and give --source {usual}").into()
                );
            }
            _ => command.clone(),
        };
        let line = match (&given.model, line.split_once("--model ")) {
            // The bundled model is at hand, and what is set for it suits no other.
            (Some(model), Some((before, after))) if !after.starts_with("nano ") => {
                let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
                format!("{before}--model {} {rest}", quoted(model))
            }
            _ => line,
        };
        lines.push(format!("printf '$ %s\\n' {}", quoted(&line)));
        let line = line.replace(" demo/", &format!(" {}/", quoted(&root().join("demo").display().to_string())));
        lines.push(line.replace("cargo xtask ", &format!("{} ", quoted(&here.display().to_string()))));
    }
    Ok(lines.join("\n"))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page\n\n```console\n$ SOURCE=usual/place\n$ cargo xtask recipe-data sst2 $SOURCE sst2\n\
        $ luthier train --model small --data demo/a.jsonl \\\n      --out tuned\ntuned 1.0\n```\n\nwords\n\n```console\n$ head -n 1 x\n```\n";

    #[test]
    fn the_lines_of_a_page() {
        let all = commands(PAGE);
        assert_eq!(all[0], "SOURCE=usual/place");
        assert_eq!(all[2], "luthier train --model small --data demo/a.jsonl --out tuned");
        assert_eq!(all[3..], ["head -n 1 x"]);
    }

    #[test]
    fn what_is_given_stands_in_for_what_the_page_says() {
        let all = commands(PAGE);
        let missing = script(&all, &Given::default()).unwrap_err().to_string();
        assert!(missing.ends_with("give --source usual/place"), "{missing}");
        let given = Given { source: Some("it's here".into()), model: Some("large".into()) };
        let script = script(&all, &given).unwrap();
        assert!(script.contains(r"SOURCE='it'\''s here'"), "{script}");
        assert!(script.contains("luthier train --model 'large' --data '"), "{script}");
        assert!(!script.contains("\ncargo xtask") && !script.contains("\nluthier train --model small"), "{script}");
    }

    #[test]
    fn data_are_given_only_where_a_page_asks_for_them() {
        let given = Given { source: Some("elsewhere".into()), model: None };
        let refused = script(&["luthier train --data demo/a.jsonl".into()], &given).unwrap_err().to_string();
        assert!(refused.contains("--source elsewhere") && refused.contains("leave it out"), "{refused}");
    }

    #[test]
    fn every_recipe_is_made_of_commands_that_are_known() {
        let all = names();
        assert!(all.len() >= 10, "{all:?}");
        for name in all {
            let page = std::fs::read_to_string(root().join("recipes").join(format!("{name}.md"))).unwrap();
            let commands = commands(&page);
            assert!(commands.iter().any(|c| c.starts_with("luthier ")), "{name}: {commands:?}");
            for command in &commands {
                let known = ["SOURCE=", "cargo xtask recipe-data ", "luthier ", "head ", "tail "];
                assert!(known.iter().any(|start| command.starts_with(start)), "{name}: {command}");
                // `sh -e` goes on where the first of two that are joined so fails.
                assert!(![" && ", " || ", "; "].iter().any(|join| command.contains(join)), "{name}: {command}");
            }
            assert!(
                page.contains(&format!("cargo xtask recipe {name}")),
                "{name}: its page does not say how it is run"
            );
        }
    }
}
