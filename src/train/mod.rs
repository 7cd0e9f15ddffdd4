//! Training: options, learning-rate schedule, the trainer that turns batches into steps, and checkpoints of it.

pub mod checkpoint;
pub mod options;
pub mod schedule;
pub mod trainer;

pub use checkpoint::{Checkpoint, Identity};
pub use options::{TrainOptions, option_table};
pub use schedule::Schedule;
pub use trainer::{Evaluation, MemoryPlan, State, StepReport, Trainer};
