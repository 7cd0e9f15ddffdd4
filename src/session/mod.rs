//! The façade that the command line and the page both drive: a model on a device, an adapter on the model, a run.

pub mod handoff;
mod measure;
mod probe;
mod prompt;
mod record;
mod run;
mod text;

pub use measure::{Asking, Forgetting, Progress, constant};
pub use probe::{FullRun, Probe, ProbeOptions};
pub use prompt::Prompt;
pub use record::{DataRecord, ModelRecord, Results, RunRecord};
pub use run::{Best, Summary, flat_sha256, grouped};
pub use text::{SEQUENCES, Text};

use crate::adapter::merge::{self, Dtype};
use crate::adapter::peft::{self, BaseName, Files};
use crate::adapter::{Adapter, lora};
use crate::data::{Batches, Dataset, EncodeOptions, PackOptions, Preview, ReadOptions, Records, Tokenizer, preview};
use crate::device::{Device, DeviceChoice};
use crate::error::{Error, Result};
use crate::model::generate::Generator;
use crate::model::seam::virtual_ids;
use crate::model::{Base, Inputs, ModelSpec, Patches};
use crate::train::{Evaluation, Identity, Trainer, check_tokens, trainer};
use crate::weights::ModelFiles;
use serde::Serialize;
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
    trainer: Option<Trainer>,
    /// The run that was started last: what its checkpoints are checked against, and what is written about it.
    run: Option<(Identity, RunRecord)>,
    validation: Option<Batches>,
    generator: Option<Generator>,
    /// Sequence and inputs of evaluation outside a run, with their shape (B, T) and whether the adapter is used.
    evaluation: Option<(Inputs, usize, (usize, usize, bool))>,
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
        let base = Base::load(files, Device::open(device).await?, progress).await?;
        Session::new(files, name, base)
    }

    /// A session that can only estimate: the model's weights are neither read nor given room.
    pub async fn planned(files: &ModelFiles, name: &str, device: DeviceChoice) -> Result<Session> {
        Session::new(files, name, Base::planned(files, Device::open(device).await?).await?)
    }

    fn new(files: &ModelFiles, name: &str, base: Base) -> Result<Session> {
        Ok(Session {
            tokenizer: Arc::new(Tokenizer::new(files.tokenizer().clone())?),
            name: name.to_string(),
            published: name.to_string(),
            files: files.clone(),
            base,
            adapter: None,
            trainer: None,
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

    pub fn describe_device(&self) -> String {
        self.base.device.describe()
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
        let Base { plan, device, decoder, .. } = &mut self.base;
        let patches = adapter.declare(plan, false);
        let prologue = adapter.prologue(plan, &patches, decoder);
        device.prepare(plan).await?;
        device.write_floats(patches.params, 0, flat);
        if let Some(prologue) = prologue {
            device.run(plan, prologue, 0)?;
        }
        (self.trainer, self.validation) = (None, None);
        self.set_adapter(adapter, patches);
        Ok(())
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

    /// Sequences built for another adapter are not used again.
    fn set_adapter(&mut self, adapter: Adapter, patches: Patches) {
        self.adapter = Some((adapter, patches));
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

    fn check_length(&self, seq_len: usize) -> Result<()> {
        let context = self.spec().context;
        if seq_len <= context {
            return Ok(());
        }
        let what = format!("is {seq_len}, the model knows {context} positions");
        Err(Error::setting("seq-len", what, format!("use at most {context}")))
    }

    /// Ids of the rows that the adapter puts before each text.
    fn virtual_ids(&self) -> Vec<u32> {
        virtual_ids(self.adapter.as_ref().map_or(0, |(adapter, _)| adapter.method.virtual_tokens()))
    }

    /// The method of the adapter on the model.
    pub fn method(&self) -> Option<&'static str> {
        self.adapter.as_ref().map(|(adapter, _)| adapter.method.name())
    }

    /// The adapter in PEFT's layout.
    pub async fn adapter_files(&mut self) -> Result<Files> {
        let flat = self.adapter_values().await?;
        let (adapter, _) = self.adapter.as_ref().expect("it has values");
        let base = BaseName { name: &self.published, sha256: Some(&self.base.sha256) };
        peft::files(adapter, &flat, base)
    }

    /// The adapter's numbers; an error where there is none, or where they are none.
    async fn adapter_values(&mut self) -> Result<Vec<f32>> {
        let Some((adapter, patches)) = &self.adapter else {
            return Err(Error::setting("adapter", "there is no adapter yet", "train one, or load one"));
        };
        let flat = self.base.device.read(patches.params, 0, adapter.len).await?;
        if let Some(i) = flat.iter().position(|x| !x.is_finite()) {
            let what = format!("number {i} of the adapter is {}", flat[i]);
            return Err(Error::device(what, "this is a fault of the device or the program; nothing was written"));
        }
        Ok(flat)
    }

    /// The base with the adapter added in, as a Hugging Face folder: `sink` gets file names and their next bytes.
    pub async fn merged(&mut self, dtype: Dtype, sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
        let flat = self.adapter_values().await?;
        let (adapter, _) = self.adapter.as_ref().expect("it has values");
        merge::merge(&self.files, adapter, &flat, dtype, sink).await
    }

    /// Mean loss, perplexity and accuracy over data encoded to `seq_len`, with the adapter if asked and if there is one.
    pub async fn evaluate(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        seq_len: usize,
        adapted: bool,
    ) -> Result<Evaluation> {
        let before = if adapted { self.virtual_ids() } else { Vec::new() };
        let seq_len = seq_len + before.len();
        self.check_length(seq_len)?;
        check_tokens(batch_size, seq_len)?;
        let options = PackOptions { b: batch_size, t: seq_len, packing: true, shuffle: false, seed: 0 };
        let batches = Batches::new(&data.prefixed(&before), options)?;
        self.prepare_evaluation(batch_size, seq_len, adapted).await?;
        let (io, sequence, _) = self.evaluation.as_ref().expect("just made");
        trainer::evaluate(&mut self.base, io, *sequence, &batches).await
    }
}
