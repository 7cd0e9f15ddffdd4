//! A run as it was planned: its sequences, its memory, and how many blocks keep their activations.

use super::optimizer::{Optim, Optimizer};
use super::options::{Activations, MIN_SEQ_LEN, TrainOptions};
use super::shares::Deal;
use crate::adapter::Adapter;
use crate::data::Batches;
use crate::error::{Error, Result, size};
use crate::model::decoder::LossSequences;
use crate::model::{Base, Inputs, Patches};
use crate::ops::sum_squares;
use crate::plan::memory::Memory;
use crate::plan::{Buf, Elem, Plan, SequenceId};
use serde::Serialize;

/// Bytes of a run on its device, known before anything is allocated.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    /// The base model, and what the session holds besides the run (caches of generation).
    pub weights: u64,
    /// Parameters, gradients and AdamW's two moments.
    pub adapter: u64,
    /// Activations and their gradients, shared by lifetime.
    pub activations: u64,
    /// Inputs, tables, reports and kernel parameters.
    pub other: u64,
    /// All of this again, in each of the other workers.
    pub helpers: u64,
    pub total: u64,
    pub kept_blocks: usize,
    pub blocks: usize,
}

impl MemoryPlan {
    /// What the run could do with less of, for a hint: what weighs, and is not as small already; `or` is the last
    /// resort.
    pub fn what_to_lower(&self, options: &TrainOptions, or: &str) -> String {
        // Where all blocks are recomputed, next to nothing is kept.
        let keeps = self.kept_blocks > 0;
        let learns_much = 10 * self.adapter > self.total - self.helpers;
        let has_rank = options.method.options().contains(&"rank") && options.rank > 1;
        let helps = [
            (options.batch_size > 1, "--batch-size"),
            (options.seq_len > MIN_SEQ_LEN, "--seq-len"),
            (self.helpers > 0, "--workers"),
            (keeps, "--kept-blocks"),
            (learns_much && has_rank, "--rank"),
        ];
        let lower: Vec<_> = helps.into_iter().filter_map(|(helps, flag)| helps.then_some(flag)).collect();
        let mut ways: Vec<String> = match lower.split_last() {
            None => Vec::new(),
            Some((only, [])) => vec![format!("lower {only}")],
            Some((last, others)) => vec![format!("lower {} or {last}", others.join(", "))],
        };
        if keeps && options.activations == Activations::F32 {
            ways.push("set --activations to bf16".into());
        }
        if learns_much && options.optim == Optim::AdamW {
            ways.push("set --optim to adamw_8bit".into());
        }
        ways.push(if ways.is_empty() { or.into() } else { format!("or {or}") });
        ways.join(", ")
    }
}

/// A training run added to a copy of the base's plan.
pub(super) struct Parts {
    pub plan: Plan,
    pub io: Inputs,
    pub patches: Patches,
    pub sequences: LossSequences,
    pub update: SequenceId,
    pub optimizer: Optimizer,
    /// Factors of the learning rate, where they differ.
    pub rates: Option<Buf>,
    /// Run once, before all others.
    pub prologue: Option<SequenceId>,
}

/// Tokens of a row: those of the text, and the virtual ones before it.
pub fn row_len(adapter: &Adapter, options: &TrainOptions) -> usize {
    options.seq_len + adapter.method.virtual_tokens()
}

fn build(base: &Base, adapter: &Adapter, options: &TrainOptions, kept_blocks: usize) -> Parts {
    let mut plan = base.plan.clone();
    let spec = base.spec();
    let t = row_len(adapter, options);
    let io = Inputs::declare(&mut plan, spec, Deal::of(options).rows * t, t);
    let patches = adapter.declare(&mut plan, true);
    let sequences = base.decoder.loss_sequences(&mut plan, &io, Some(&patches), Some(options.keep(kept_blocks)));
    let optimizer = Optimizer::declare(&mut plan, options.optim, adapter.len);
    let clip = plan.persistent("clip factor", Elem::Float, 4);
    let rates = adapter.rates().map(|r| plan.persistent("learning rates", Elem::Float, r.len()));
    let update = plan.begin("update");
    sum_squares::norm_and_clip(&mut plan, adapter.len, options.max_grad_norm, patches.grads, io.control, io.ring, clip);
    optimizer.step(&mut plan, options, io.control, clip, &patches, rates);
    let prologue = adapter.prologue(&mut plan, &patches, &base.decoder);
    Parts { plan, io, patches, sequences, update, optimizer, rates, prologue }
}

/// Steps of a run over these batches.
pub fn total_steps(batches: &Batches, options: &TrainOptions) -> u64 {
    let per_epoch = batches.batches_per_epoch() as f64 / options.grad_accum as f64;
    options.steps.unwrap_or(((per_epoch * options.epochs).ceil() as u64).max(1))
}

/// A run that was not started: nothing is allocated.
pub struct Planned {
    pub(super) parts: Parts,
    pub memory: MemoryPlan,
}

/// `holders` are the workers that each hold all of it.
fn plan_keeping(base: &Base, adapter: &Adapter, options: &TrainOptions, holders: u64, kept_blocks: usize) -> Planned {
    let parts = build(base, adapter, options, kept_blocks);
    let mut layout = Memory::default();
    layout.extend(&parts.plan);
    let weights = base.plan.persistent_bytes();
    let activations = layout.slots.iter().map(|s| s.len as u64 * 4).sum();
    let adapter = parts.optimizer.bytes();
    let each = layout.bytes(&parts.plan) + base.device.step_bytes(&parts.plan);
    let other = each - weights - adapter - activations;
    let (helpers, total, blocks) = ((holders - 1) * each, holders * each, base.spec().layers);
    Planned { parts, memory: MemoryPlan { weights, adapter, activations, other, helpers, total, kept_blocks, blocks } }
}

/// A run as a plan, whatever it takes: its steps are those of any run of this method that keeps activations.
pub fn sketch(base: &Base, adapter: &Adapter, options: &TrainOptions) -> Plan {
    build(base, adapter, options, base.spec().layers).plan
}

/// Plans a run with the most blocks whose activations fit; an error when not even recomputing all of them does.
pub fn plan(base: &Base, adapter: &Adapter, options: &TrainOptions) -> Result<Planned> {
    plan_for(base, adapter, options, 1)
}

/// [`plan`], where so many workers each hold a copy of the run.
pub fn plan_for(base: &Base, adapter: &Adapter, options: &TrainOptions, holders: usize) -> Result<Planned> {
    options.check()?;
    let blocks = base.spec().layers;
    if let Some(kept) = options.kept_blocks.filter(|kept| *kept > blocks) {
        let what = format!("is {kept}, the model has {blocks} blocks");
        return Err(Error::setting("kept-blocks", what, "leave it out to have it chosen"));
    }
    let (bytes, most) = (4 * adapter.len as u64, base.device.max_binding());
    if bytes > most {
        let what = format!("trains {} in one piece, this device binds {}", size(bytes), size(most));
        return Err(Error::setting("method", what, "train less (last-k, lora), or use --device cpu"));
    }
    let budget = (options.memory_gib * (1u64 << 30) as f64) as u64;
    let keeping = |kept: usize| plan_keeping(base, adapter, options, holders as u64, kept);
    let mut too_many = options.kept_blocks.unwrap_or(blocks);
    let all = keeping(too_many);
    if all.memory.total <= budget {
        return Ok(all);
    }
    let mut fits = keeping(options.kept_blocks.unwrap_or(0));
    if fits.memory.total > budget {
        let what = format!("the run needs at least {}, allowed are {}", size(fits.memory.total), size(budget));
        let hint = fits.memory.what_to_lower(options, "allow more with --memory-gib");
        return Err(Error::setting("memory-gib", what, hint));
    }
    while too_many - fits.memory.kept_blocks > 1 {
        let middle = keeping((fits.memory.kept_blocks + too_many) / 2);
        if middle.memory.total <= budget {
            fits = middle;
        } else {
            too_many = middle.memory.kept_blocks;
        }
    }
    Ok(fits)
}
