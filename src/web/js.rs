//! Values on their way between Rust and JavaScript.

use crate::error::Error;
use crate::weights::Source;
use js_sys::{Array, Object, Reflect, Uint8Array};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;

pub type Outcome<T> = Result<T, JsValue>;

/// An error as JavaScript gets it.
pub fn thrown(error: Error) -> JsValue {
    object([("code", error.code().into()), ("message", error.to_string().into()), ("hint", error.hint().into())])
}

pub fn object<const N: usize>(entries: [(&str, JsValue); N]) -> JsValue {
    let object = Object::new();
    for (key, value) in entries {
        Reflect::set(&object, &key.into(), &value).expect("a plain object");
    }
    object.into()
}

pub fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data")
}

/// JSON given by the caller; `what` names it in errors.
pub fn parse<T: DeserializeOwned>(what: &str, json: &str) -> Outcome<T> {
    serde_json::from_str(json).map_err(|e| thrown(Error::setting(what, e.to_string(), "see types.ts for its shape")))
}

/// A plain JavaScript object given by the caller.
pub fn parse_object<T: DeserializeOwned>(what: &str, object: &JsValue) -> Outcome<T> {
    let text = js_sys::JSON::stringify(object).ok().and_then(|text| text.as_string());
    parse(what, text.as_deref().unwrap_or("null"))
}

fn field<T: JsCast>(file: &JsValue, name: &str) -> Outcome<T> {
    let value = Reflect::get(file, &name.into()).unwrap_or(JsValue::UNDEFINED);
    value.dyn_into().map_err(|_| {
        let what = format!("an entry has no `{name}` of the right type");
        thrown(Error::setting("files", what, "files are { name, blob } or { name, bytes }"))
    })
}

fn name(file: &JsValue) -> Outcome<String> {
    Ok(field::<js_sys::JsString>(file, "name")?.into())
}

/// `{ name, blob }[]`
pub fn blobs(files: &Array) -> Outcome<Vec<Source>> {
    files.iter().map(|file| Ok(Source::blob(name(&file)?, field(&file, "blob")?))).collect()
}

/// `{ name, bytes }[]` as Rust has them.
pub fn bytes(files: &Array) -> Outcome<Vec<Source>> {
    files.iter().map(|file| Ok(Source::bytes(name(&file)?, field::<Uint8Array>(&file, "bytes")?.to_vec()))).collect()
}

/// `{ name, bytes }[]` as JavaScript has them.
pub fn named_bytes(files: &[(String, Vec<u8>)]) -> Array {
    files
        .iter()
        .map(|(name, bytes)| object([("name", name.into()), ("bytes", Uint8Array::from(&bytes[..]).into())]))
        .collect()
}
