//! Learning-rate schedules with warm-up, as transformers names them. Step t counts from 0 and the warm-up ends at its
//! full rate, so that the first step already learns: `lr·(t+1)/warmup`.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Schedule {
    Constant,
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// As flags and JSON spell them.
    pub const NAMES: [&str; 3] = ["constant", "linear", "cosine"];

    /// The learning rate of step `t` of `total`.
    pub fn rate(self, lr: f64, t: u64, warmup: u64, total: u64) -> f64 {
        if t < warmup {
            return lr * (t + 1) as f64 / warmup as f64;
        }
        let left = total.saturating_sub(warmup).max(1) as f64;
        let progress = ((t - warmup) as f64 / left).min(1.0);
        match self {
            Schedule::Constant => lr,
            Schedule::Linear => lr * (1.0 - progress),
            Schedule::Cosine => lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule::*;

    #[test]
    fn names_are_those_of_json() {
        let json = [Constant, Linear, Cosine].map(|s| serde_json::to_value(s).unwrap());
        assert_eq!(json, super::Schedule::NAMES.map(serde_json::Value::from));
    }

    #[test]
    fn warm_up_then_decay() {
        let rates = |s: super::Schedule| [0, 1, 2, 6, 9].map(|t| s.rate(1.0, t, 2, 10));
        assert_eq!(rates(Constant), [0.5, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rates(Linear), [0.5, 1.0, 1.0, 0.5, 0.125]);
        assert!((Cosine.rate(1.0, 6, 2, 10) - 0.5).abs() < 1e-12);
        assert_eq!(Linear.rate(1.0, 10, 2, 10), 0.0);
    }
}
