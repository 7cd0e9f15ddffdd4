//! Training: options, learning-rate schedule, optimizer, the plan of a run, the trainer that turns batches into steps,
//! measurements, shares of steps for several workers, and checkpoints.

pub mod checkpoint;
pub mod evaluation;
pub mod optimizer;
pub mod options;
pub mod planned;
pub mod schedule;
pub mod shares;
pub mod trainer;

pub use checkpoint::{Checkpoint, Identity};
pub use evaluation::{Evaluation, ExampleLoss};
pub use optimizer::{Moments, Optim};
pub use options::{TrainOptions, check_tokens, method_table, option_table};
pub use planned::MemoryPlan;
pub use schedule::Schedule;
pub use shares::{Deal, Work};
pub use trainer::{State, StepReport, Trainer};
