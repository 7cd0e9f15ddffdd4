//! The façade that the command line and the page both drive: a model on a device, an adapter on the model, a run.

mod compare;
mod export;
pub mod handoff;
mod likely;
mod measure;
mod modelfile;
mod probe;
mod prompt;
mod record;
mod run;
mod text;

pub use compare::Tried;
pub use likely::Likely;
pub use measure::{Asking, Forgetting, Progress, constant};
pub use modelfile::modelfile;
pub use probe::{FullRun, Probe, ProbeOptions};
pub use prompt::Prompt;
pub use record::{DataRecord, ModelRecord, Results, RunRecord};
pub use run::{Best, Dealt, Summary, flat_sha256, grouped};
pub use text::{SEQUENCES, Text};

use crate::adapter::{Adapter, lora, peft};
use crate::data::{Batches, Dataset, EncodeOptions, Preview, ReadOptions, Records, Tokenizer, preview};
use crate::device::{Device, DeviceChoice, DeviceInfo};
use crate::error::{Error, Result};
use crate::model::agreement::Logits;
use crate::model::generate::Generator;
use crate::model::seam::virtual_ids;
use crate::model::{Base, Inputs, ModelSpec, Patches};
use crate::train::{Evaluation, Identity, Trainer, evaluation};
use crate::weights::ModelFiles;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Session {
    /// Shared, so that text can be shown while the session is busy.
    pub tokenizer: Arc<Tokenizer>,
    /// What the user calls the model.
    pub name: String,
    /// What adapters name as their base: where others find it.
    pub published: String,
    /// The base's files: a merged model is made from them.
    files: ModelFiles,
    base: Base,
    adapter: Option<(Adapter, Patches)>,
    /// Adapters that were put aside by name, to be used again.
    shelf: BTreeMap<String, (Adapter, Patches)>,
    /// What exports are compared with, by the number of tokens.
    logits: BTreeMap<usize, Logits>,
    trainer: Option<Trainer>,
    /// None natively, where threads share the work.
    offered: Option<Offer>,
    /// The run that was started last: what its checkpoints are checked against, and what is written about it.
    run: Option<(Identity, RunRecord)>,
    validation: Option<Batches>,
    generator: Option<Generator>,
    /// Sequence and inputs of evaluation outside a run, with their shape (B, T) and whether the adapter is used.
    evaluation: Option<(Inputs, usize, (usize, usize, bool))>,
}

/// Workers that may share a run on the CPU, this one among them, and the GiB that all of them may take; each holds a
/// copy of the model.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub workers: usize,
    pub gib: f64,
}

/// What a base model is, as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    pub name: String,
    /// Of the configuration and all weights: names may be the same, this is not.
    pub sha256: String,
    pub family: &'static str,
    pub parameters: u64,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    pub context: usize,
    /// How most of the weights are stored.
    pub format: &'static str,
    pub chat_template: bool,
    /// What `target_modules` may name.
    pub modules: Vec<&'static str>,
}

/// Records as training sees them: whoever shows or measures data goes through here.
pub fn encode(records: &Records, tokenizer: &Tokenizer, seq_len: usize) -> Result<Dataset> {
    Dataset::encode(records, tokenizer, &EncodeOptions { seq_len, use_template: true })
}

impl Session {
    /// Opens a model on a device. `progress` gets bytes streamed and in all.
    pub async fn open(
        files: &ModelFiles,
        name: &str,
        device: DeviceChoice,
        progress: impl FnMut(u64, u64),
    ) -> Result<Session> {
        Session::open_on(Device::open(device).await?, &Likely::default(), files, name, progress).await
    }

    /// [`Session::open`] on a device that is open already. What will probably be asked for is compiled meanwhile.
    pub async fn open_on(
        device: Device,
        likely: &Likely,
        files: &ModelFiles,
        name: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<Session> {
        let begin = |base: &mut Base| {
            if base.device.compiles() {
                let plans = likely.plans(base);
                base.device.make_ahead(&plans);
            }
        };
        Session::new(files, name, Base::load_beside(files, device, begin, progress).await?)
    }

    /// A session that can only estimate: the model's weights are neither read nor given room.
    pub async fn planned(files: &ModelFiles, name: &str, device: Device) -> Result<Session> {
        Session::new(files, name, Base::planned(files, device).await?)
    }

    fn new(files: &ModelFiles, name: &str, base: Base) -> Result<Session> {
        Ok(Session {
            tokenizer: Arc::new(Tokenizer::new(files.tokenizer().clone())?),
            name: name.to_string(),
            published: name.to_string(),
            files: files.clone(),
            base,
            adapter: None,
            shelf: BTreeMap::new(),
            logits: BTreeMap::new(),
            trainer: None,
            offered: None,
            run: None,
            validation: None,
            generator: None,
            evaluation: None,
        })
    }

    pub fn spec(&self) -> &ModelSpec {
        self.base.spec()
    }

    pub fn device(&self) -> &Device {
        &self.base.device
    }

    /// Which shaders were measured to be fastest, where that is to be kept and was not handed out yet.
    pub fn newly_tuned(&mut self) -> Option<String> {
        match &mut self.base.device {
            Device::Gpu(gpu) => gpu.newly_tuned(),
            _ => None,
        }
    }

    pub fn describe_device(&self) -> String {
        self.base.device.describe()
    }

    /// Says who may share runs; a GPU needs nobody.
    pub fn offer_workers(&mut self, offer: Offer) {
        self.offered = matches!(self.base.device, Device::Cpu(_)).then_some(offer);
    }

    /// The device with the workers that were offered.
    pub fn device_info(&self) -> DeviceInfo {
        let mut info = self.base.device.info();
        if let Some(Offer { workers: workers @ 2.., .. }) = self.offered {
            info.description = self.base.device.describe_with(&format!("up to {workers} workers"));
        }
        info
    }

    /// Bytes that exist on the device now.
    pub fn allocated(&self) -> u64 {
        self.base.device.allocated()
    }

    /// What the base model is.
    pub fn info(&self) -> ModelInfo {
        let spec = self.spec();
        ModelInfo {
            name: self.name.clone(),
            sha256: self.base.sha256.clone(),
            family: spec.family.name,
            parameters: spec.parameters(),
            layers: spec.layers,
            hidden: spec.hidden,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            vocab: spec.vocab,
            context: spec.context,
            format: self.base.decoder.main_format().name(),
            chat_template: self.tokenizer.chat_template().is_some(),
            modules: lora::targets(spec.family, spec.modules()),
        }
    }

    /// Puts an adapter on the model, for evaluation and generation; it takes the place of the one before, and a run
    /// that was under way is over.
    pub async fn load_adapter(&mut self, adapter: Adapter, flat: &[f32]) -> Result<()> {
        let patches = self.laid_out(&adapter, flat).await?;
        (self.trainer, self.validation) = (None, None);
        self.set_adapter(adapter, patches);
        Ok(())
    }

    /// An adapter's numbers on the device.
    async fn laid_out(&mut self, adapter: &Adapter, flat: &[f32]) -> Result<Patches> {
        let Base { plan, device, decoder, .. } = &mut self.base;
        let patches = adapter.declare(plan, false);
        let prologue = adapter.prologue(plan, &patches, decoder);
        device.prepare(plan).await?;
        device.write_floats(patches.params, 0, flat);
        if let Some(prologue) = prologue {
            device.run(plan, prologue, 0)?;
        }
        Ok(patches)
    }

    /// What to say of an adapter that was tuned on another base, by its hash: it may fit all the same, by its shapes.
    pub fn other_base(&self, tuned_on: Option<&str>) -> Option<Error> {
        let here = &self.base.sha256;
        let there = tuned_on.filter(|there| there != here)?;
        let short = |sha256: &str| sha256.chars().take(12).collect::<String>();
        let what = format!(
            "the adapter was tuned on another base model: its sha256 begins {}, that of {} begins {}",
            short(there),
            self.name,
            short(here)
        );
        let hint = "it fits by its shapes alone, and may answer worse than the base: use it with its own";
        Some(Error::Mismatch { file: peft::WEIGHTS.into(), problems: vec![what], hint: hint.into() })
    }

    /// Keeps the adapter that is on the model under a name, in place of one that had it.
    pub fn keep_adapter(&mut self, name: &str) -> Result<()> {
        let Some(adapter) = self.adapter.clone() else {
            return Err(Error::setting("adapter", "there is no adapter yet", "train one, or load one"));
        };
        self.shelf.insert(name.into(), adapter);
        Ok(())
    }

    /// Puts an adapter that was kept on the model, or takes off the one that is there: then the model is its base.
    pub fn use_adapter(&mut self, name: Option<&str>) -> Result<()> {
        let chosen = match name {
            Some(name) => Some(self.shelf.get(name).cloned().ok_or_else(|| {
                let known: Vec<&str> = self.shelf.keys().map(String::as_str).collect();
                let hint = format!("kept are: {}", if known.is_empty() { "none".into() } else { known.join(", ") });
                Error::setting("adapter", format!("no adapter is kept as '{name}'"), hint)
            })?),
            None => None,
        };
        (self.trainer, self.validation) = (None, None);
        self.put(chosen);
        Ok(())
    }

    /// Sequences built for another adapter are not used again.
    fn set_adapter(&mut self, adapter: Adapter, patches: Patches) {
        self.put(Some((adapter, patches)));
    }

    fn put(&mut self, adapter: Option<(Adapter, Patches)>) {
        self.adapter = adapter;
        self.evaluation = None;
        if let Some(generator) = &mut self.generator {
            generator.forget_adapter();
        }
    }

    /// What the model would see of a file.
    pub fn preview(
        &self,
        name: &str,
        text: &str,
        options: &ReadOptions,
        seq_len: usize,
        limit: usize,
    ) -> Result<Preview> {
        preview(name, text.as_bytes(), options, &self.tokenizer, seq_len, limit)
    }

    pub fn encode(&self, records: &Records, seq_len: usize) -> Result<Dataset> {
        encode(records, &self.tokenizer, seq_len)
    }

    /// SHA-256 of the base model.
    pub fn base_sha256(&self) -> &str {
        &self.base.sha256
    }

    /// Refuses rows of so many tokens of text behind so many virtual ones, where the model knows fewer positions.
    fn check_length(&self, seq_len: usize, virtual_tokens: usize) -> Result<()> {
        let context = self.spec().context;
        if seq_len.saturating_add(virtual_tokens) <= context {
            return Ok(());
        }
        let before =
            if virtual_tokens > 0 { format!(" behind {virtual_tokens} virtual tokens") } else { String::new() };
        let what = format!("is {seq_len}{before}, the model knows {context} positions");
        let hint = match context.saturating_sub(virtual_tokens) {
            0 | 1 => "use fewer virtual tokens (--num-virtual-tokens)".into(),
            room => format!("use at most {room}"),
        };
        Err(Error::setting("seq-len", what, hint))
    }

    /// Positions that the adapter's virtual tokens leave for text.
    fn room(&self, adapted: bool) -> usize {
        let before = if adapted { self.virtual_ids().len() } else { 0 };
        self.spec().context.saturating_sub(before)
    }

    /// Ids of the rows that the adapter puts before each text.
    fn virtual_ids(&self) -> Vec<u32> {
        virtual_ids(self.adapter.as_ref().map_or(0, |(adapter, _)| adapter.method.virtual_tokens()))
    }

    /// The method of the adapter on the model.
    pub fn method(&self) -> Option<&'static str> {
        self.adapter.as_ref().map(|(adapter, _)| adapter.method.name())
    }

    /// Mean loss, perplexity and accuracy over data encoded to `seq_len`, with the adapter if asked and if there is
    /// one.
    pub async fn evaluate(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        seq_len: usize,
        adapted: bool,
    ) -> Result<Evaluation> {
        let batches = self.evaluation_batches(data, batch_size, seq_len, adapted).await?;
        let (io, sequence, _) = self.evaluation.as_ref().expect("just made");
        evaluation::evaluate(&mut self.base, io, *sequence, &batches).await
    }
}
