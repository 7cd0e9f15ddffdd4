//! Time since a moment, natively and in a browser worker (where `std::time::Instant` does not exist).

#[derive(Clone, Copy, Debug)]
pub struct Instant(f64);

impl Instant {
    pub fn now() -> Instant {
        Instant(now_ms())
    }

    pub fn elapsed_ms(&self) -> f64 {
        now_ms() - self.0
    }
}

/// Lets the worker take its messages (a cancel, a pause) when it has computed for a while; natively nothing waits.
pub async fn breathe() {
    #[cfg(target_arch = "wasm32")]
    web::breathe().await;
}

/// Waits until what happened in the browser by now has been told.
#[cfg(target_arch = "wasm32")]
pub async fn turn() {
    web::turn().await;
}

#[cfg(target_arch = "wasm32")]
mod web {
    use super::Instant;
    use std::cell::Cell;
    use wasm_bindgen_futures::JsFuture;

    /// Computing goes on this long without looking up.
    const EVERY_MS: f64 = 50.0;

    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    pub async fn breathe() {
        if LAST.get().is_none_or(|last| last.elapsed_ms() >= EVERY_MS) {
            turn().await;
        }
    }

    pub async fn turn() {
        let Ok(channel) = web_sys::MessageChannel::new() else { return };
        // A message to oneself comes behind those that wait already; timers would be slowed down in hidden tabs.
        let promise = js_sys::Promise::new(&mut |resolve, _| {
            channel.port1().set_onmessage(Some(&resolve));
            let _ = channel.port2().post_message(&wasm_bindgen::JsValue::NULL);
        });
        let _ = JsFuture::from(promise).await;
        channel.port1().close();
        LAST.set(Some(Instant::now()));
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn now_ms() -> f64 {
    use std::sync::OnceLock;
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64() * 1e3
}

/// Finer than the time of day, and never set back.
#[cfg(target_arch = "wasm32")]
fn now_ms() -> f64 {
    use wasm_bindgen::JsCast;
    thread_local! {
        static CLOCK: Option<web_sys::Performance> =
            js_sys::global().dyn_into::<web_sys::WorkerGlobalScope>().ok().and_then(|worker| worker.performance());
    }
    CLOCK.with(|clock| clock.as_ref().map_or_else(js_sys::Date::now, web_sys::Performance::now))
}

/// Runs and milliseconds by kernel, gathered where an executor's `profile` is set: `cargo xtask bench --profile`.
pub type Profile = std::collections::BTreeMap<String, (u64, f64)>;
