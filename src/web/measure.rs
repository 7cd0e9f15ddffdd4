//! What data and answers are worth, as the page's worker asks it: the probe before a run, tasks after one.

use super::js::{Outcome, json, parse, thrown};
use super::session::{DataText, Session};
use crate::eval::{Item, Judge, System, Task, compare, example_json, items};
use crate::session::{self, Asking, ProbeOptions};
use crate::train::TrainOptions;
use js_sys::Function;
use serde::Deserialize;
use serde_json::json;
use wasm_bindgen::prelude::*;

/// `ProbeBudget`
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Budget {
    minutes: f64,
    steps: Option<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { minutes: 2.0, steps: None }
    }
}

/// `TaskOptions`
#[derive(Deserialize)]
#[serde(default)]
struct TaskOptions {
    task: Option<Task>,
    systems: Vec<String>,
    /// What it was tuned on: labels that the test lacks, and the constant answer to compare with.
    known: Option<DataText>,
    seq_len: usize,
    batch_size: usize,
    seed: u64,
}

impl Default for TaskOptions {
    fn default() -> Self {
        let TrainOptions { seq_len, batch_size, seed, .. } = TrainOptions::default();
        let systems = ["tuned", "base", "constant"].map(String::from).to_vec();
        TaskOptions { task: None, systems, known: None, seq_len, batch_size, seed }
    }
}

impl DataText {
    fn items(&self) -> Outcome<Vec<Item>> {
        items(&self.read()?, &self.text).map_err(thrown)
    }
}

/// Tells JavaScript `(what, done, total)`. A progress bar that throws is no reason to stop.
fn tell(progress: &Option<Function>, what: &str, done: u64, total: u64) {
    if let Some(progress) = progress {
        let _ = progress.call3(&JsValue::NULL, &what.into(), &(done as f64).into(), &(total as f64).into());
    }
}

/// `Task` that data look like; `data`: `DataText`.
#[wasm_bindgen]
pub fn guess_task(data: String) -> Outcome<String> {
    Ok(json(&Task::guess(&parse::<DataText>("data", &data)?.items()?)))
}

#[wasm_bindgen]
impl Session {
    /// `DataProbe`. `data`, `test`: `DataText`; `options`: `TrainOptions`; `budget`: `ProbeBudget`. The session has
    /// trained afterwards.
    pub async fn probe(
        &mut self,
        data: String,
        test: Option<String>,
        options: String,
        budget: String,
        progress: Option<Function>,
    ) -> Outcome<String> {
        let data: DataText = parse("data", &data)?;
        let test = test.map(|test| parse::<DataText>("test", &test)?.items()).transpose()?;
        let options: TrainOptions = parse("options", &options)?;
        let Budget { minutes, steps } = parse("budget", &budget)?;
        let (records, budget) = (data.read()?, ProbeOptions { minutes, steps });
        let all = items(&records, &data.text).map_err(thrown)?;
        let say = |what: &str, done, total| tell(&progress, what, done, total);
        let probe = self.0.probe(&records, &all, test.as_deref(), &options, &budget, say).await;
        Ok(json(&probe.map_err(thrown)?))
    }

    /// `TaskReport` of the adapter on the model, beside the base and a constant answer where they are asked for.
    /// `data`: `DataText`; `options`: `TaskOptions`.
    pub async fn assess(&mut self, data: String, options: String, progress: Option<Function>) -> Outcome<String> {
        let data: DataText = parse("data", &data)?;
        let options: TaskOptions = parse("options", &options)?;
        let (test, known) = (data.items()?, options.known.as_ref().map_or(Ok(Vec::new()), DataText::items)?);
        let task = options.task.unwrap_or_else(|| Task::guess(&test));
        let judge = Judge::new(task, &data.name, &test, &known, Vec::new()).map_err(thrown)?;
        let TaskOptions { seq_len, batch_size, seed, systems: asked, .. } = options;
        let asks = |name: &str| asked.iter().any(|system| system == name);
        let asking = Asking { seq_len, batch_size, seed, max_new_tokens: None };
        let mut systems = Vec::new();
        for (name, adapted) in [("tuned", true), ("base", false)].into_iter().filter(|(name, _)| asks(name)) {
            let mut say = |done, total| tell(&progress, name, done, total);
            let answers = self.0.answer(&judge, &test, &[], &asking, adapted, &mut say).await.map_err(thrown)?;
            systems.push(System { name: name.into(), note: None, answers });
        }
        systems.extend(session::constant(&judge, &test, &known).filter(|_| asks("constant")));
        let mut report = compare(&judge, &systems, seed).to_json();
        let example = |at: usize| example_json(&test[at], &systems, at);
        report["examples"] = json!((0..test.len()).map(example).collect::<Vec<_>>());
        Ok(report.to_string())
    }

    /// `Forgetting` of the adapter on the model.
    pub async fn forgetting(&mut self) -> Outcome<String> {
        Ok(json(&self.0.forgetting(0).await.map_err(thrown)?))
    }
}
