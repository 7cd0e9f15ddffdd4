//! The options of a training run: one table for the command line (flags), JSON (snake_case keys) and the page's form.

use super::optimizer::Optim;
use super::schedule::Schedule;
use crate::adapter::lora::{Pattern, Start};
use crate::adapter::{Kind, LoraConfig, Settings};
use crate::error::{Error, Result};
use crate::model::decoder::Keep;
use crate::plan::MAX_GROUPS;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Makes [`TrainOptions`] from one line an option: its help, name, type, default (where it has one), and what else clap
/// is told. Flags, JSON keys, defaults and the rows of the page's form all follow from it.
macro_rules! options {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty $(= $default:expr)?, [$($arg:tt)*];)*) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[cfg_attr(not(target_arch = "wasm32"), derive(clap::Args))]
        pub struct TrainOptions {
            $(
                $(#[doc = $help])+
                #[cfg_attr(not(target_arch = "wasm32"), arg(long, $(default_value_t = $default,)? $($arg)*))]
                pub $name: $type,
            )*
        }

        impl Default for TrainOptions {
            /// What `{}` and an empty command line mean.
            fn default() -> Self {
                #[allow(unused_mut, unused_assignments)]
                TrainOptions { $($name: { let mut value = <$type>::default(); $(value = $default;)? value },)* }
            }
        }

        /// (name, help, type) of every option.
        const ROWS: &[(&str, &str, &str)] = &[$((stringify!($name), concat!($($help),+), stringify!($type)),)*];
    };
}

options! {
    /// What is trained: lora, dora, ia3, prompt, prefix, norm, bitfit, last-k (blocks), full or lisa.
    method: Kind = Kind::Lora, [value_name = "NAME", value_enum, hide_possible_values = true];
    /// Rank of the low-rank update: more can learn more, and costs more.
    rank: usize = 8, [value_name = "N"];
    /// Strength of the update: it is scaled by alpha / rank (rsLoRA: alpha / √rank).
    alpha: f32 = 16.0, [value_name = "N"];
    /// Probability of dropping an input of the update while training.
    dropout: f32 = 0.0, [value_name = "N"];
    /// Scale by alpha / √rank.
    rslora: bool, [];
    /// Which linears to adapt: all-linear, or names separated by commas (q_proj,v_proj ...). Left out, the method's
    /// own.
    target_modules: Option<String>, [value_name = "NAMES"];
    /// Other ranks for some linears, by the end of their path: q_proj=16,layers.0.mlp.down_proj=4.
    rank_pattern: Option<String>, [value_name = "NAME=N"];
    /// Other alphas for some linears, likewise.
    alpha_pattern: Option<String>, [value_name = "NAME=N"];
    /// LoRA+: how many times A's learning rate B learns with; the paper found 16 good.
    loraplus_lr_ratio: f32 = 1.0, [value_name = "N"];
    /// What LoRA's factors start as: kaiming, gaussian, pissa (the weight's principal part) or olora (its first
    /// columns).
    init_lora_weights: String = String::from("kaiming"), [value_name = "KIND"];
    /// Virtual tokens of prompt and prefix tuning.
    num_virtual_tokens: usize = 16, [value_name = "N"];
    /// What a prompt starts as: text, sample_vocab or random.
    prompt_tuning_init: String = String::from("text"), [value_name = "KIND"];
    /// The text a prompt starts as; say what the task is.
    prompt_tuning_init_text: String = String::from("Answer the question as asked."), [value_name = "TEXT"];
    /// Blocks that last-k trains.
    last_k: usize = 2, [value_name = "N"];
    /// Blocks that lisa trains at a time.
    lisa_blocks: usize = 2, [value_name = "N"];
    /// Steps after which lisa draws other blocks.
    lisa_interval: u64 = 20, [value_name = "N"];
    /// Peak learning rate. Left out, the method's usual one: 5e-4 for LoRA.
    lr: Option<f64>, [value_name = "N"];
    /// How the learning rate goes down after the warm-up: constant, linear or cosine.
    schedule: Schedule = Schedule::Linear, [value_name = "KIND", value_enum, hide_possible_values = true];
    /// Steps over which the learning rate rises.
    warmup_steps: u64 = 0, [value_name = "N"];
    /// How AdamW keeps its moments: adamw (8 bytes a trained number) or adamw_8bit (2 bytes, rounded by blocks of 256).
    optim: Optim = Optim::AdamW, [value_name = "KIND", value_enum, hide_possible_values = true];
    /// Decoupled weight decay of AdamW.
    weight_decay: f32 = 0.0, [value_name = "N"];
    /// Gradients are scaled down to this global norm; 0 turns it off.
    max_grad_norm: f32 = 1.0, [value_name = "N"];
    /// Passes over the data.
    epochs: f64 = 3.0, [value_name = "N", conflicts_with = "steps"];
    /// Optimizer steps, instead of epochs.
    steps: Option<u64>, [value_name = "N"];
    /// Rows of a micro-batch.
    batch_size: usize = 4, [value_name = "N"];
    /// Tokens of a row; longer examples are cut.
    seq_len: usize = 256, [value_name = "N"];
    /// Micro-batches of an optimizer step.
    grad_accum: usize = 1, [value_name = "N"];
    /// Everything random follows from it.
    seed: u64 = 0, [value_name = "N"];
    /// Keep the order of the file.
    no_shuffle: bool, [];
    /// One example a row.
    no_packing: bool, [];
    /// Steps between evaluations on the validation data; 0 means only at the end.
    eval_every: u64 = 0, [value_name = "N"];
    /// Share of the data held out for validation when no validation file is given.
    val_fraction: f64 = 0.1, [value_name = "N"];
    /// Blocks whose activations are kept; the others are recomputed. Chosen to fit the memory when left out.
    kept_blocks: Option<usize>, [value_name = "N"];
    /// How the widest activations are kept between forward and backward: f32, or bf16, rounded to 8 bits of precision
    /// in half the memory.
    activations: Activations = Activations::F32, [value_name = "TYPE", value_enum, hide_possible_values = true];
    /// GiB the run may use; decides --kept-blocks.
    memory_gib: f64 = 4.0, [value_name = "N"];
    /// Web workers that a step's rows are dealt to, on the CPU; left out, as many as cores and memory allow. Natively
    /// it only changes how sums are rounded.
    workers: Option<usize>, [value_name = "N"];
}

/// What activations are kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Activations {
    #[default]
    F32,
    Bf16,
}

impl Activations {
    /// As flags and JSON spell them.
    pub const NAMES: [&str; 2] = ["f32", "bf16"];
}

/// An option as a form shows it.
#[derive(Clone, Debug, Serialize)]
pub struct OptionRow {
    /// The key of the JSON object.
    pub name: &'static str,
    /// `--seq-len`
    pub flag: String,
    pub help: &'static str,
    /// integer, number, boolean, text or choice
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    pub choices: &'static [&'static str],
    pub default: Value,
}

/// All options of a run, in the order of `luthier train --help`.
pub fn option_table() -> Vec<OptionRow> {
    let defaults = serde_json::to_value(TrainOptions::default()).expect("plain data");
    let row = |&(name, help, kind): &(&'static str, &'static str, &str)| {
        let (kind, choices): (_, &[&str]) = match kind {
            "bool" => ("boolean", &[]),
            "String" | "Option<String>" => ("text", &[]),
            "f32" | "f64" | "Option<f64>" => ("number", &[]),
            "Kind" => ("choice", &Kind::NAMES),
            "Schedule" => ("choice", &Schedule::NAMES),
            "Activations" => ("choice", &Activations::NAMES),
            "Optim" => ("choice", &Optim::NAMES),
            _ => ("integer", &[]),
        };
        let flag = format!("--{}", name.replace('_', "-"));
        OptionRow { name, flag, help: help.trim(), kind, choices, default: defaults[name].clone() }
    };
    ROWS.iter().map(row).collect()
}

/// A method as a form offers it.
#[derive(Clone, Debug, Serialize)]
pub struct MethodRow {
    /// What the option `method` calls it.
    pub name: &'static str,
    /// The learning rate to start from.
    pub lr: f64,
    /// Rows of the option table that it reads; those that no method names here are read by all.
    pub options: &'static [&'static str],
    /// PEFT opens its adapter.
    pub in_peft: bool,
    /// It can be folded into the weights.
    pub merges: bool,
}

/// All methods, in the order of `luthier train --help`.
pub fn method_table() -> Vec<MethodRow> {
    let row = |kind: Kind| MethodRow {
        name: kind.name(),
        lr: kind.lr(),
        options: kind.options(),
        in_peft: kind.in_peft(),
        merges: kind.merges(),
    };
    Kind::ALL.map(row).to_vec()
}

/// Micro-batches of a step are put together before it starts.
const GRAD_ACCUM_MAX: usize = 4096;

/// A token, and the one that follows it.
pub(super) const MIN_SEQ_LEN: usize = 2;

/// Refuses micro-batches of more tokens than one dispatch can have workgroups along a dimension.
pub fn check_tokens(batch_size: usize, seq_len: usize) -> Result<()> {
    match batch_size.checked_mul(seq_len) {
        Some(tokens) if tokens <= MAX_GROUPS as usize => Ok(()),
        _ => {
            let what = format!("{batch_size} rows of {seq_len} tokens are more than {MAX_GROUPS} tokens");
            Err(Error::setting("batch-size", what, "lower it; --grad-accum makes large batches of small ones"))
        }
    }
}

impl TrainOptions {
    /// What a step keeps, with the activations of so many blocks.
    pub fn keep(&self, blocks: usize) -> Keep {
        Keep { blocks, packed: self.activations == Activations::Bf16 }
    }

    /// The method's own settings.
    pub fn settings(&self) -> Result<Settings> {
        let text = |pattern: &Option<String>| pattern.clone().unwrap_or_default();
        let lora = LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rslora: self.rslora,
            rank_pattern: Pattern::parse("rank-pattern", &text(&self.rank_pattern))?,
            alpha_pattern: Pattern::parse("alpha-pattern", &text(&self.alpha_pattern))?,
            ratio: self.loraplus_lr_ratio,
            start: Start::parse(&self.init_lora_weights)?,
            ..Default::default()
        };
        Ok(Settings {
            lora,
            target_modules: self.target_modules.clone(),
            virtual_tokens: self.num_virtual_tokens,
            prompt_init: self.prompt_tuning_init.clone(),
            prompt_text: self.prompt_tuning_init_text.clone(),
            last_k: self.last_k,
            lisa_blocks: self.lisa_blocks,
            lisa_interval: self.lisa_interval,
        })
    }

    /// The peak learning rate, the method's usual one where none was given.
    pub fn peak_lr(&self) -> f64 {
        self.lr.unwrap_or(self.method.lr())
    }

    /// Refuses values that cannot work; those of the adapter are checked with the model at hand.
    pub fn check(&self) -> Result<()> {
        let positive = |flag: &str, value: f64, hint: &str| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(Error::setting(flag, format!("is {value}, expected more than 0"), hint)),
        };
        let not_negative = |flag: &str, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(Error::setting(flag, format!("is {value}, expected 0 or more"), "")),
        };
        let usual = format!("{:e} is a good start for {}", self.method.lr(), self.method.name());
        positive("lr", self.peak_lr(), &usual)?;
        positive("batch-size", self.batch_size as f64, "4 is a good start")?;
        positive("grad-accum", self.grad_accum as f64, "1 means a step a batch")?;
        if self.grad_accum > GRAD_ACCUM_MAX {
            let what = format!("is {}, expected at most {GRAD_ACCUM_MAX}", self.grad_accum);
            return Err(Error::setting("grad-accum", what, "8 to 64 are usual"));
        }
        positive("memory-gib", self.memory_gib, "4 is the default")?;
        positive("workers", self.workers.unwrap_or(1) as f64, "leave it out to have it chosen")?;
        match self.steps {
            Some(steps) => positive("steps", steps as f64, "100 is a good start")?,
            None => positive("epochs", self.epochs, "3 is a good start")?,
        }
        if self.seq_len < MIN_SEQ_LEN {
            return Err(Error::setting(
                "seq-len",
                format!("is {}, expected at least {MIN_SEQ_LEN}", self.seq_len),
                "256 is a good start",
            ));
        }
        if !(0.0..0.9).contains(&self.val_fraction) {
            return Err(Error::setting(
                "val-fraction",
                format!("is {}, expected 0 to 0.9", self.val_fraction),
                "0.1 is the default",
            ));
        }
        if self.method == Kind::Lisa && self.weight_decay != 0.0 {
            let what = format!("is {}, and lisa would shrink the blocks that rest", self.weight_decay);
            return Err(Error::setting("weight-decay", what, "leave it out, or use full"));
        }
        not_negative("weight-decay", self.weight_decay as f64)?;
        not_negative("max-grad-norm", self.max_grad_norm as f64)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::TrainOptions;
    use clap::Args;

    #[test]
    fn flags_and_json_have_the_same_defaults() {
        use clap::FromArgMatches;
        let matches = TrainOptions::augment_args(clap::Command::new("t")).get_matches_from(["t"]);
        let flags = TrainOptions::from_arg_matches(&matches).unwrap();
        let json: TrainOptions = serde_json::from_str("{}").unwrap();
        assert_eq!(flags, json);
    }

    #[test]
    fn methods_name_rows() {
        let rows = super::option_table();
        for method in super::method_table() {
            let unknown: Vec<_> = method.options.iter().filter(|name| !rows.iter().any(|r| r.name == **name)).collect();
            assert!(unknown.is_empty(), "{}: {unknown:?}", method.name);
        }
    }

    #[test]
    fn rows_are_flags() {
        let command = TrainOptions::augment_args(clap::Command::new("t"));
        let rows = super::option_table();
        for (arg, row) in command.get_arguments().zip(&rows) {
            assert_eq!(format!("--{}", arg.get_long().unwrap()), row.flag);
            // clap leaves out the last full stop.
            assert_eq!(arg.get_help().unwrap().to_string(), row.help.trim_end_matches('.'));
            assert_eq!(arg.get_action().takes_values(), row.kind != "boolean", "{}", row.flag);
        }
        let row = |name: &str| serde_json::to_value(rows.iter().find(|r| r.name == name).unwrap()).unwrap();
        assert_eq!(rows.len(), command.get_arguments().count());
        assert_eq!(row("optim")["choices"], serde_json::json!(["adamw", "adamw_8bit"]));
        assert_eq!(row("schedule")["choices"], serde_json::json!(["constant", "linear", "cosine"]));
        assert_eq!((&row("steps")["default"], &row("steps")["type"]), (&serde_json::Value::Null, &"integer".into()));
        assert_eq!((&row("rank")["default"], row("rank").get("choices")), (&8.into(), None));
    }
}
