//! `cargo xtask test`: every test there is, the real page in a real browser among them.

use crate::demo::{self, Options};
use crate::report::{Report, Score};
use crate::requirements::{self, Need};
use crate::shell::{Outcome, cargo, check, phase};

/// Of the held-out rows with new values in known phrasings, the share the tuned model must answer exactly.
const LEARNT: f64 = 0.8;
/// The last losses over the first: at most this.
const FALLEN: f64 = 0.5;

pub fn run(skip_missing: bool) -> Outcome {
    let required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
    if skip_missing && required {
        return Err("--skip-missing with REQUIRE_GPU=1: the one allows skipping, the other forbids it".into());
    }
    let missing = phase("requirements", || requirements::prepare(skip_missing))?;
    phase("cargo test", || check(&mut cargo(&["test", "--workspace"])))?;
    if missing.contains(&Need::Browser) {
        println!("=== the page in headless Chromium: SKIPPED, no browser");
        return Ok(());
    }
    phase("the page in headless Chromium", page)
}

fn page() -> Outcome {
    let reports = demo::headless(&Options::default())?;
    reports.iter().for_each(Report::print_summary);
    reports.iter().try_for_each(learnt)
}

/// The run did what the demo promises: the loss fell, and the tuned model answers what the base could not.
fn learnt(report: &Report) -> Outcome {
    let device = &report.device;
    let (first, last) = report.first_and_last_loss().ok_or_else(|| format!("{device}: no step was reported"))?;
    if last > FALLEN * first {
        return Err(format!("{device}: the loss went from {first:.4} to {last:.4}, not below {FALLEN} of it").into());
    }
    let share = |phase| report.score_of("values", phase).map(Score::share);
    let scores = share("before").zip(share("after"));
    let (before, after) = scores.ok_or_else(|| format!("{device}: no exact match was reported"))?;
    if after < LEARNT || after <= before {
        return Err(format!(
            "{device}: exact match on new values went from {before:.2} to {after:.2}, asked: {LEARNT}"
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(losses: &[f64], after: u64) -> Report {
        let score = |phase: &str, exact| Score { set: "values".into(), phase: phase.into(), exact, total: 10 };
        let scores = vec![score("before", 0), score("after", after)];
        Report { device: "cpu".into(), losses: losses.to_vec(), scores, done: true }
    }

    #[test]
    fn what_counts_as_learnt() {
        let falling: Vec<f64> = (0..20).map(|step| 3.0 - 0.15 * step as f64).collect();
        assert!(learnt(&report(&falling, 9)).is_ok());
        assert!(learnt(&report(&falling, 7)).is_err());
        assert!(learnt(&report(&[3.0; 20], 9)).is_err());
        assert!(learnt(&report(&[], 9)).is_err());
        assert!(learnt(&Report { scores: Vec::new(), ..report(&falling, 9) }).is_err());
    }
}
