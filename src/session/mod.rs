//! The façade that the command line and the page both drive: a model on a device, an adapter on the model, a run.

use crate::adapter::Lora;
use crate::adapter::merge::{self, Dtype};
mod record;

pub use record::{DataRecord, ModelRecord, Results, RunRecord};

use crate::adapter::peft::{self, Files};
use crate::data::{
    Batches, Dataset, EncodeOptions, Message, PackOptions, Preview, ReadOptions, Records, Split, TextStream, Tokenizer,
    preview, split,
};
use crate::device::{Device, DeviceChoice};
use crate::digest::sha256;
use crate::error::{Error, Result};
use crate::model::generate::{Finish, Generated, Generator, Sampling};
use crate::model::{Base, Inputs, ModelSpec, Module, Patches};
use crate::train::{
    Checkpoint, Evaluation, Identity, MemoryPlan, StepReport, TrainOptions, Trainer, checkpoint, trainer,
};
use crate::weights::ModelFiles;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub struct Session {
    /// Shared, so that text can be shown while the session is busy.
    pub tokenizer: Arc<Tokenizer>,
    /// What adapters name as their base.
    pub name: String,
    /// The base's files: a merged model is made from them.
    files: ModelFiles,
    base: Base,
    adapter: Option<(Lora, Patches)>,
    trainer: Option<Trainer>,
    /// The run that was started last: what its checkpoints are checked against, and what is written about it.
    run: Option<(Identity, RunRecord)>,
    validation: Option<Batches>,
    generator: Option<Generator>,
    /// Sequence and inputs of evaluation outside a run, with their shape (B, T) and whether the adapter is used.
    evaluation: Option<(Inputs, usize, (usize, usize, bool))>,
}

/// What a run starts from, before anything is allocated.
struct Start {
    lora: Lora,
    flat: Vec<f32>,
    train: Dataset,
    batches: Batches,
    held_out: Option<Dataset>,
    validation: Option<Batches>,
}

/// What a run is about to do, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub device: String,
    pub examples: usize,
    pub validation_examples: usize,
    pub truncated: usize,
    pub duplicates: usize,
    pub tokens: usize,
    pub supervised_tokens: usize,
    pub rows: usize,
    pub steps: u64,
    pub trainable_parameters: u64,
    pub parameters: u64,
    pub memory: MemoryPlan,
}

impl Summary {
    /// The line PEFT prints.
    pub fn trainable(&self) -> String {
        let all = self.parameters + self.trainable_parameters;
        let percent = 100.0 * self.trainable_parameters as f64 / all as f64;
        format!(
            "trainable params: {} || all params: {} || trainable%: {percent:.4}",
            grouped(self.trainable_parameters),
            grouped(all)
        )
    }
}

/// What a base model is, as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    pub name: String,
    pub family: String,
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
    pub modules: [&'static str; 7],
}

/// The best validation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub loss: f64,
    pub step: u64,
}

/// A number for people: 1,369,728.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).expect("digits")).collect();
    groups.join(",")
}

/// SHA-256 of an adapter's numbers.
pub fn flat_sha256(flat: &[f32]) -> String {
    sha256(bytemuck::cast_slice(flat))
}

fn no_run() -> Error {
    Error::setting("train", "no run was started", "start one first")
}

/// Records as training sees them: whoever shows or measures data goes through here.
pub fn encode(records: &Records, tokenizer: &Tokenizer, seq_len: usize) -> Result<Dataset> {
    Dataset::encode(records, tokenizer, &EncodeOptions { seq_len, use_template: true })
}

/// One continuation.
#[derive(Clone, Debug, Serialize)]
pub struct Text {
    pub text: String,
    pub tokens: usize,
    pub finish: Finish,
}

/// Sequences decoded together; more prompts go in groups.
pub const SEQUENCES: usize = 8;

impl Session {
    /// Opens a model on a device. `progress` gets bytes streamed and in all.
    pub async fn open(
        files: &ModelFiles,
        name: &str,
        device: DeviceChoice,
        progress: impl FnMut(u64, u64),
    ) -> Result<Session> {
        let tokenizer = Arc::new(Tokenizer::new(files.tokenizer().clone())?);
        let base = Base::load(files, Device::open(device).await?, progress).await?;
        let name = name.to_string();
        Ok(Session {
            tokenizer,
            name,
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
            family: spec.family.clone(),
            parameters: spec.parameters(),
            layers: spec.layers,
            hidden: spec.hidden,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            vocab: spec.vocab,
            context: spec.context,
            format: self.base.decoder.main_format().name(),
            chat_template: self.tokenizer.chat_template().is_some(),
            modules: Module::ALL.map(Module::name),
        }
    }

    /// Puts an adapter on the model, for evaluation and generation; it takes the place of the one before, and a run
    /// that was under way is over.
    pub async fn load_adapter(&mut self, lora: Lora, flat: &[f32]) -> Result<()> {
        let patches = lora.declare(&mut self.base.plan, false);
        self.base.device.prepare(&self.base.plan).await?;
        self.base.device.write_floats(patches.params, 0, flat);
        (self.trainer, self.validation) = (None, None);
        self.set_adapter(lora, patches);
        Ok(())
    }

    /// Sequences built for another adapter are not used again.
    fn set_adapter(&mut self, lora: Lora, patches: Patches) {
        self.adapter = Some((lora, patches));
        self.evaluation = None;
        if let Some(generator) = &mut self.generator {
            generator.forget_adapter();
        }
    }

    /// Whether there is an adapter, trained or loaded.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
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

    /// What a run would be; nothing is allocated.
    pub fn estimate(
        &self,
        records: &Records,
        validation: Option<&Records>,
        options: &TrainOptions,
        initial: Option<(Lora, Vec<f32>)>,
    ) -> Result<Summary> {
        let start = self.prepare_run(records, validation, options, initial)?;
        let memory = trainer::estimate(&self.base, &start.lora, options)?;
        Ok(self.summary(&start, options, memory))
    }

    /// Encodes, splits, plans memory, allocates. `initial` continues an adapter instead of starting from PEFT's init;
    /// a checkpoint of this very run goes on where that one was.
    pub async fn start_training(
        &mut self,
        records: &Records,
        validation: Option<&Records>,
        options: TrainOptions,
        initial: Option<(Lora, Vec<f32>)>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Summary> {
        if self.trainer.is_some() {
            let hint = "open the model anew for another run";
            return Err(Error::setting("train", "this session has trained already", hint));
        }
        let continued = initial.as_ref().map(|(_, flat)| flat_sha256(flat));
        let start = self.prepare_run(records, validation, &options, initial)?;
        let examples = [Some(&start.train), start.held_out.as_ref()];
        let layout = format!("{:?}", start.lora.config);
        let identity = Identity::new(&self.base.sha256, layout, [Some(records), validation], examples, &options);
        checkpoint.as_ref().map_or(Ok(()), |c| identity.check(c))?;
        let memory = trainer::estimate(&self.base, &start.lora, &options)?;
        let summary = self.summary(&start, &options, memory);
        let mut record = self.record(records, validation, &options);
        record.init_adapter = continued.map(|sha256| ModelRecord { name: "adapter".into(), sha256 });
        let Start { lora, flat, batches, validation, .. } = start;
        let mut trainer = Trainer::new(&mut self.base, lora, flat, batches, options).await?;
        if let Some(checkpoint) = checkpoint {
            trainer.restore(&mut self.base, checkpoint.state);
        }
        self.run = Some((identity, record));
        self.validation = validation;
        self.set_adapter(trainer.lora.clone(), trainer.patches.clone());
        self.trainer = Some(trainer);
        Ok(summary)
    }

    fn prepare_run(
        &self,
        records: &Records,
        validation: Option<&Records>,
        options: &TrainOptions,
        initial: Option<(Lora, Vec<f32>)>,
    ) -> Result<Start> {
        options.check()?;
        self.check_length(options.seq_len)?;
        let all = self.encode(records, options.seq_len)?;
        let (train, held_out) = match validation {
            Some(records) => (all, Some(self.encode(records, options.seq_len)?)),
            None if options.val_fraction > 0.0 && all.examples.len() >= 10 => {
                let (train, held_out) = split(&all, Split::Fraction(options.val_fraction), options.seed)?;
                (train, Some(held_out).filter(|d| d.examples.iter().any(|e| e.targets() > 0)))
            }
            None => (all, None),
        };
        let (lora, flat) = match initial {
            Some((lora, flat)) => (lora, flat),
            None => {
                let lora = Lora::new(self.spec(), options.lora()?.check(self.spec())?)?;
                let flat = lora.init(options.seed);
                (lora, flat)
            }
        };
        let packed = |data: &Dataset, shuffle: bool| {
            let (b, t, packing) = (options.batch_size, options.seq_len, !options.no_packing);
            Batches::new(data, PackOptions { b, t, packing, shuffle, seed: options.seed })
        };
        let batches = packed(&train, !options.no_shuffle)?;
        let validation = held_out.as_ref().map(|d| packed(d, false)).transpose()?;
        Ok(Start { lora, flat, train, batches, held_out, validation })
    }

    fn summary(&self, start: &Start, options: &TrainOptions, memory: MemoryPlan) -> Summary {
        let stats = &start.train.stats;
        Summary {
            device: self.describe_device(),
            examples: start.train.examples.len(),
            validation_examples: start.held_out.as_ref().map_or(0, |d| d.examples.len()),
            truncated: stats.truncated,
            duplicates: stats.duplicates,
            tokens: stats.tokens,
            supervised_tokens: stats.supervised,
            rows: start.batches.rows(),
            steps: trainer::total_steps(&start.batches, options),
            trainable_parameters: start.lora.parameters(),
            parameters: self.spec().parameters(),
            memory,
        }
    }

    /// The run before its first step.
    fn record(&self, records: &Records, validation: Option<&Records>, options: &TrainOptions) -> RunRecord {
        RunRecord {
            luthier: env!("CARGO_PKG_VERSION").into(),
            model: ModelRecord { name: self.name.clone(), sha256: self.base.sha256.clone() },
            data: DataRecord::new(records),
            validation: validation.map(DataRecord::new),
            init_adapter: None,
            device: self.describe_device(),
            options: options.clone(),
            results: Results { step: 0, steps: 0, best: None },
        }
    }

    /// What `luthier train --from` replays: the run that was started last, as far as it came.
    pub fn run_record(&self) -> Result<RunRecord> {
        let (Some((_, record)), Some(trainer)) = (&self.run, &self.trainer) else { return Err(no_run()) };
        let results = Results { step: trainer.step_number(), steps: trainer.total_steps, best: self.best() };
        Ok(RunRecord { results, ..record.clone() })
    }

    /// SHA-256 of the base model.
    pub fn base_sha256(&self) -> &str {
        &self.base.sha256
    }

    /// The run as it stands, as the bytes of a file. Read [`Session::reports`] before: those still under way are lost
    /// with the session.
    pub async fn checkpoint(&mut self) -> Result<Vec<u8>> {
        let (Some((identity, _)), Some(trainer)) = (&self.run, &mut self.trainer) else { return Err(no_run()) };
        checkpoint::to_bytes(&trainer.state(&mut self.base).await?, identity)
    }

    fn check_length(&self, seq_len: usize) -> Result<()> {
        let context = self.spec().context;
        if seq_len <= context {
            return Ok(());
        }
        let what = format!("is {seq_len}, the model knows {context} positions");
        Err(Error::setting("seq-len", what, format!("use at most {context}")))
    }

    fn running(&mut self) -> Result<(&mut Base, &mut Trainer)> {
        match &mut self.trainer {
            Some(trainer) => Ok((&mut self.base, trainer)),
            None => Err(no_run()),
        }
    }

    pub fn done(&self) -> bool {
        self.trainer.as_ref().is_none_or(Trainer::done)
    }

    /// Steps submitted so far.
    pub fn step_number(&self) -> u64 {
        self.trainer.as_ref().map_or(0, Trainer::step_number)
    }

    /// One optimizer step; returns the reports that became known.
    pub async fn step(&mut self) -> Result<Vec<StepReport>> {
        let (base, trainer) = self.running()?;
        trainer.step(base).await
    }

    /// Reports of the steps whose numbers were not read yet.
    pub async fn reports(&mut self) -> Result<Vec<StepReport>> {
        let (base, trainer) = self.running()?;
        trainer.reports(base).await
    }

    /// Loss on the validation data, if there is any.
    pub async fn validate(&mut self) -> Result<Option<Evaluation>> {
        let Some(batches) = &self.validation else { return Ok(None) };
        let trainer = self.trainer.as_mut().expect("validation data belong to a run");
        trainer.evaluate(&mut self.base, batches).await.map(Some)
    }

    /// The best validation loss so far and its step.
    pub fn best(&self) -> Option<Best> {
        let (loss, step, _) = self.trainer.as_ref()?.best()?;
        Some(Best { loss, step })
    }

    /// Goes back to the adapter of the best validation loss, if one was measured.
    pub fn use_best(&mut self) -> Option<Best> {
        let (base, trainer) = (&mut self.base, self.trainer.as_ref()?);
        let (loss, step, flat) = trainer.best()?;
        trainer.set_adapter(base, flat);
        Some(Best { loss, step })
    }

    /// The adapter in PEFT's layout.
    pub async fn adapter_files(&mut self) -> Result<Files> {
        let flat = self.adapter_values().await?;
        let (lora, _) = self.adapter.as_ref().expect("it has values");
        peft::files(lora, &flat, &self.name)
    }

    /// The adapter's numbers; an error where there is none, or where they are none.
    async fn adapter_values(&mut self) -> Result<Vec<f32>> {
        let Some((lora, patches)) = &self.adapter else {
            return Err(Error::setting("adapter", "there is no adapter yet", "train one, or load one"));
        };
        let flat = self.base.device.read(patches.params, 0, lora.len).await?;
        if let Some(i) = flat.iter().position(|x| !x.is_finite()) {
            let what = format!("number {i} of the adapter is {}", flat[i]);
            return Err(Error::device(what, "this is a fault of the device or the program; nothing was written"));
        }
        Ok(flat)
    }

    /// The base with the adapter added in, as a Hugging Face folder: `sink` gets file names and their next bytes.
    pub async fn merged(&mut self, dtype: Dtype, sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
        let flat = self.adapter_values().await?;
        let (lora, _) = self.adapter.as_ref().expect("it has values");
        merge::merge(&self.files, lora, &flat, dtype, sink).await
    }

    /// Mean loss, perplexity and accuracy over data encoded to `seq_len`, with the adapter if asked and if there is one.
    pub async fn evaluate(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        seq_len: usize,
        adapted: bool,
    ) -> Result<Evaluation> {
        self.check_length(seq_len)?;
        let batches =
            Batches::new(data, PackOptions { b: batch_size, t: seq_len, packing: true, shuffle: false, seed: 0 })?;
        let shape = (batch_size, seq_len, adapted);
        if self.evaluation.as_ref().is_none_or(|(.., s)| *s != shape) {
            let Base { plan, device, decoder, .. } = &mut self.base;
            let io = Inputs::declare(plan, &decoder.spec, batch_size * seq_len, seq_len);
            let patches = self.adapter.as_ref().map(|(_, p)| p).filter(|_| adapted);
            let sequences = decoder.loss_sequences(plan, &io, patches, false, 0);
            device.prepare(plan).await?;
            device.write_floats(io.rope_table, 0, &decoder.spec.rope.table(decoder.spec.head_dim, seq_len));
            self.evaluation = Some((io, sequences.evaluate, shape));
        }
        let (io, sequence, _) = self.evaluation.as_ref().expect("just made");
        trainer::evaluate(&mut self.base, io, *sequence, &batches).await
    }

    /// A prompt's ids: as a user turn of the chat template, or as plain text.
    pub fn prompt_ids(&self, prompt: &str, chat: bool) -> Result<Vec<u32>> {
        if !chat {
            return self.tokenizer.encode(prompt, true);
        }
        self.tokenizer.encode_chat(&[Message::new("user", prompt)])
    }

    /// Continues prompts, some at a time, with the adapter if asked. `on_token` gets (prompt, token) as they come.
    pub async fn generate_ids(
        &mut self,
        prompts: &[Vec<u32>],
        adapted: bool,
        sampling: &Sampling,
        mut on_token: impl FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Generated>> {
        sampling.check()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if longest + 1 > self.spec().context {
            let what = format!("has {longest} tokens, the model knows {} positions", self.spec().context);
            return Err(Error::setting("prompt", what, "shorten it"));
        }
        let need = (longest + sampling.max_new_tokens).min(self.spec().context);
        self.prepare_generator(prompts.len().clamp(1, SEQUENCES), need).await?;
        let adapted = adapted && self.adapter.is_some();
        let generator = self.generator.as_ref().expect("just prepared");
        let stop = self.tokenizer.eos_ids().to_vec();
        let mut out = Vec::new();
        for (g, group) in prompts.chunks(generator.sequences()).enumerate() {
            let first = g * generator.sequences();
            let token = |i: usize, id: u32| on_token(first + i, id);
            out.extend(generator.run(&mut self.base, adapted, group, first, &stop, sampling, token).await?);
        }
        Ok(out)
    }

    /// Makes the cache, or a larger one; room is rounded up so that it seldom grows.
    async fn prepare_generator(&mut self, sequences: usize, capacity: usize) -> Result<()> {
        let fits = |g: &Generator| g.sequences() >= sequences && g.capacity() >= capacity;
        if !self.generator.as_ref().is_some_and(fits) {
            let capacity = capacity.next_multiple_of(256).min(self.spec().context.max(capacity));
            let patches = self.adapter.as_ref().map(|(_, p)| p);
            self.generator = Some(Generator::new(&mut self.base, patches, sequences, capacity).await?);
        }
        // The adapter may have come after the generator: compare before, train, compare after.
        match (&mut self.generator, &self.adapter) {
            (Some(generator), Some((_, patches))) if !generator.is_adapted() => {
                generator.adapt(&mut self.base, patches).await
            }
            _ => Ok(()),
        }
    }

    /// [`Session::generate_ids`] for texts.
    pub async fn generate(
        &mut self,
        prompts: &[String],
        chat: bool,
        adapted: bool,
        sampling: &Sampling,
    ) -> Result<Vec<Text>> {
        let ids = prompts.iter().map(|p| self.prompt_ids(p, chat)).collect::<Result<Vec<_>>>()?;
        let generated = self.generate_ids(&ids, adapted, sampling, |_, _| true).await?;
        Ok(generated.iter().map(|g| self.text(g)).collect())
    }

    /// [`Session::generate`] that hands text over as it comes: `on_text` gets (prompt, piece), whole characters only,
    /// and returns false to end that prompt.
    pub async fn generate_streaming(
        &mut self,
        prompts: &[String],
        chat: bool,
        adapted: bool,
        sampling: &Sampling,
        mut on_text: impl FnMut(usize, &str) -> bool,
    ) -> Result<Vec<Text>> {
        let ids = prompts.iter().map(|p| self.prompt_ids(p, chat)).collect::<Result<Vec<_>>>()?;
        let mut streams: Vec<TextStream> = ids.iter().map(|_| TextStream::default()).collect();
        let tokenizer = self.tokenizer.clone();
        let on_token = |prompt: usize, id: u32| {
            let piece = streams[prompt].push(&tokenizer, id);
            piece.is_empty() || on_text(prompt, &piece)
        };
        let generated = self.generate_ids(&ids, adapted, sampling, on_token).await?;
        for (prompt, (stream, g)) in streams.iter_mut().zip(&generated).enumerate() {
            let rest = stream.finish(&tokenizer);
            if !rest.is_empty() && g.finish != Finish::Cancelled {
                on_text(prompt, &rest);
            }
        }
        Ok(generated.iter().map(|g| self.text(g)).collect())
    }

    /// The text of a continuation, without its end token.
    pub fn text(&self, g: &Generated) -> Text {
        let shown = g.ids.len() - usize::from(g.finish == Finish::Stop);
        Text { text: self.tokenizer.decode(&g.ids[..shown], true), tokens: g.ids.len(), finish: g.finish }
    }
}
