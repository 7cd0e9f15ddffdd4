//! Models: what differs between families as data (`spec`, `family`), where adapters attach (`seam`), and the decoder
//! built from linears and blocks as steps of a plan.

pub mod agreement;
pub mod block;
pub mod decoder;
pub mod family;
pub mod generate;
pub mod linear;
pub mod load;
pub mod norm;
pub mod seam;
pub mod spec;
pub mod tensors;

pub use decoder::{Decoder, Inputs};
pub use load::Base;
pub use seam::{LinearPatch, Module, Patches, Site};
pub use spec::ModelSpec;
