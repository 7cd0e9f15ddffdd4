//! Training: options, learning-rate schedule, the trainer that turns batches into steps, shares of steps for several
//! workers, and checkpoints.

pub mod checkpoint;
pub mod options;
pub mod schedule;
pub mod shares;
pub mod trainer;

pub use checkpoint::{Checkpoint, Identity};
pub use options::{TrainOptions, check_tokens, method_table, option_table};
pub use schedule::Schedule;
pub use shares::{Deal, Work};
pub use trainer::{Evaluation, ExampleLoss, MemoryPlan, State, StepReport, Trainer};
