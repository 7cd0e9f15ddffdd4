//! `luthier devices`: what the engine can run on, and what `--device auto` takes.

use super::{say, size};
use luthier::Result;
use luthier::device::threads;
use luthier::gpu::{self, AdapterFacts};
use pollster::block_on;
use serde_json::json;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let gpus = block_on(gpu::list());
    let auto = if gpus.iter().any(|g| !g.software) { "gpu" } else { "cpu" };
    if args.json {
        say(json!({ "auto": auto, "cpu": { "threads": threads() }, "gpus": gpus }));
        return Ok(ExitCode::SUCCESS);
    }
    for gpu in &gpus {
        say(line(gpu));
    }
    say(format!("--device cpu   CPU, {} threads, f32", threads()));
    say(format!("--device auto takes the {}", if auto == "gpu" { "first GPU" } else { "CPU" }));
    Ok(ExitCode::SUCCESS)
}

fn line(gpu: &AdapterFacts) -> String {
    let software = if gpu.software { "; software: computes on the CPU, for tests" } else { "" };
    let (name, backend, driver) = (&gpu.name, &gpu.backend, &gpu.driver);
    let fp16 = match (gpu.shader_f16, gpu.fragment) {
        (false, _) => "no --fp16",
        (true, 0) => "--fp16",
        (true, _) => "--fp16 with matrix units",
    };
    let bindings = size(gpu.max_binding_bytes);
    format!("--device gpu   {name}, {backend} ({driver}), bindings up to {bindings}, {fp16}{software}")
}
