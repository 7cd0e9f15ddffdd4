//! `luthier merge-adapters`: several adapters of one base as one, weighted.

use super::out::Out;
use super::{ModelArg, say, size};
use luthier::adapter::combine::{Combination, Weighted, combine};
use luthier::adapter::{self, Adapter, BaseName, Format, Names};
use luthier::model::load::Opened;
use luthier::weights::hub;
use luthier::{Error, Result};
use pollster::block_on;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Adapters of one base: folders in PEFT's or mlx-lm's layout, or .gguf files.
    #[arg(value_name = "ADAPTER", required = true, num_args = 1..)]
    adapters: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArg,
    /// A number for each adapter, separated by commas; without them all count alike, 1 together.
    #[arg(long, value_delimiter = ',', value_name = "W,W", allow_hyphen_values = true)]
    weights: Option<Vec<f32>>,
    /// svd: the best of a given rank; cat: the exact sum, at the sum of the ranks; linear: quick and rough.
    #[arg(long, value_enum, hide_possible_values = true, default_value = "svd", value_name = "svd|cat|linear")]
    combination: Combination,
    /// Rank of the result of svd; without it the largest of the adapters'.
    #[arg(long)]
    rank: Option<usize>,
    /// Folder for the adapter, in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let n = args.adapters.len();
    let weights = args.weights.unwrap_or_else(|| vec![1.0 / n as f32; n]);
    if weights.len() != n {
        let what = format!("are {}, the adapters {n}", weights.len());
        return Err(Error::setting("weights", what, "give one for each, separated by commas"));
    }
    let out = Out::folder(&args.out)?;
    let files = args.model.open()?;
    let spec = block_on(Opened::new(&files))?.spec;
    let adapters: Vec<(Adapter, Vec<f32>)> =
        args.adapters.iter().map(|path| adapter::open(path, &spec)).collect::<Result<_>>()?;
    let parts = adapters.iter().zip(&weights).map(|((adapter, flat), weight)| (adapter, flat.as_slice(), *weight));
    let parts: Vec<Weighted> = parts.collect();
    let combined = combine(&spec, &parts, args.combination, args.rank)?;
    let base = hub::published(&args.model.model);
    let sha256 = shared_base(&args.adapters)?;
    let names = Names { base: BaseName { name: &base, sha256: sha256.as_deref() }, tuned: "" };
    let mut aside = out.begin()?;
    for (name, bytes) in adapter::files(Format::Peft, &combined.adapter, &combined.flat, &spec, names)? {
        aside.write(&name, &bytes)?;
    }
    let total = aside.finish()?;
    let rank = combined.rank;
    say(format!("one adapter of {n}, of rank {rank} ({}), is in {}", size(total), args.out.display()));
    if let Some(kept) = combined.kept {
        say(format!("rank {rank} keeps {:.2} % of the sum's squared norm", 100.0 * kept));
    }
    Ok(ExitCode::SUCCESS)
}

/// The hash of the base, where all adapters say the same.
fn shared_base(adapters: &[PathBuf]) -> Result<Option<String>> {
    let hashes = adapters.iter().map(|path| block_on(adapter::base_sha256(&adapter::sources(path)?)));
    let hashes = hashes.collect::<Result<Vec<_>>>()?;
    Ok(hashes[0].clone().filter(|first| hashes.iter().all(|hash| hash.as_ref() == Some(first))))
}
