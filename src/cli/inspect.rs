//! `luthier inspect`: data as the model sees it, what a model consists of, what an adapter holds.

use super::{DataArgs, ModelArg, count, say, size};
use clap::Subcommand;
use luthier::adapter::peft;
use luthier::data::{Tokenizer, example_json, example_text, histogram, summary};
use luthier::model::load::Opened;
use luthier::model::spec::RopeScaling;
use luthier::model::tensors::Tensor;
use luthier::model::{ModelSpec, Module};
use luthier::session::{encode, grouped};
use luthier::weights::{Checkpoint, ModelFiles, Source, safetensors};
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Examples with the tokens to be learned marked, their lengths, and what was cut.
    Data(InspectData),
    /// Sizes, weight formats and tokenizer of a model.
    Model(InspectModel),
    /// Settings, parameters and norms of an adapter.
    Adapter(InspectAdapter),
}

#[derive(clap::Args)]
struct InspectData {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    data: DataArgs,
    /// Tokens of a row, as in training; longer examples are cut.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// Examples to show.
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,
    /// One JSON object an example: ids, supervised (0 or 1 a token), truncated.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct InspectModel {
    #[command(flatten)]
    model: ModelArg,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct InspectAdapter {
    /// An adapter's folder.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Check that it fits this model.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn json(&self) -> bool {
        match &self.what {
            What::Data(a) => a.json,
            What::Model(a) => a.json,
            What::Adapter(a) => a.json,
        }
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    match args.what {
        What::Data(args) => inspect_data(&args)?,
        What::Model(args) => inspect_model(&args)?,
        What::Adapter(args) => inspect_adapter(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect_data(args: &InspectData) -> Result<()> {
    let records = args.data.read()?;
    let tokenizer = Tokenizer::new(args.model.open()?.tokenizer().clone())?;
    let data = encode(&records, &tokenizer, args.seq_len)?;
    if args.json {
        // Nobody reads on: nothing more to do.
        let _ = data.examples.iter().all(|example| say(example_json(example)));
        return Ok(());
    }
    let color = std::io::stdout().is_terminal();
    for example in data.examples.iter().take(args.show) {
        say(example_text(&tokenizer, example, color));
    }
    say(summary(&data));
    say(format!("examples by tokens\n{}", histogram(&data)));
    let cut: Vec<_> = data.examples.iter().filter(|e| e.truncated).collect();
    for example in cut.iter().take(10) {
        let lost = example.full_supervised - example.targets();
        let (line, from) = (example.line, example.full_len);
        say(format!("line {line}: cut from {from} to {} tokens, {lost} tokens to learn are lost", args.seq_len));
    }
    if cut.len() > 10 {
        say(format!("… and {} more", cut.len() - 10));
    }
    Ok(())
}

/// Values of one kind of tensor that are stored alike.
#[derive(Default)]
struct Share {
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

/// Tensors by (kind, type in the file, format on the device).
type Shares = BTreeMap<(&'static str, &'static str, &'static str), Share>;

fn kind(tensor: Tensor) -> &'static str {
    match tensor {
        Tensor::Embed => "embedding",
        Tensor::Head => "head",
        Tensor::Weight(site) | Tensor::Bias(site) if site.module.is_attention() => "attention",
        Tensor::Weight(_) | Tensor::Bias(_) => "mlp",
        Tensor::Positions => "positions",
        Tensor::Norm(_) | Tensor::NormBias(_) => "norms",
    }
}

fn shares(opened: &Opened, checkpoint: &Checkpoint) -> Result<Shares> {
    let mut shares = Shares::new();
    for (tensor, shape) in opened.spec.tensors() {
        let info = checkpoint.get(&opened.name(tensor))?;
        // Vectors are few: they are kept as f32.
        let kept = if shape.len() == 2 { opened.format(tensor).name() } else { "f32" };
        let share = shares.entry((kind(tensor), info.stored.name(), kept)).or_default();
        share.tensors += 1;
        share.parameters += shape.iter().product::<u64>();
        share.bytes += opened.bytes(tensor, &shape);
    }
    Ok(shares)
}

fn inspect_model(args: &InspectModel) -> Result<()> {
    let files = args.model.open()?;
    let opened = block_on(Opened::new(&files))?;
    let tokenizer = Tokenizer::new(files.tokenizer().clone())?;
    let shares = shares(&opened, files.checkpoint())?;
    if args.json {
        say(model_json(&opened.spec, &shares, &files, &tokenizer));
        return Ok(());
    }
    let s = &opened.spec;
    say(format!("{}: {} family, {} parameters", args.model.model, s.family, grouped(s.parameters())));
    say(format!("  {} layers, hidden {}, feed-forward {}, context {}", s.layers, s.hidden, s.ffn, s.context));
    let tied = if s.tied { ", tied head" } else { "" };
    say(format!(
        "  {} heads of {}, {} for keys and values; vocabulary {}{tied}",
        s.heads, s.head_dim, s.kv_heads, s.vocab
    ));
    say(format!("  {}; norm eps {:e}", positions(s), s.eps));
    if let Some(local) = &s.local {
        let layers = local.layers.iter().filter(|local| **local).count();
        let theta = local.rope.as_ref().map_or(String::new(), |rope| format!(", rope theta {}", rope.theta));
        say(format!("  {layers} layers see the nearest {} positions{theta}", local.window));
    }
    say("\n  weights     parameters        in file   kept as      bytes in file");
    for ((kind, stored, kept), share) in &shares {
        let (parameters, bytes) = (grouped(share.parameters), size(share.bytes));
        say(format!("  {kind:<10} {parameters:>12}   {stored:>10}   {kept:<10} {bytes:>12}"));
    }
    say("");
    tokenizer_lines(&files, &tokenizer);
    Ok(())
}

fn positions(spec: &ModelSpec) -> String {
    match &spec.rope {
        Some(rope) => format!("rope theta {}{}", rope.theta, scaling(&rope.scaling)),
        None => "learned positions".into(),
    }
}

fn scaling(scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", positions divided by {factor}"),
        RopeScaling::Llama3 { factor, original_context, .. } => {
            format!(", llama3 scaling by {factor} beyond {original_context} positions")
        }
        RopeScaling::Divisors(_) => ", frequencies divided as the file says".into(),
    }
}

/// An id with its text.
fn named(tokenizer: &Tokenizer, id: u32) -> String {
    format!("{id} {}", tokenizer.token(id).unwrap_or_default())
}

fn tokenizer_lines(files: &ModelFiles, tokenizer: &Tokenizer) {
    let end = tokenizer.eos_ids().iter().map(|id| named(tokenizer, *id)).collect::<Vec<_>>().join(", ");
    let begin = files.tokenizer().bos.map_or("none".into(), |id| named(tokenizer, id));
    let put = if files.tokenizer().add_bos { "put before a text" } else { "not put before a text" };
    say(format!("  tokenizer      {} tokens; ends with {end}", grouped(tokenizer.vocab_size() as u64)));
    say(format!("  begin token    {begin}, {put}"));
    let turn =
        tokenizer.end_of_turn().map_or(String::new(), |id| format!("; a turn ends with {}", named(tokenizer, id)));
    say(format!("  chat template  {}{turn}", if tokenizer.chat_template().is_some() { "yes" } else { "no" }));
}

fn model_json(s: &ModelSpec, shares: &Shares, files: &ModelFiles, tokenizer: &Tokenizer) -> Value {
    let weights: Vec<Value> = shares
        .iter()
        .map(|((kind, stored, kept), share)| {
            let Share { tensors, parameters, bytes } = share;
            json!({ "kind": kind, "stored": stored, "kept": kept, "tensors": tensors, "parameters": parameters, "bytes": bytes })
        })
        .collect();
    let facts = files.tokenizer();
    json!({
        "family": s.family.name, "parameters": s.parameters(), "layers": s.layers, "hidden": s.hidden, "ffn": s.ffn,
        "heads": s.heads, "kv_heads": s.kv_heads, "head_dim": s.head_dim, "vocab": s.vocab, "context": s.context,
        "tied": s.tied, "rope_theta": s.rope.as_ref().map(|rope| rope.theta), "eps": s.eps, "weights": weights,
        "tokenizer": {
            "size": tokenizer.vocab_size(), "bos": facts.bos, "add_bos": facts.add_bos, "eos": tokenizer.eos_ids(),
            "pad": facts.pad, "end_of_turn": tokenizer.end_of_turn(),
            "chat_template": tokenizer.chat_template().is_some(),
        },
    })
}

/// One factor of one linear.
struct Factor {
    name: String,
    shape: Vec<u64>,
    squares: f64,
}

fn inspect_adapter(args: &InspectAdapter) -> Result<()> {
    let config = Source::file(args.adapter.join(peft::CONFIG))?;
    let (settings, base) = block_on(peft::read_config(&config))?;
    let weights = Source::file(args.adapter.join(peft::WEIGHTS))?;
    let factors = block_on(factors(weights))?;
    if let Some(model) = &args.model {
        let files = ModelArg { model: model.clone() }.open()?;
        peft::open(&args.adapter, &block_on(Opened::new(&files))?.spec)?;
    }
    let base = base.unwrap_or("unnamed".into());
    if args.json {
        say(adapter_json(&settings, &base, &factors));
    } else {
        adapter_lines(args, &settings, &base, &factors);
    }
    Ok(())
}

async fn factors(weights: Source) -> Result<Vec<Factor>> {
    let checkpoint = safetensors::open(vec![weights], None).await?;
    let mut factors = Vec::new();
    for info in checkpoint.tensors.values() {
        let values = checkpoint.read_f32(info).await?;
        let squares = values.iter().map(|x| *x as f64 * *x as f64).sum();
        factors.push(Factor { name: info.name.clone(), shape: info.shape.clone(), squares });
    }
    if factors.is_empty() {
        let (file, what) = (checkpoint.name().to_string(), "holds no tensor that can be read".to_string());
        return Err(Error::Unsupported { file, what, hint: "name a folder with an adapter in PEFT's layout".into() });
    }
    Ok(factors)
}

fn parameters(factors: &[Factor]) -> u64 {
    factors.iter().map(|f| f.shape.iter().product::<u64>()).sum()
}

fn adapter_lines(args: &InspectAdapter, config: &peft::Config, base: &str, factors: &[Factor]) {
    say(format!("{}: {} for {base}", args.adapter.display(), method(config)));
    if let peft::Config::Lora { config, .. } = config {
        say(format!(
            "  rank {}, alpha {}, scale {}, dropout {}",
            config.rank,
            config.alpha,
            config.scale(),
            config.dropout
        ));
    }
    say(format!("  {} parameters in {}", grouped(parameters(factors)), count(factors.len(), "tensor")));
    if let Some(model) = &args.model {
        say(format!("  fits {model}"));
    }
    if matches!(config, peft::Config::Lora { .. }) { factor_lines(factors) } else { tensor_lines(factors) }
}

fn method(config: &peft::Config) -> String {
    match config {
        peft::Config::Lora { config, magnitude } => {
            format!("{}{}", if config.rslora { "rs" } else { "" }, if *magnitude { "DoRA" } else { "LoRA" })
        }
        peft::Config::Ia3 { .. } => "(IA)³".into(),
        peft::Config::Prompt { tokens } => format!("prompt tuning of {tokens} virtual tokens"),
        peft::Config::Prefix { tokens } => format!("prefix tuning of {tokens} virtual tokens"),
        peft::Config::Base(_) => format!("{} tuning", config.method()),
    }
}

fn factor_lines(factors: &[Factor]) {
    say("\n  module       linears       ‖A‖       ‖B‖   (Frobenius norms over all layers)");
    for module in modules(factors) {
        let squares = |factor: &str| -> Vec<f64> {
            let name = format!(".{module}.lora_{factor}.");
            factors.iter().filter(|f| f.name.contains(&name)).map(|f| f.squares).collect()
        };
        let [a, b] = [squares("A"), squares("B")];
        let norm = |squares: &[f64]| squares.iter().sum::<f64>().sqrt();
        say(format!("  {module:<12} {:>7} {:>9.4} {:>9.4}", a.len(), norm(&a), norm(&b)));
    }
    if factors.iter().filter(|f| f.name.contains(".lora_B.")).all(|f| f.squares == 0.0) {
        say("  every B is zero: this adapter changes nothing yet");
    }
}

fn tensor_lines(factors: &[Factor]) {
    say("\n        norm  tensor");
    for factor in factors {
        say(format!("  {:>10.4}  {} {:?}", factor.squares.sqrt(), factor.name, factor.shape));
    }
}

fn adapter_json(config: &peft::Config, base: &str, factors: &[Factor]) -> Value {
    let tensors: Vec<Value> =
        factors.iter().map(|f| json!({ "name": f.name, "shape": f.shape, "norm": f.squares.sqrt() })).collect();
    let mut out = json!({
        "method": config.method(), "base": base, "parameters": parameters(factors), "tensors": tensors,
    });
    if let peft::Config::Lora { config: lora, .. } = config {
        out["rank"] = lora.rank.into();
        out["alpha"] = lora.alpha.into();
        out["dropout"] = lora.dropout.into();
        out["rslora"] = lora.rslora.into();
        out["scale"] = lora.scale().into();
        out["target_modules"] = modules(factors).into();
    }
    out
}

/// The modules that are adapted somewhere, in the order of the model.
fn modules(factors: &[Factor]) -> Vec<&str> {
    let order = |name: &str| Module::ALL.iter().position(|module| module.name() == name);
    let mut names: Vec<&str> =
        factors.iter().filter_map(|f| f.name.split_once(".lora_A.")?.0.rsplit('.').next()).collect();
    names.sort_by_key(|name| (order(name), *name));
    names.dedup();
    names
}
