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

#[cfg(not(target_arch = "wasm32"))]
fn now_ms() -> f64 {
    use std::sync::OnceLock;
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64() * 1e3
}

#[cfg(target_arch = "wasm32")]
fn now_ms() -> f64 {
    js_sys::Date::now()
}

/// Runs and milliseconds by kernel, gathered where an executor's `profile` is set: `benches/steps.rs --profile`.
pub type Profile = std::collections::BTreeMap<String, (u64, f64)>;
