//! The options of a training run: one table for the command line (as flags) and the page (as JSON, snake_case).

use super::schedule::Schedule;
use crate::adapter::{LoraConfig, lora};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::Args))]
pub struct TrainOptions {
    /// Rank of the low-rank update: more can learn more, and costs more.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 8))]
    pub rank: usize,
    /// Strength of the update: it is scaled by alpha / rank (rsLoRA: alpha / √rank).
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 16.0))]
    pub alpha: f32,
    /// Probability of dropping an input of the update while training.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 0.0))]
    pub dropout: f32,
    /// Scale by alpha / √rank.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long))]
    pub rslora: bool,
    /// Which linears to adapt: all-linear, or names separated by commas (q_proj,v_proj ...).
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "NAMES", default_value = "all-linear"))]
    pub target_modules: String,
    /// Peak learning rate.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 5e-4))]
    pub lr: f64,
    /// How the learning rate goes down after the warm-up: constant, linear or cosine.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "KIND", value_enum, hide_possible_values = true, default_value_t = Schedule::Linear))]
    pub schedule: Schedule,
    /// Steps over which the learning rate rises.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 0))]
    pub warmup_steps: u64,
    /// Decoupled weight decay of AdamW.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 0.0))]
    pub weight_decay: f32,
    /// Gradients are scaled down to this global norm; 0 turns it off.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 1.0))]
    pub max_grad_norm: f32,
    /// Passes over the data.
    #[cfg_attr(
        not(target_arch = "wasm32"),
        arg(long, value_name = "N", default_value_t = 3.0, conflicts_with = "steps")
    )]
    pub epochs: f64,
    /// Optimizer steps, instead of epochs.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N"))]
    pub steps: Option<u64>,
    /// Rows of a micro-batch.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 4))]
    pub batch_size: usize,
    /// Tokens of a row; longer examples are cut.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 256))]
    pub seq_len: usize,
    /// Micro-batches of an optimizer step.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 1))]
    pub grad_accum: usize,
    /// Everything random follows from it.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 0))]
    pub seed: u64,
    /// Keep the order of the file.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long))]
    pub no_shuffle: bool,
    /// One example a row.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long))]
    pub no_packing: bool,
    /// Steps between evaluations on the validation data; 0 means only at the end.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 0))]
    pub eval_every: u64,
    /// Share of the data held out for validation when no validation file is given.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 0.1))]
    pub val_fraction: f64,
    /// Blocks whose activations are kept; the others are recomputed. Chosen to fit the memory when left out.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N"))]
    pub kept_blocks: Option<usize>,
    /// GiB the run may use; decides --kept-blocks.
    #[cfg_attr(not(target_arch = "wasm32"), arg(long, value_name = "N", default_value_t = 4.0))]
    pub memory_gib: f64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            rslora: false,
            target_modules: "all-linear".into(),
            lr: 5e-4,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            epochs: 3.0,
            steps: None,
            batch_size: 4,
            seq_len: 256,
            grad_accum: 1,
            seed: 0,
            no_shuffle: false,
            no_packing: false,
            eval_every: 0,
            val_fraction: 0.1,
            kept_blocks: None,
            memory_gib: 4.0,
        }
    }
}

impl TrainOptions {
    pub fn lora(&self) -> Result<LoraConfig> {
        Ok(LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rslora: self.rslora,
            modules: lora::target_modules(&self.target_modules)?,
        })
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
        positive("lr", self.lr, "5e-4 is a good start for LoRA")?;
        positive("batch-size", self.batch_size as f64, "4 is a good start")?;
        positive("grad-accum", self.grad_accum as f64, "1 means a step a batch")?;
        positive("memory-gib", self.memory_gib, "4 is the default")?;
        match self.steps {
            Some(steps) => positive("steps", steps as f64, "100 is a good start")?,
            None => positive("epochs", self.epochs, "3 is a good start")?,
        }
        if self.seq_len < 2 {
            return Err(Error::setting(
                "seq-len",
                format!("is {}, expected at least 2", self.seq_len),
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
        assert_eq!(serde_json::to_value(flags).unwrap(), serde_json::to_value(json).unwrap());
    }
}
