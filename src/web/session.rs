//! The session as the page's worker drives it. One call at a time: a promise has to settle before the next call.

use super::js::{Outcome, blobs, bytes, json, named_bytes, parse, parse_object, thrown};
use crate::adapter::merge::{Dtype, ModelFormat, Target};
use crate::adapter::{self, Format};
use crate::data::{ColumnMap, ReadOptions, Records, read};
use crate::device::{Device, DeviceChoice};
use crate::error::Error;
use crate::model::generate::Sampling;
use crate::session::{self, Likely, Prompt};
use crate::train::{Checkpoint, Evaluation, TrainOptions};
use crate::weights::ModelFiles;
use js_sys::{Array, Function, Promise, Uint8Array};
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

#[wasm_bindgen]
pub struct Session(pub(super) session::Session);

#[derive(Deserialize)]
struct CreateOptions {
    #[serde(default)]
    device: DeviceChoice,
    #[serde(default = "unnamed")]
    name: String,
    /// That may share a run on the CPU, this one among them, and the GiB that all of them may take.
    #[serde(default = "one")]
    workers: usize,
    #[serde(default)]
    workers_gib: f64,
    /// Whether shaders are measured; left out, on real GPUs.
    measure: Option<bool>,
}

fn one() -> usize {
    1
}

fn unnamed() -> String {
    "model".into()
}

/// `DataText`
#[derive(Deserialize)]
pub(super) struct DataText {
    pub(super) name: String,
    pub(super) text: String,
    #[serde(default)]
    columns: Option<ColumnMap>,
    #[serde(default)]
    skip_bad: bool,
}

impl DataText {
    pub(super) fn read(&self) -> Outcome<Records> {
        let columns = self.columns.clone().unwrap_or_default();
        let options = ReadOptions { columns, skip_bad: self.skip_bad, ..Default::default() };
        read(&self.name, self.text.as_bytes(), &options).map_err(thrown)
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct PreviewOptions {
    seq_len: usize,
    limit: usize,
    columns: Option<ColumnMap>,
}

impl Default for PreviewOptions {
    fn default() -> Self {
        PreviewOptions { seq_len: TrainOptions::default().seq_len, limit: 10, columns: None }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct EvaluateOptions {
    seq_len: usize,
    batch_size: usize,
    adapter: bool,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        let TrainOptions { seq_len, batch_size, .. } = TrainOptions::default();
        EvaluateOptions { seq_len, batch_size, adapter: true }
    }
}

/// `SamplingOptions`
#[derive(Deserialize)]
#[serde(default)]
struct GenerateOptions {
    #[serde(flatten)]
    sampling: Sampling,
    adapter: bool,
    chat: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { sampling: Sampling::default(), adapter: true, chat: true }
    }
}

/// What a merged model is written as.
#[derive(Deserialize)]
struct MergeTarget {
    format: ModelFormat,
    dtype: Dtype,
    name: String,
}

impl MergeTarget {
    fn parse(object: &JsValue) -> Outcome<Target> {
        let MergeTarget { format, dtype, name } = parse_object("target", object)?;
        Ok(Target::new(format, dtype, &name))
    }
}

/// Has shaders measured, where what is found out can be kept.
async fn tune(device: &mut Device, measure: Option<bool>, kept: &Function) -> Outcome<()> {
    let Device::Gpu(gpu) = device else { return Ok(()) };
    if measure.unwrap_or(!gpu.facts.software) {
        let promise = kept.call1(&JsValue::NULL, &gpu.tuning_name().into())?;
        if let Some(kept) = JsFuture::from(Promise::resolve(&promise)).await?.as_string() {
            gpu.tune_with(&kept);
        }
    }
    Ok(())
}

/// `Summary`
fn summary(summary: &session::Summary) -> Value {
    let mut out = serde_json::to_value(summary).expect("plain data");
    out["trainable"] = summary.trainable().into();
    out
}

impl Session {
    /// `Evaluation` of `step` with `best`, or null.
    fn validation(&self, evaluation: Option<Evaluation>, step: u64) -> String {
        let Some(evaluation) = evaluation else { return "null".into() };
        let mut out = serde_json::to_value(&evaluation).expect("plain data");
        out["best"] = self.0.best().is_some_and(|best| best.step == step).into();
        out.to_string()
    }
}

#[wasm_bindgen]
impl Session {
    /// `files`: `{ name, blob }[]`; `options`: `{ device, name, measure, workers, workers_gib }`;
    /// `progress(done, total)` in bytes. Where there is something to measure, `kept(gpu)` is asked what `newly_tuned`
    /// gave on this GPU, and promises it, "" where there is nothing yet, or null where nothing can be kept: then
    /// nothing is measured.
    pub async fn create(
        files: Array,
        options: JsValue,
        progress: Option<Function>,
        kept: Option<Function>,
    ) -> Outcome<Session> {
        let CreateOptions { device, name, measure, workers, workers_gib: gib } = parse_object("options", &options)?;
        let mut device = Device::open(device).await.map_err(thrown)?;
        if let Some(kept) = kept {
            tune(&mut device, measure, &kept).await?;
        }
        let files = ModelFiles::from_sources("the model's files", blobs(&files)?).await.map_err(thrown)?;
        let progress = |done: u64, total: u64| {
            if let Some(progress) = &progress {
                // A progress bar that throws is no reason to stop.
                let _ = progress.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
            }
        };
        let likely = Likely::default();
        let opened = session::Session::open_on(device, &likely, &files, &name, progress);
        let mut session = opened.await.map_err(thrown)?;
        session.offer_workers(session::Offer { workers, gib });
        Ok(Session(session))
    }

    /// Which shaders were measured to be fastest, to be kept; undefined where nothing new was measured.
    pub fn newly_tuned(&mut self) -> Option<String> {
        self.0.newly_tuned()
    }

    /// `DeviceInfo`
    pub fn device(&self) -> String {
        json(&self.0.device_info())
    }

    /// `ModelInfo`
    pub fn info(&self) -> String {
        json(&self.0.info())
    }

    /// `Preview` of a file; `options`: `{ seq_len, limit, columns }`.
    pub fn preview(&self, name: String, text: String, options: String) -> Outcome<String> {
        let PreviewOptions { seq_len, limit, columns } = parse("options", &options)?;
        let options = ReadOptions { columns: columns.unwrap_or_default(), ..Default::default() };
        Ok(json(&self.0.preview(&name, &text, &options, seq_len, limit).map_err(thrown)?))
    }

    /// `Summary` of a run that is not started; records that cannot be used are passed over. `validation`: `DataText`.
    pub async fn estimate(
        &self,
        name: String,
        text: String,
        columns: String,
        validation: Option<String>,
        options: String,
    ) -> Outcome<String> {
        let columns = parse("columns", &columns)?;
        let options: TrainOptions = parse("options", &options)?;
        let records = DataText { name, text, columns, skip_bad: true }.read()?;
        let usable = |v: DataText| DataText { skip_bad: true, ..v }.read();
        let validation = validation.map(|v| usable(parse("validation", &v)?)).transpose()?;
        Ok(summary(&self.0.estimate(&records, validation.as_ref(), &options, None).map_err(thrown)?).to_string())
    }

    /// `Summary` and `step`, the steps done already. `data`, `validation`: `DataText`; `options`: `TrainOptions`.
    pub async fn start_training(
        &mut self,
        data: String,
        validation: Option<String>,
        options: String,
        checkpoint: Option<Vec<u8>>,
    ) -> Outcome<String> {
        let records = parse::<DataText>("data", &data)?.read()?;
        let validation = validation.map(|v| parse::<DataText>("validation", &v)?.read()).transpose()?;
        let options: TrainOptions = parse("options", &options)?;
        let checkpoint = match checkpoint {
            Some(bytes) => Some(Checkpoint::read("checkpoint", bytes).await.map_err(thrown)?),
            None => None,
        };
        let started = self.0.start_training(&records, validation.as_ref(), options, None, checkpoint);
        let mut out = summary(&started.await.map_err(thrown)?);
        out["step"] = self.0.step_number().into();
        Ok(out.to_string())
    }

    /// One optimizer step: `{ done, step, reports }`. Reports may lag behind on a GPU; the last step brings all.
    pub async fn step(&mut self) -> Outcome<String> {
        let reports = self.0.step().await.map_err(thrown)?;
        Ok(json(&json!({ "done": self.0.done(), "step": self.0.step_number(), "reports": reports })))
    }

    /// The adapter's numbers before the step to come, for helpers.
    pub async fn parameters(&mut self) -> Outcome<Vec<f32>> {
        self.0.parameters().await.map_err(thrown)
    }

    /// Computes the share whose turn it is; `of` ("step" or "validation") is the work to come. `step` and `validate` do
    /// so for all shares that nobody has brought.
    pub async fn compute_share(&mut self, of: String) -> Outcome<()> {
        self.0.compute_share(parse("of", &json(&of))?).await.map_err(thrown)
    }

    /// Takes the share whose turn it is from a helper.
    pub fn add_share(&mut self, of: String, share: Vec<f32>) -> Outcome<()> {
        self.0.add_share(parse("of", &json(&of))?, share).map_err(thrown)
    }

    /// As a helper: a worker's share of step `step` (from 0), or of the validation, of the run that was started here as
    /// there.
    pub async fn share_of(&mut self, of: String, step: f64, params: Vec<f32>, worker: usize) -> Outcome<Vec<f32>> {
        self.0.share_of(parse("of", &json(&of))?, step as u64, &params, worker).await.map_err(thrown)
    }

    /// The same in sessions that have started the same run.
    pub fn run_sha256(&self) -> Outcome<String> {
        self.0.run_sha256().map_err(thrown)
    }

    /// `StepReport[]` of the steps that were not reported yet.
    pub async fn reports(&mut self) -> Outcome<String> {
        Ok(json(&self.0.reports().await.map_err(thrown)?))
    }

    /// `Evaluation` on the validation data with `best`, or null.
    pub async fn validate(&mut self) -> Outcome<String> {
        let evaluation = self.0.validate().await.map_err(thrown)?;
        Ok(self.validation(evaluation, self.0.step_number()))
    }

    /// `validate` as it would have been before the first step; to be asked after it, before any other.
    pub async fn validate_start(&mut self) -> Outcome<String> {
        let evaluation = self.0.validate_start().await.map_err(thrown)?;
        Ok(self.validation(evaluation, 0))
    }

    /// The run as it stands, to go on from in another session. Call `reports` before: those still under way are lost.
    pub async fn checkpoint(&mut self) -> Outcome<Vec<u8>> {
        self.0.checkpoint().await.map_err(thrown)
    }

    /// `run.json`: what `luthier train --from` replays.
    pub fn run_json(&self) -> Outcome<String> {
        Ok(self.0.run_record().map_err(thrown)?.to_json())
    }

    /// Loses the GPU, as a driver's reset would; false on the CPU. For tests of what happens then.
    pub fn lose_device(&self) -> bool {
        self.0.device().lose()
    }

    /// The best validation so far: `{ loss, step }`, or null.
    pub fn best(&self) -> String {
        json(&self.0.best())
    }

    /// Goes back to the adapter of the best validation: `{ loss, step }`, or null.
    pub fn use_best(&mut self) -> String {
        json(&self.0.use_best())
    }

    /// `GeneratedText[]` for `Prompt[]`. `on_text(prompt, piece)` gets text as it comes; where it returns false that
    /// prompt ends.
    pub async fn generate(&mut self, prompts: String, options: String, on_text: Option<Function>) -> Outcome<String> {
        let prompts: Vec<Prompt> = parse("prompts", &prompts)?;
        let GenerateOptions { sampling, adapter, chat } = parse("options", &options)?;
        let show = |prompt: usize, piece: &str| {
            let said = on_text.as_ref().map(|f| f.call2(&JsValue::NULL, &(prompt as u32).into(), &piece.into()));
            // A callback that throws has had enough.
            said.is_none_or(|answer| answer.is_ok_and(|value| value.as_bool() != Some(false)))
        };
        let texts = self.0.generate_streaming(&prompts, chat, adapter, &sampling, show).await.map_err(thrown)?;
        Ok(json(&texts))
    }

    /// `Evaluation` of the model on data: `DataText`; `options`: `{ seq_len, batch_size, adapter }`.
    pub async fn evaluate(&mut self, data: String, options: String) -> Outcome<String> {
        let records = parse::<DataText>("data", &data)?.read()?;
        let EvaluateOptions { seq_len, batch_size, adapter } = parse("options", &options)?;
        let data = self.0.encode(&records, seq_len).map_err(thrown)?;
        Ok(json(&self.0.evaluate(&data, batch_size, seq_len, adapter).await.map_err(thrown)?))
    }

    /// `Method` of the adapter on the model.
    pub fn method(&self) -> Option<String> {
        self.0.method().map(String::from)
    }

    /// The adapter in PEFT's layout: `{ name, bytes }[]`.
    pub async fn adapter_files(&mut self) -> Outcome<Array> {
        Ok(named_bytes(&self.0.adapter_files().await.map_err(thrown)?))
    }

    /// The adapter's files in a format ("peft", "gguf" or "mlx"), `{ name, bytes }[]`; `tuned` is what it is called.
    pub async fn exported(&mut self, format: String, tuned: String) -> Outcome<Array> {
        let format: Format = parse("format", &json(&format))?;
        Ok(named_bytes(&self.0.exported(format, &tuned).await.map_err(thrown)?))
    }

    /// `Agreement` of exported files, read back, with the adapter on the model; an error where they are another
    /// adapter.
    pub async fn check_adapter(&mut self, files: Array) -> Outcome<String> {
        Ok(json(&self.0.check_adapter(&bytes(&files)?).await.map_err(thrown)?))
    }

    /// Bytes of the merged model; `target`: `MergeTarget`.
    pub async fn merged_size(&self, target: JsValue) -> Outcome<f64> {
        let target = MergeTarget::parse(&target)?;
        Ok(self.0.merged_size(&target).await.map_err(thrown)? as f64)
    }

    /// `Agreement` of a merged model's files, `{ name, blob }[]`, with the live model; `target`: `MergeTarget`. Loads
    /// it.
    pub async fn check_merged(&mut self, files: Array, target: JsValue) -> Outcome<String> {
        let target = MergeTarget::parse(&target)?;
        let files = ModelFiles::from_sources("the merged model", blobs(&files)?).await.map_err(thrown)?;
        Ok(json(&self.0.check_merged(&files, target.dtype).await.map_err(thrown)?))
    }

    /// What Ollama reads beside the merged model's GGUF file of this name.
    pub fn modelfile(&self, gguf: String) -> String {
        session::modelfile(&gguf, &self.0.tokenizer)
    }

    /// The base with the adapter added in; `target`: `MergeTarget`. `sink(name, bytes)` gets the files' pieces, one
    /// file after the other, and may return a promise.
    pub async fn merged(&mut self, target: JsValue, sink: Function) -> Outcome<()> {
        let target = MergeTarget::parse(&target)?;
        let mut refused = None;
        let hand_over = async |name: &str, bytes: &[u8]| {
            let answer = sink.call2(&JsValue::NULL, &name.into(), &Uint8Array::from(bytes));
            let answer = match answer {
                Ok(value) => JsFuture::from(Promise::resolve(&value)).await,
                Err(thrown) => Err(thrown),
            };
            answer.map(drop).map_err(|thrown| {
                refused = Some(thrown);
                Error::Io { path: name.into(), what: "the receiver refused it".into(), hint: String::new() }
            })
        };
        let merged = self.0.merged(&target, hand_over).await;
        // What the receiver threw is thrown on as it is.
        merged.map_err(|error| refused.unwrap_or_else(|| thrown(error)))
    }

    /// Puts an adapter, `{ name, bytes }[]` in the layout of PEFT, llama.cpp or mlx-lm, on the model, in place of the
    /// one before. Returns what is to be said of one that was tuned on another base, as errors are thrown; else null.
    pub async fn load_adapter(&mut self, files: Array) -> Outcome<JsValue> {
        let files = bytes(&files)?;
        let tuned_on = adapter::base_sha256(&files).await.map_err(thrown)?;
        let (lora, flat) = adapter::read(&files, self.0.spec()).await.map_err(thrown)?;
        self.0.load_adapter(lora, &flat).await.map_err(thrown)?;
        Ok(self.0.other_base(tuned_on.as_deref()).map_or(JsValue::NULL, thrown))
    }

    /// Keeps the adapter on the model under a name, to be used again.
    pub fn keep_adapter(&mut self, name: String) -> Outcome<()> {
        self.0.keep_adapter(&name).map_err(thrown)
    }

    /// Puts an adapter that was kept on the model, or takes off the one that is there: then the model is its base.
    pub fn use_adapter(&mut self, name: Option<String>) -> Outcome<()> {
        self.0.use_adapter(name.as_deref()).map_err(thrown)
    }
}
