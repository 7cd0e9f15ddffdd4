//! wasm-bindgen glue for a worker: JSON in, JSON out, errors as `{ code, message, hint }`. Nothing else. The shapes of
//! the JSON are in `www/luthier-web/src/types.ts`.

mod js;
mod measure;
mod session;

use crate::benchmark;
use crate::device::{Device, DeviceChoice};
use crate::train;
use js::{Outcome, json, parse, thrown};
use serde_json::json;
use wasm_bindgen::prelude::*;

#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}

/// This engine as it was compiled: what a helper starts from.
#[wasm_bindgen]
pub fn compiled() -> JsValue {
    wasm_bindgen::module()
}

/// The options of a run: `OptionRow[]`.
#[wasm_bindgen]
pub fn option_table() -> String {
    json(&train::option_table())
}

/// What `method` may be, and what goes with each: `MethodRow[]`.
#[wasm_bindgen]
pub fn method_table() -> String {
    json(&train::method_table())
}

/// `{ device, gflops }` of "auto", "webgpu" or "cpu"; takes about two seconds.
#[wasm_bindgen]
pub async fn benchmark(device: String) -> Outcome<String> {
    let mut device = Device::open(parse("device", &json(&device))?).await.map_err(thrown)?;
    let gflops = benchmark::gflops(&mut device).await.map_err(thrown)?;
    Ok(json(&json!({ "device": device.info(), "gflops": gflops })))
}

/// `KernelBench`: the kernels that a step spends its time in, beside what the device can do at most.
#[wasm_bindgen]
pub async fn benchmark_kernels(device: String) -> Outcome<String> {
    let choice: DeviceChoice = parse("device", &json(&device))?;
    let device = Device::open(choice).await.map_err(thrown)?;
    let info = device.info();
    let limits = benchmark::limits(device).await.map_err(thrown)?;
    let device = Device::open(choice).await.map_err(thrown)?;
    let kernels = benchmark::kernels(device, &limits).await.map_err(thrown)?;
    Ok(json(&json!({ "device": info, "limits": limits, "kernels": kernels })))
}
