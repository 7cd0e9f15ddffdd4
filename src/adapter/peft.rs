//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, names as peft 0.21 writes them.
//! PEFT stores B as [O, R]; the flat buffer holds Bᵀ, so B is transposed on the way in and out.
//!
//! Methods that PEFT does not have use the same two files: the configuration names the method under `luthier_method`
//! instead of `peft_type`, and the tensors have the names of the base's. PEFT refuses such a folder; a merged model is
//! what other programs read.

use super::base::{OfTheBase, Tensors};
use super::dora::Dora;
use super::factors::transpose;
use super::ia3::{self, Ia3};
use super::lora::{Lora, LoraConfig, Pattern, all_sites};
use super::method::{Adapter, Part, Role};
use super::prefix::Prefix;
use super::prompt::{Prompt, Start};
use super::{BASE_SHA256, BaseName, Files};
use crate::error::{Error, Result};
use crate::model::tensors::{Names, Tensor};
use crate::model::{ModelSpec, Module, Site};
use crate::weights::{Checkpoint, Source, safetensors};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const PLAIN: &str = "LoRA, DoRA, (IA)³, prompt, prefix and LN tuning of a language model's own layers are read";

/// A tensor of the file: its name, its shape, and how parts lie in it.
struct Stored {
    name: String,
    shape: Vec<u64>,
    parts: Vec<Piece>,
}

/// A part from the tensor's element `at` on, so many elements of it.
struct Piece {
    part: Part,
    at: usize,
    len: usize,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Plain,
    Transposed,
    /// The columns from here on of a wider tensor.
    Columns(usize),
    /// Less this. Rows beyond the tensor's are padding.
    Less(f32),
}

/// The tensors of an adapter's file.
fn stored(adapter: &Adapter) -> Vec<Stored> {
    let mut all = Vec::<Stored>::new();
    for part in &adapter.parts {
        let at = |site: &Site, what: &str| format!("{PREFIX}{}.{what}", adapter.family.hf.path(*site));
        let (rows, cols) = (adapter.rows_of(part) as u64, part.cols as u64);
        let (name, shape, place) = match &part.role {
            Role::A(site) => (at(site, "lora_A.weight"), vec![rows, cols], Place::Plain),
            Role::B(site) => (at(site, "lora_B.weight"), vec![cols, rows], Place::Transposed),
            Role::Magnitude(site) => (at(site, "lora_magnitude_vector"), vec![cols], Place::Plain),
            Role::Gain(site) => (at(site, "ia3_l"), vec![cols, 1], Place::Plain),
            Role::InputGain(site) => (at(site, "ia3_l"), vec![1, cols], Place::Plain),
            Role::Prompt => ("prompt_embeddings".into(), vec![rows, cols], Place::Plain),
            Role::PrefixK(layer) | Role::PrefixV(layer) => {
                let from = 2 * layer + usize::from(matches!(part.role, Role::PrefixV(_)));
                let place = Place::Columns(from * part.cols);
                if from > 0 {
                    all[0].shape[1] += cols;
                    all[0].parts.push(Piece { part: *part, at: 0, len: part.len(), place });
                    continue;
                }
                ("prompt_embeddings".into(), vec![rows, cols], place)
            }
            Role::Base(tensor) => {
                let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
                (tensor_name(adapter, *tensor), shape, Place::Less(adapter.family.less(*tensor)))
            }
        };
        let size = |shape: &[u64]| shape.iter().product::<u64>() as usize;
        let mut piece = Piece { part: *part, at: 0, len: size(&shape), place };
        match all.iter_mut().find(|stored| stored.name == name) {
            // Of linears fused into one: stacked by rows.
            Some(fused) => {
                piece.at = size(&fused.shape);
                fused.shape[0] += shape[0];
                fused.parts.push(piece);
            }
            None => all.push(Stored { name, shape, parts: vec![piece] }),
        }
    }
    all
}

fn tensor_name(adapter: &Adapter, tensor: Tensor) -> String {
    let name = adapter.family.hf.name(tensor);
    match name.rsplit_once('.') {
        Some((path, what)) if adapter.method.is_peft() => format!("{PREFIX}{path}.ln_tuning_layers.{what}"),
        _ => name,
    }
}

impl Stored {
    fn gather(&self, flat: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product::<u64>() as usize];
        for Piece { part, at, len, place } in &self.parts {
            let values = part.of(flat);
            if let Place::Columns(from) = place {
                let width = self.shape[1] as usize;
                for (row, values) in values.chunks(part.cols).enumerate() {
                    out[row * width + from..][..part.cols].copy_from_slice(values);
                }
                continue;
            }
            let out = &mut out[*at..at + len];
            match place {
                Place::Transposed => out.copy_from_slice(&transpose(values, part.rows, part.cols)),
                Place::Less(less) => out.iter_mut().zip(values).for_each(|(out, x)| *out = x - less),
                Place::Plain | Place::Columns(_) => out.copy_from_slice(values),
            }
        }
        out
    }

    fn scatter(&self, values: &[f32], flat: &mut [f32]) {
        for Piece { part, at, len, place } in &self.parts {
            let out = part.of_mut(flat);
            if let Place::Columns(from) = place {
                let width = self.shape[1] as usize;
                for (row, out) in out.chunks_mut(part.cols).enumerate() {
                    out.copy_from_slice(&values[row * width + from..][..part.cols]);
                }
                continue;
            }
            let values = &values[*at..at + len];
            match place {
                Place::Transposed => out.copy_from_slice(&transpose(values, part.cols, part.rows)),
                Place::Less(less) => out.iter_mut().zip(values).for_each(|(out, x)| *out = x + less),
                Place::Plain | Place::Columns(_) => out.copy_from_slice(values),
            }
        }
    }
}

/// The adapter as PEFT would write it.
pub fn files<'a>(adapter: &Adapter, flat: &[f32], base: impl Into<BaseName<'a>>) -> Result<Files> {
    let BaseName { name: base, sha256 } = base.into();
    let tensors: Vec<_> =
        stored(adapter).into_iter().map(|s| (s.name.clone(), s.shape.clone(), s.gather(flat))).collect();
    let metadata: Vec<_> = sha256.map(|sha256| (BASE_SHA256, sha256)).into_iter().collect();
    let weights = safetensors::to_bytes(&tensors, &metadata)?;
    let config = serde_json::to_vec_pretty(&config_json(adapter, base)).expect("plain JSON");
    Ok(vec![(CONFIG.into(), config), (WEIGHTS.into(), weights)])
}

/// The decimal that a person would write: 0.1 is not 0.10000000149011612.
pub fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number's own text is a number")
}

/// Whole numbers as integers: that is how PEFT writes them.
pub fn number(x: f32) -> Value {
    if x.fract() == 0.0 { json!(x as i64) } else { json!(decimal(x)) }
}

fn config_json(adapter: &Adapter, base: &str) -> Value {
    let mut config = adapter.method.config();
    config["task_type"] = "CAUSAL_LM".into();
    config["base_model_name_or_path"] = base.into();
    config["inference_mode"] = true.into();
    config["revision"] = Value::Null;
    config
}

/// Reads an adapter folder's files for a model: the layout and the flat parameters.
pub async fn read(config: &Source, weights: Source, spec: &ModelSpec) -> Result<(Adapter, Vec<f32>)> {
    let (settings, base) = read_config(config).await?;
    let checkpoint = safetensors::open(vec![weights], None).await?;
    let adapter = laid_out(&settings, &checkpoint, spec, base.as_deref(), config)?;
    let stored = stored(&adapter);
    expect(&checkpoint, &stored, base.as_deref())?;
    let mut flat = vec![0.0; adapter.len];
    for tensor in &stored {
        tensor.scatter(&checkpoint.read_f32(checkpoint.get(&tensor.name)?).await?, &mut flat);
    }
    Ok((adapter, flat))
}

/// What an `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    Lora { config: LoraConfig, magnitude: bool },
    Ia3 { modules: Vec<Module> },
    Prompt { tokens: usize },
    Prefix { tokens: usize },
    Base(Tensors),
}

impl Config {
    /// What `--method` calls it.
    pub fn method(&self) -> &'static str {
        match self {
            Config::Lora { magnitude: false, .. } => "lora",
            Config::Lora { .. } => "dora",
            Config::Ia3 { .. } => "ia3",
            Config::Prompt { .. } => "prompt",
            Config::Prefix { .. } => "prefix",
            Config::Base(which) => which.name(),
        }
    }
}

fn laid_out(
    settings: &Config,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    base: Option<&str>,
    config: &Source,
) -> Result<Adapter> {
    let lora = |c: &LoraConfig| {
        let sites = sites(checkpoint, &c.modules, ".lora_A.weight", spec, base)?;
        Lora::at(sites, spec, c.clone()).map_err(|e| super::of_the_file(e, config, CONFIG))
    };
    // A text has two tokens at least: one to see, one to learn.
    if let Config::Prompt { tokens } | Config::Prefix { tokens } = settings
        && tokens + 2 > spec.context
    {
        let what = format!("num_virtual_tokens is {tokens}, the model knows {} positions", spec.context);
        return Err(malformed(config, what));
    }
    if let Config::Base(Tensors::Last(k)) = settings
        && !(1..=spec.layers).contains(k)
    {
        return Err(malformed(config, format!("last_k is {k}, the model has {} blocks", spec.layers)));
    }
    Ok(match settings {
        Config::Lora { config, magnitude: false } => Adapter::new(spec, lora(config)?),
        Config::Lora { config, .. } => Adapter::new(spec, Dora(lora(config)?)),
        Config::Ia3 { modules } => {
            Adapter::new(spec, Ia3 { sites: sites(checkpoint, modules, ".ia3_l", spec, base)?, family: spec.family })
        }
        Config::Prompt { tokens } => Adapter::new(spec, Prompt::new(spec, *tokens, Start::Random)),
        Config::Prefix { tokens } => Adapter::new(spec, Prefix::new(spec, *tokens)),
        Config::Base(which) => Adapter::new(spec, OfTheBase::new(*which, spec)),
    })
}

/// `adapter_config.json` and the name of the base model it was trained on. Its modules are those that the file names
/// plainly for all layers.
pub async fn read_config(config: &Source) -> Result<(Config, Option<String>)> {
    let text = config.text(1 << 20).await?;
    let value: Value = serde_json::from_str(&text).map_err(|e| malformed(config, format!("is not JSON: {e}")))?;
    let base = value["base_model_name_or_path"].as_str().map(String::from);
    Ok((method_config(&value, config)?, base))
}

/// The linears whose weights are in the file (`target_modules` may be a regular expression over them), and those that
/// should be.
fn sites(
    checkpoint: &Checkpoint,
    modules: &[Module],
    suffix: &str,
    spec: &ModelSpec,
    base: Option<&str>,
) -> Result<BTreeSet<Site>> {
    let names = &spec.family.hf;
    let mut sites = all_sites(spec, modules);
    for found in checkpoint.names().filter_map(|name| site(names, name, suffix)) {
        let fused = spec.modules().filter(|module| names.module(*module) == names.module(found.module));
        sites.extend(fused.map(|module| Site { module, ..found }));
    }
    let problem = match sites.last() {
        None => {
            format!("no {} weight of a linear layer is in it", suffix.trim_matches('.').trim_end_matches(".weight"))
        }
        Some(last) if last.layer >= spec.layers => {
            format!("layer {} is adapted, and the model has {}, from 0", last.layer, spec.layers)
        }
        Some(_) => return Ok(sites),
    };
    let hint = if sites.is_empty() { PLAIN.into() } else { other_base(base) };
    Err(Error::Mismatch { file: checkpoint.name().into(), problems: vec![problem], hint })
}

/// The linear whose tensor has this name.
fn site(names: &Names, name: &str, suffix: &str) -> Option<Site> {
    let path = name.strip_prefix(PREFIX)?.strip_prefix(names.layer)?.strip_prefix('.')?;
    let (layer, rest) = path.split_once('.')?;
    let module = rest.strip_suffix(suffix)?;
    let module = Module::ALL.into_iter().find(|m| names.module(*m) == module)?;
    Some(Site { layer: layer.parse().ok()?, module })
}

/// Every tensor in its shape, and nothing else: an adapter with parts that would be ignored is refused.
fn expect(checkpoint: &Checkpoint, stored: &[Stored], base: Option<&str>) -> Result<()> {
    let names: Vec<String> = stored.iter().map(|s| s.name.clone()).collect();
    let shape = |name: &String| checkpoint.tensors.get(name).map(|tensor| &tensor.shape);
    let other_model = stored.iter().any(|s| shape(&s.name).is_some_and(|is| *is != s.shape));
    checkpoint.expect(stored.iter().map(|s| (s.name.clone(), s.shape.clone()))).map_err(|mut error| {
        if let (Error::Mismatch { hint, .. }, true) = (&mut error, other_model) {
            *hint = other_base(base);
        }
        error
    })?;
    checkpoint.expect_no_more(&names, |_| true, PLAIN)
}

/// Shapes that do not fit mean, nearly always, that this is not the base the adapter was trained on.
fn other_base(base: Option<&str>) -> String {
    format!("the adapter was trained on '{}': use it with that model", base.unwrap_or("another model"))
}

fn malformed(config: &Source, what: String) -> Error {
    super::malformed(config, CONFIG, what)
}

fn unsupported(config: &Source, what: String) -> Error {
    Error::Unsupported { file: config.name().into(), what, hint: PLAIN.into() }
}

fn method_config(v: &Value, config: &Source) -> Result<Config> {
    let tokens = || match typed(v, config, "num_virtual_tokens", Value::as_u64)? {
        Some(n @ 1..=4096) => Ok(n as usize),
        n => Err(malformed(config, format!("num_virtual_tokens is {n:?}, expected 1 to 4096"))),
    };
    match (v["peft_type"].as_str(), v["luthier_method"].as_str()) {
        (Some("LORA"), _) => {
            let magnitude = typed(v, config, "use_dora", Value::as_bool)?.unwrap_or(false);
            Ok(Config::Lora { config: lora_config(v, config)?, magnitude })
        }
        (Some("IA3"), _) => ia3_config(v, config),
        (Some("PROMPT_TUNING"), _) => Ok(Config::Prompt { tokens: tokens()? }),
        (Some("PREFIX_TUNING"), _) => Ok(Config::Prefix { tokens: tokens()? }),
        (Some("LN_TUNING"), _) => Ok(Config::Base(Tensors::Norms)),
        (None, Some("bitfit")) => Ok(Config::Base(Tensors::Biases)),
        (None, Some("full")) => Ok(Config::Base(Tensors::All)),
        (None, Some("last-k")) => {
            let k = typed(v, config, "last_k", |v| usize::try_from(v.as_u64()?).ok())?.unwrap_or(0);
            Ok(Config::Base(Tensors::Last(k)))
        }
        (None, Some(name)) => Err(unsupported(config, format!("luthier_method is {name}"))),
        (other, _) => Err(unsupported(config, format!("peft_type is {}", other.unwrap_or("missing")))),
    }
}

/// PEFT's feed-forward linears have their gain on the input; here that is down_proj, which is what its defaults say.
fn ia3_config(v: &Value, config: &Source) -> Result<Config> {
    let listed =
        |key: &str| -> Vec<&str> { v[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect() };
    let modules = modules(v, config)?;
    let forward = listed("feedforward_modules");
    let fits = |m: &Module| {
        forward.contains(&m.name()) == matches!(ia3::role(Site { layer: 0, module: *m }), Role::InputGain(_))
    };
    match modules.iter().find(|m| !forward.is_empty() && !fits(m)) {
        None => Ok(Config::Ia3 { modules }),
        Some(m) => Err(unsupported(
            config,
            format!(
                "{} is {} of the feedforward_modules",
                m.name(),
                if forward.contains(&m.name()) { "one" } else { "none" }
            ),
        )),
    }
}

fn lora_config(v: &Value, config: &Source) -> Result<LoraConfig> {
    for (name, plain) in [
        ("bias", json!("none")),
        ("lora_bias", json!(false)),
        ("use_qalora", json!(false)),
        ("alora_invocation_tokens", json!(null)),
        ("modules_to_save", json!([])),
    ] {
        let given = &v[name];
        if !given.is_null() && *given != plain {
            return Err(unsupported(config, format!("{name} is {given}")));
        }
    }
    if !(v["layer_replication"].is_null() || v["layer_replication"].as_array().is_some_and(|o| o.is_empty())) {
        return Err(unsupported(config, format!("layer_replication is {}", v["layer_replication"])));
    }
    plain_init(&v["init_lora_weights"], config)?;
    // PEFT's defaults where a key is left out.
    Ok(LoraConfig {
        rank: typed(v, config, "r", Value::as_u64)?.unwrap_or(8) as usize,
        alpha: typed(v, config, "lora_alpha", Value::as_f64)?.unwrap_or(8.0) as f32,
        dropout: typed(v, config, "lora_dropout", Value::as_f64)?.unwrap_or(0.0) as f32,
        rslora: typed(v, config, "use_rslora", Value::as_bool)?.unwrap_or(false),
        modules: modules(v, config)?,
        rank_pattern: pattern(v, config, "rank_pattern", |v| v.as_u64().map(|r| r as usize))?,
        alpha_pattern: pattern(v, config, "alpha_pattern", |v| v.as_f64().map(|a| a as f32))?,
        ..Default::default()
    })
}

/// Ranks or alphas by the end of a path. PEFT takes regular expressions; plain names are what is usual and read here.
fn pattern<T>(v: &Value, config: &Source, name: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Pattern<T>> {
    let entries = match &v[name] {
        Value::Null => return Ok(Pattern(Vec::new())),
        Value::Object(entries) => entries,
        other => return Err(malformed(config, format!("{name} is {other}"))),
    };
    let plain = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
    let one = |(key, value): (&String, &Value)| match read(value) {
        _ if !plain(key) => Err(unsupported(config, format!("{name} has '{key}', which is a regular expression"))),
        Some(read) => Ok((key.clone(), read)),
        None => Err(malformed(config, format!("{name} of {key} is {value}"))),
    };
    entries.iter().map(one).collect::<Result<_>>().map(Pattern)
}

/// A setting in its type, or None where it is left out; a setting of another type is not a setting left out.
fn typed<T>(v: &Value, config: &Source, name: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
    match &v[name] {
        Value::Null => Ok(None),
        given => read(given).map(Some).ok_or_else(|| malformed(config, format!("{name} is {given}"))),
    }
}

/// Some initialisations (PiSSA, OLoRA, CorDA, LoftQ …) change the base as well: their factors mean nothing without it.
fn plain_init(given: &Value, config: &Source) -> Result<()> {
    let plain = match given {
        Value::Null | Value::Bool(_) => true,
        given => given.as_str().is_some_and(|name| ["gaussian", "orthogonal", "eva"].contains(&name)),
    };
    if plain {
        return Ok(());
    }
    let what = format!("init_lora_weights is {given}, which changes the weights of the base model");
    let hint = "save it with PEFT's `path_initial_model_for_weight_conversion`, which makes it plain LoRA".into();
    Err(Error::Unsupported { file: config.name().into(), what, hint })
}

/// What `target_modules` names plainly, for all layers; none where it holds paths or a regular expression, or where
/// some layers are left out. Then the names of the weights tell.
fn modules(v: &Value, config: &Source) -> Result<Vec<Module>> {
    let names: Vec<&str> = match &v["target_modules"] {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) if text == "all-linear" => Module::ALL.map(Module::name).to_vec(),
        Value::String(_) => return Ok(Vec::new()),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        other => return Err(malformed(config, format!("target_modules is {other}"))),
    };
    let some_layers = !v["layers_to_transform"].is_null() || !v["exclude_modules"].is_null();
    let plain = names.iter().all(|name| Module::ALL.iter().any(|m| m.name() == *name));
    let named = |m: &Module| plain && !some_layers && names.contains(&m.name());
    Ok(Module::ALL.into_iter().filter(named).collect())
}

/// Reads an adapter folder.
#[cfg(not(target_arch = "wasm32"))]
pub fn open(folder: &std::path::Path, spec: &ModelSpec) -> Result<(Adapter, Vec<f32>)> {
    let (config, weights) = (Source::file(folder.join(CONFIG))?, Source::file(folder.join(WEIGHTS))?);
    pollster::block_on(read(&config, weights, spec))
}

/// Writes an adapter folder; each file appears whole or not at all.
#[cfg(not(target_arch = "wasm32"))]
pub fn write(folder: &std::path::Path, files: &Files) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder.display().to_string(), e))?;
    for (name, bytes) in files {
        crate::weights::atomic_write(folder.join(name), bytes)?;
    }
    Ok(())
}
