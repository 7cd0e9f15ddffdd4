//! Luthier tunes small language models on the machine they are used on: LoRA through hand-written WGSL kernels on
//! WebGPU (natively by wgpu, in a browser as wasm) or on the CPU by the same plan.
//!
//! Text becomes batches in [`data`], files become named tensors in [`weights`]; [`model`] turns both into steps of a
//! [`plan`] over the kernels in [`ops`], which [`gpu`] or [`cpu`] replay. [`adapter`] says what is trained, [`train`]
//! runs it, [`eval`] measures what came out, and [`session`] is the face that the command line and the page drive.

pub mod adapter;
pub mod benchmark;
#[cfg(not(target_arch = "wasm32"))]
mod cache;
pub mod clock;
pub mod cpu;
pub mod data;
pub mod device;
pub mod digest;
pub mod error;
pub mod eval;
pub mod format;
pub mod gpu;
pub mod model;
pub mod num;
pub mod ops;
pub mod plan;
pub mod session;
pub(crate) mod simd;
pub mod train;
#[cfg(target_arch = "wasm32")]
pub mod web;
pub mod weights;

pub use error::{Error, Result};
