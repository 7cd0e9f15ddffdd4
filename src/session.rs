//! The façade that the command line and the page both drive: a model on a device, an adapter on the model, a run.

use crate::adapter::peft::{self, Files};
use crate::adapter::{Lora, LoraConfig};
use crate::data::{Batches, Dataset, EncodeOptions, Message, PackOptions, Records, Split, Tokenizer, split};
use crate::device::{Device, DeviceChoice};
use crate::error::{Error, Result};
use crate::model::generate::{Finish, Generated, Generator, Sampling};
use crate::model::{Base, Inputs, ModelSpec, Patches};
use crate::train::trainer::evaluate;
use crate::train::{Evaluation, MemoryPlan, StepReport, TrainOptions, Trainer};
use crate::weights::ModelFiles;
use serde::Serialize;
use std::sync::Arc;

pub struct Session {
    /// Shared, so that text can be shown while the session is busy.
    pub tokenizer: Arc<Tokenizer>,
    /// What adapters name as their base.
    pub name: String,
    base: Base,
    adapter: Option<(Lora, Patches)>,
    trainer: Option<Trainer>,
    validation: Option<Batches>,
    generator: Option<Generator>,
    /// Sequence and inputs of evaluation outside a run, with their shape (B, T).
    evaluation: Option<(Inputs, usize, (usize, usize))>,
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

/// A number for people: 1,369,728.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).expect("digits")).collect();
    groups.join(",")
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
            base,
            adapter: None,
            trainer: None,
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

    /// Puts an adapter on the model, for evaluation and generation.
    pub async fn load_adapter(&mut self, lora: Lora, flat: &[f32]) -> Result<()> {
        assert!(self.adapter.is_none(), "a session has one adapter");
        let patches = lora.declare(&mut self.base.plan, false);
        self.base.device.prepare(&self.base.plan).await?;
        self.base.device.write_floats(patches.params, 0, flat);
        self.adapter = Some((lora, patches));
        Ok(())
    }

    pub fn encode(&self, records: &Records, seq_len: usize) -> Result<Dataset> {
        encode(records, &self.tokenizer, seq_len)
    }

    /// Encodes, splits, plans memory, allocates. `initial` continues an adapter instead of starting from PEFT's init.
    pub async fn start_training(
        &mut self,
        records: &Records,
        validation: Option<&Records>,
        options: TrainOptions,
        initial: Option<(Lora, Vec<f32>)>,
    ) -> Result<Summary> {
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
                let lora = Lora::new(self.spec(), self.lora_config(&options)?)?;
                let flat = lora.init(options.seed);
                (lora, flat)
            }
        };
        let packed = |data: &Dataset, shuffle: bool| {
            let (b, t, packing) = (options.batch_size, options.seq_len, !options.no_packing);
            Batches::new(data, PackOptions { b, t, packing, shuffle, seed: options.seed })
        };
        let batches = packed(&train, !options.no_shuffle)?;
        let rows = batches.rows();
        self.validation = held_out.as_ref().map(|d| packed(d, false)).transpose()?;
        let trainer = Trainer::new(&mut self.base, lora, flat, batches, options).await?;
        self.adapter = Some((trainer.lora.clone(), trainer.patches.clone()));
        let stats = &train.stats;
        let summary = Summary {
            device: self.describe_device(),
            examples: train.examples.len(),
            validation_examples: held_out.map_or(0, |d| d.examples.len()),
            truncated: stats.truncated,
            duplicates: stats.duplicates,
            tokens: stats.tokens,
            supervised_tokens: stats.supervised,
            rows,
            steps: trainer.total_steps,
            trainable_parameters: trainer.lora.parameters(),
            parameters: self.spec().parameters(),
            memory: trainer.memory.clone(),
        };
        self.trainer = Some(trainer);
        Ok(summary)
    }

    fn lora_config(&self, options: &TrainOptions) -> Result<LoraConfig> {
        options.lora()?.check(self.spec())
    }

    fn check_length(&self, seq_len: usize) -> Result<()> {
        let context = self.spec().context;
        if seq_len <= context {
            return Ok(());
        }
        let what = format!("is {seq_len}, the model knows {context} positions");
        Err(Error::setting("seq-len", what, format!("use at most {context}")))
    }

    fn running(&mut self) -> (&mut Base, &mut Trainer) {
        (&mut self.base, self.trainer.as_mut().expect("training was started"))
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
        let (base, trainer) = self.running();
        trainer.step(base).await
    }

    /// Reports of the steps whose numbers were not read yet.
    pub async fn reports(&mut self) -> Result<Vec<StepReport>> {
        let (base, trainer) = self.running();
        trainer.reports(base).await
    }

    /// Loss on the validation data, if there is any.
    pub async fn validate(&mut self) -> Result<Option<Evaluation>> {
        let Some(batches) = &self.validation else { return Ok(None) };
        let trainer = self.trainer.as_mut().expect("training was started");
        trainer.evaluate(&mut self.base, batches).await.map(Some)
    }

    /// Goes back to the adapter of the best validation loss, if one was measured: (loss, step).
    pub fn restore_best(&mut self) -> Option<(f64, u64)> {
        let (base, trainer) = (&mut self.base, self.trainer.as_ref()?);
        let (loss, step, flat) = trainer.best()?;
        trainer.set_adapter(base, flat);
        Some((loss, step))
    }

    /// The adapter in PEFT's layout.
    pub async fn adapter_files(&mut self) -> Result<Files> {
        let (lora, patches) = self.adapter.as_ref().expect("there is an adapter");
        let flat = self.base.device.read(patches.params, 0, lora.len).await?;
        if let Some(i) = flat.iter().position(|x| !x.is_finite()) {
            let what = format!("number {i} of the adapter is {}", flat[i]);
            return Err(Error::device(what, "this is a fault of the device or the program; nothing was written"));
        }
        peft::files(lora, &flat, &self.name)
    }

    /// Mean loss, perplexity and accuracy over records, with the adapter if one was loaded.
    pub async fn evaluate(&mut self, records: &Records, batch_size: usize, seq_len: usize) -> Result<Evaluation> {
        let data = self.encode(records, seq_len)?;
        self.evaluate_data(&data, batch_size, seq_len).await
    }

    /// [`Session::evaluate`] of records that are encoded already, to the same `seq_len`.
    pub async fn evaluate_data(&mut self, data: &Dataset, batch_size: usize, seq_len: usize) -> Result<Evaluation> {
        self.check_length(seq_len)?;
        let batches =
            Batches::new(data, PackOptions { b: batch_size, t: seq_len, packing: true, shuffle: false, seed: 0 })?;
        let shape = (batch_size, seq_len);
        if self.evaluation.as_ref().is_none_or(|(.., s)| *s != shape) {
            let Base { plan, device, decoder } = &mut self.base;
            let io = Inputs::declare(plan, &decoder.spec, batch_size * seq_len, seq_len);
            let patches = self.adapter.as_ref().map(|(_, p)| p);
            let sequences = decoder.loss_sequences(plan, &io, patches, false, 0);
            device.prepare(plan).await?;
            device.write_floats(io.rope_table, 0, &decoder.spec.rope.table(decoder.spec.head_dim, seq_len));
            self.evaluation = Some((io, sequences.evaluate, shape));
        }
        let (io, sequence, _) = self.evaluation.as_ref().expect("just made");
        evaluate(&mut self.base, io, *sequence, &batches).await
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

    /// The text of a continuation, without its end token.
    pub fn text(&self, g: &Generated) -> Text {
        Text { text: self.tokenizer.decode(&g.ids, true), tokens: g.ids.len(), finish: g.finish }
    }
}
