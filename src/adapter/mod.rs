//! What is trained: one file a method, and the names other tools know it by.

pub mod lora;
pub mod peft;

pub use lora::{Lora, LoraConfig};
