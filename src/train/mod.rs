//! Training: options, learning-rate schedule, and the trainer that turns batches into steps.

pub mod options;
pub mod schedule;
pub mod trainer;

pub use options::{TrainOptions, option_table};
pub use schedule::Schedule;
pub use trainer::{Evaluation, MemoryPlan, StepReport, Trainer};
