//! What is trained: one file a method, the names other tools know it by, and its way into the base's weights.

pub mod base;
pub mod dora;
pub mod fold;
pub mod ia3;
pub mod lora;
pub mod merge;
pub mod method;
pub mod methods;
pub mod peft;
pub mod prefix;
pub mod prompt;

pub use lora::{Lora, LoraConfig};
pub use method::{Adapter, Initial, Method, Part, Role};
pub use methods::{Kind, Settings};
