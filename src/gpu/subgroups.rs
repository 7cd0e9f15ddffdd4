//! Subgroups in browsers. wgpu 30 cannot ask a browser for them (gfx-rs/wgpu#10146: one line is missing in its list of
//! features), so what it asks for is completed on its way: `requestAdapter` is replaced while wgpu calls it, so that
//! the adapter it gets has a `requestDevice` that adds the feature. To be deleted with the first wgpu that can.

use js_sys::{Array, Function, Promise, Reflect};
use std::cell::Cell;
use std::rc::Rc;
use wasm_bindgen::prelude::*;

const FEATURE: &str = "subgroups";

fn get(object: &JsValue, name: &str) -> Option<JsValue> {
    Reflect::get(object, &name.into()).ok().filter(|v| !v.is_undefined() && !v.is_null())
}

/// Runs `ask`, which requests an adapter; also says whether the adapter's devices will have subgroups.
pub async fn asking<T>(ask: impl AsyncFnOnce() -> T) -> (T, bool) {
    let granted = Rc::new(Cell::new(false));
    let Some(gpu) = get(&js_sys::global(), "navigator").and_then(|n| get(&n, "gpu")) else {
        return (ask().await, false);
    };
    let Some(Ok(request)) = get(&gpu, "requestAdapter").map(JsCast::dyn_into::<Function>) else {
        return (ask().await, false);
    };
    let (this, seen) = (gpu.clone(), granted.clone());
    let complete = Closure::<dyn FnMut(JsValue) -> JsValue>::new(move |adapter: JsValue| {
        seen.set(extend(&adapter).is_some());
        adapter
    });
    let replaced = Closure::<dyn FnMut(JsValue) -> Result<Promise, JsValue>>::new(move |options: JsValue| {
        let asked: Promise = request.call1(&this, &options)?.dyn_into()?;
        let then: Function = get(&asked, "then").ok_or("no promise")?.dyn_into()?;
        then.call1(&asked, complete.as_ref())?.dyn_into()
    });
    let _ = Reflect::set(&gpu, &"requestAdapter".into(), replaced.as_ref());
    let result = ask().await;
    let _ = Reflect::delete_property(gpu.unchecked_ref::<js_sys::Object>(), &"requestAdapter".into());
    (result, granted.get())
}

/// Gives an adapter that has subgroups a `requestDevice` that asks for them.
fn extend(adapter: &JsValue) -> Option<()> {
    let features = get(adapter, "features")?;
    let has: Function = get(&features, "has")?.dyn_into().ok()?;
    has.call1(&features, &FEATURE.into()).ok()?.is_truthy().then_some(())?;
    let request: Function = get(adapter, "requestDevice")?.dyn_into().ok()?;
    let this = adapter.clone();
    let replaced = Closure::<dyn FnMut(JsValue) -> Result<JsValue, JsValue>>::new(move |wanted: JsValue| {
        let features = get(&wanted, "requiredFeatures").map_or_else(Array::new, |f| Array::from(&f));
        features.push(&FEATURE.into());
        Reflect::set(&wanted, &"requiredFeatures".into(), &features)?;
        request.call1(&this, &wanted)
    });
    Reflect::set(adapter, &"requestDevice".into(), replaced.as_ref()).ok()?;
    replaced.forget(); // lives as long as the adapter
    Some(())
}
