//! wasm-bindgen glue for the page's worker: JSON in, JSON out, errors as `{ code, message, hint }`. Nothing else.

use crate::adapter::peft::Files;
use crate::data::{ReadOptions, read};
use crate::device::DeviceChoice;
use crate::error::Error;
use crate::model::generate::Sampling;
use crate::train::TrainOptions;
use crate::weights::{ModelFiles, Source};
use js_sys::{Array, Object, Reflect, Uint8Array};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;

#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}

fn js_error(e: Error) -> JsValue {
    let object = Object::new();
    for (key, value) in [("code", e.code().to_string()), ("message", e.to_string()), ("hint", e.hint().to_string())] {
        Reflect::set(&object, &key.into(), &value.into()).expect("a plain object");
    }
    object.into()
}

fn options<T: DeserializeOwned>(json: &str) -> Result<T, JsValue> {
    serde_json::from_str(json).map_err(|e| js_error(Error::setting("options", e.to_string(), "see the list of flags")))
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data")
}

#[derive(Deserialize)]
struct CreateOptions {
    device: DeviceChoice,
}

#[derive(Deserialize)]
#[serde(default)]
struct GenerateOptions {
    max_new_tokens: usize,
    temperature: f32,
    top_p: f32,
    top_k: usize,
    seed: u64,
    adapter: bool,
    chat: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        let s = Sampling::default();
        GenerateOptions {
            max_new_tokens: s.max_new_tokens,
            temperature: s.temperature,
            top_p: s.top_p,
            top_k: s.top_k,
            seed: s.seed,
            adapter: true,
            chat: true,
        }
    }
}

#[wasm_bindgen]
pub struct Session(crate::session::Session);

#[wasm_bindgen]
impl Session {
    /// `files`: array of `{ name, blob }`; `options`: `{ device: "auto" | "webgpu" | "cpu" }`.
    pub async fn create(files: Array, options: JsValue) -> Result<Session, JsValue> {
        let text = js_sys::JSON::stringify(&options)?.as_string().unwrap_or_default();
        let CreateOptions { device } = self::options(&text)?;
        let mut sources = Vec::new();
        for file in files.iter() {
            let name = Reflect::get(&file, &"name".into())?.as_string().unwrap_or_default();
            let blob: web_sys::Blob = Reflect::get(&file, &"blob".into())?.dyn_into()?;
            sources.push(Source::blob(name, blob));
        }
        let files = ModelFiles::from_sources("the model's files", sources).await.map_err(js_error)?;
        let session = crate::session::Session::open(&files, "nano", device, |_, _| {}).await.map_err(js_error)?;
        Ok(Session(session))
    }

    pub fn device(&self) -> String {
        self.0.describe_device()
    }

    /// Returns the run's summary as JSON. `options`: the flags of `luthier train` in snake_case.
    pub async fn start_training(&mut self, text: String, name: String, options: String) -> Result<String, JsValue> {
        let options: TrainOptions = self::options(&options)?;
        let records = read(&name, text.as_bytes(), &ReadOptions::default()).map_err(js_error)?;
        let summary = self.0.start_training(&records, None, options, None).await.map_err(js_error)?;
        Ok(json(&summary))
    }

    /// One optimizer step: `{ done, reports: [...] }`. Reports may lag behind on a GPU; the last step brings all.
    pub async fn step(&mut self) -> Result<String, JsValue> {
        let reports = self.0.step().await.map_err(js_error)?;
        Ok(json(&serde_json::json!({ "done": self.0.done(), "reports": reports })))
    }

    /// Loss on the held-out share of the data as JSON, or null.
    pub async fn validate(&mut self) -> Result<String, JsValue> {
        Ok(json(&self.0.validate().await.map_err(js_error)?))
    }

    /// `prompts`: JSON array of user prompts. Returns a JSON array of answers.
    pub async fn generate(&mut self, prompts: String, options: String) -> Result<String, JsValue> {
        let prompts: Vec<String> = self::options(&prompts)?;
        let o: GenerateOptions = self::options(&options)?;
        let sampling = Sampling {
            temperature: o.temperature,
            top_p: o.top_p,
            top_k: o.top_k,
            seed: o.seed,
            max_new_tokens: o.max_new_tokens,
        };
        let texts = self.0.generate(&prompts, o.chat, o.adapter, &sampling).await.map_err(js_error)?;
        Ok(json(&texts.iter().map(|t| &t.text).collect::<Vec<_>>()))
    }

    /// The adapter in PEFT's layout: array of `{ name, bytes }`.
    pub async fn adapter_files(&mut self) -> Result<Array, JsValue> {
        let files: Files = self.0.adapter_files().await.map_err(js_error)?;
        let out = Array::new();
        for (name, bytes) in files {
            let object = Object::new();
            Reflect::set(&object, &"name".into(), &name.into())?;
            Reflect::set(&object, &"bytes".into(), &Uint8Array::from(&bytes[..]).into())?;
            out.push(&object);
        }
        Ok(out)
    }
}
