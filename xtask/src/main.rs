//! `cargo xtask`: everything around the crate that is not the crate: the wasm build, the demo in a browser or
//! through the command line, and the tests with the tools they need. Nothing has to be installed beforehand but rustup,
//! and Node.js for the page.

mod bench;
mod browser;
mod demo;
mod demo_data;
mod node;
mod page;
mod recipe;
mod recipe_data;
mod requirements;
mod server;
mod shell;
mod test;
mod wasm;

use demo::Device;
use shell::Outcome;

const HELP: &str = "\
cargo xtask COMMAND

  demo                    build the page, serve it from this machine and open it in the browser
       --headless           train in headless Chromium and print what was learnt (needs Chromium or Chrome)
       --native             do the same with the command line tool, without a browser
       --device DEVICE      webgpu or cpu (headless: default is one after the other)
       --steps N            training steps, in place of the recipe's (headless and native)
       --port P             serve from this port
  test                    install what the tests need where that is possible, then run all of them
       --skip-missing       go on without what is missing
  bench [CASE...]         measure this machine: kernels, training steps, generation, loading (--help lists its options)
       --browser [--device webgpu|cpu] [--quick] [--hardware] [--no-relaxed-simd] [--json FILE]
                            kernels and steps in headless Chromium, with --hardware on its GPU, with --no-relaxed-simd
                            by the engine of browsers without; --browser --open takes your own browser
       --peers [NAME...] [--rounds N] [--json FILE]
                            in turns with the peers of benches/peers that are installed
       --gpu-report FOLDER [MINUTES]
                            all that a machine with a large GPU can tell: parity, table, PyTorch
  page                    build the page into www/dist, for any static host
  wasm                    build the engines for the page into www/luthier-web/pkg
  demo-data               write the data of the demo and of the page's gallery into demo/
  recipe NAME             run a recipe: what its page in recipes/ says, with a release build, in target/recipes,
                          where what an earlier run left is removed
       --source PATH        its data, where they are not our own
       --model MODEL        in place of the model that is downloaded: a name of the registry, a folder or
                            a .gguf file
  recipe-data KIND SOURCE OUT
                          write a public data set (bfcl, apibench, sst2, viggo, viggo-acts, tatoeba, tldr, nl2bash) as
                          JSON lines
";

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Outcome {
    match args.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        None | Some(("help" | "-h" | "--help", _)) => {
            print!("{HELP}");
            Ok(())
        }
        Some(("bench", rest)) => bench::run(rest),
        Some((_, rest)) if rest.iter().any(|arg| arg == "--help" || arg == "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(("demo", rest)) => demo::run(&demo_options(rest)?),
        Some(("test", [])) => test::run(false),
        Some(("test", [flag])) if flag == "--skip-missing" => test::run(true),
        Some(("page", [])) => page::build().map(|page| println!("{}", page.display())),
        Some(("wasm", [])) => wasm::build().map(|package| println!("{}", package.display())),
        Some(("demo-data", [])) => demo::write_data(),
        Some(("recipe", rest)) => recipe::run(rest),
        Some(("recipe-data", [kind, source, out])) => recipe_data::run(kind, source, out),
        Some((command @ ("test" | "page" | "wasm" | "demo-data" | "recipe-data"), rest)) => {
            Err(format!("`cargo xtask {command}` does not know {}\n\n{HELP}", rest.join(" ")).into())
        }
        Some((command, _)) => Err(format!("there is no `cargo xtask {command}`\n\n{HELP}").into()),
    }
}

fn demo_options(args: &[String]) -> Outcome<demo::Options> {
    let mut options = demo::Options::default();
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--headless" => options.headless = true,
            "--native" => options.native = true,
            "--device" => options.device = Some(Device::parse(value()?)?),
            "--steps" => options.steps = Some(number(flag, value()?)?),
            "--port" => options.port = number(flag, value()?)?,
            _ => return Err(format!("`cargo xtask demo` does not know {flag}\n\n{HELP}").into()),
        }
    }
    match options {
        demo::Options { headless: true, native: true, .. } => {
            Err("--headless and --native are two ways to run the demo: choose one".into())
        }
        demo::Options { steps: Some(0), .. } => Err("--steps 0 would train nothing: give 1 or more".into()),
        _ => Ok(options),
    }
}

fn number<N: std::str::FromStr>(flag: &str, text: &str) -> Outcome<N> {
    text.parse().map_err(|_| format!("{flag} {text}: not a whole number in its range").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Outcome<demo::Options> {
        demo_options(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn demo_flags() {
        let given = options("--headless --device cpu --steps 7 --port 8080").unwrap();
        assert!(given.headless && !given.native);
        assert_eq!((given.device, given.steps, given.port), (Some(Device::Cpu), Some(7), 8080));
    }

    #[test]
    fn wrong_flags_are_errors() {
        for line in
            ["--headless --native", "--steps", "--steps x", "--steps 0", "--port 99999", "--device tpu", "--fast"]
        {
            assert!(options(line).is_err(), "{line}");
        }
        assert!(run(&["no-such".into()]).is_err());
        assert!(run(&["wasm".into(), "--fast".into()]).is_err());
    }
}
