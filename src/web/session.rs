//! The session as the page's worker drives it. One call at a time: a promise has to settle before the next call.

use super::js::{Outcome, blobs, bytes, json, named_bytes, parse, parse_object, thrown};
use crate::adapter::merge::Dtype;
use crate::adapter::peft;
use crate::data::{ColumnMap, ReadOptions, Records, read};
use crate::device::DeviceChoice;
use crate::error::Error;
use crate::model::generate::Sampling;
use crate::session::{self, Prompt};
use crate::train::{Checkpoint, Evaluation, TrainOptions};
use crate::weights::{ModelFiles, Source};
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
    /// `files`: `{ name, blob }[]`; `options`: `{ device, name }`; `progress(done, total)` in bytes.
    pub async fn create(files: Array, options: JsValue, progress: Option<Function>) -> Outcome<Session> {
        let CreateOptions { device, name } = parse_object("options", &options)?;
        let files = ModelFiles::from_sources("the model's files", blobs(&files)?).await.map_err(thrown)?;
        let progress = |done: u64, total: u64| {
            if let Some(progress) = &progress {
                // A progress bar that throws is no reason to stop.
                let _ = progress.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
            }
        };
        session::Session::open(&files, &name, device, progress).await.map(Session).map_err(thrown)
    }

    /// `DeviceInfo`
    pub fn device(&self) -> String {
        json(&self.0.device().info())
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

    /// `GeneratedText[]` for `Prompt[]`. `on_text(prompt, piece)` gets text as it comes; where it returns false that prompt ends.
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

    /// The base with the adapter added in, as a Hugging Face folder. `sink(name, bytes)` gets the files' pieces, one file
    /// after the other, and may return a promise. `dtype`: "f32", "f16" or "bf16".
    pub async fn merged(&mut self, dtype: String, sink: Function) -> Outcome<()> {
        let dtype: Dtype = parse("dtype", &json(&dtype))?;
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
        let merged = self.0.merged(dtype, hand_over).await;
        // What the receiver threw is thrown on as it is.
        merged.map_err(|error| refused.unwrap_or_else(|| thrown(error)))
    }

    /// Puts an adapter in PEFT's layout, `{ name, bytes }[]`, on the model, in place of the one before. Returns what is to
    /// be said of one that was tuned on another base, as errors are thrown; else null.
    pub async fn load_adapter(&mut self, files: Array) -> Outcome<JsValue> {
        let files = bytes(&files)?;
        let find = |name: &str| find(&files, name).map_err(thrown);
        let (config, weights) = (find(peft::CONFIG)?, find(peft::WEIGHTS)?);
        let tuned_on = peft::base_sha256(weights.clone()).await.map_err(thrown)?;
        let (lora, flat) = peft::read(&config, weights, self.0.spec()).await.map_err(thrown)?;
        self.0.load_adapter(lora, &flat).await.map_err(thrown)?;
        Ok(self.0.other_base(tuned_on.as_deref()).map_or(JsValue::NULL, thrown))
    }
}

fn find(files: &[Source], name: &str) -> Result<Source, Error> {
    let found = files.iter().find(|f| f.file_name() == name).cloned();
    found.ok_or_else(|| Error::Unsupported {
        file: "the adapter's files".into(),
        what: format!("{name} is missing"),
        hint: format!("an adapter is {} and {}", peft::CONFIG, peft::WEIGHTS),
    })
}
