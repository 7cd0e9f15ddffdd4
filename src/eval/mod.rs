//! What a model can do, measured: figures of a task with their uncertainty, beside what a constant answer and the
//! untuned model reach. Nothing here computes with a model: answers and losses come in, verdicts go out.
//!
//! * `item`       records as items: a prompt, the expected answer, and what the task needs besides
//! * `judge`      an answer against an item, by task: `labels`, `fields`, `chrf`, `bleu`, `facts`, `command`, `api`,
//!   `call`
//! * `score`      figures from counts, and their intervals by the bootstrap
//! * `report`     systems side by side: what differs, what is not shown to differ
//! * `near`       near-duplicates, and a split that they do not straddle
//! * `curve`      how the loss falls with the data
//! * `probe`      what a short probe says of data and model
//! * `findings`   what ruins runs: leakage, noise, contradictions, cut answers, rates
//! * `general`    plain sentences, on which a tuned model should not have become worse

pub mod api;
mod bleu;
pub mod call;
mod chrf;
mod command;
pub mod curve;
mod facts;
mod fields;
pub mod findings;
pub mod general;
mod item;
mod judge;
mod labels;
pub mod near;
pub mod probe;
mod python;
mod report;
pub mod score;

pub use item::{Item, items, with_answer, with_shots};
pub use judge::{Judge, Mark, Task};
pub use report::{Answered, Comparison, Report, Row, System, compare, example_json};
pub use score::Estimate;
