//! What is trained: one file a method, the names other tools know it by, and its way into the base's weights.

pub mod lora;
pub mod merge;
pub mod peft;

pub use lora::{Lora, LoraConfig};
