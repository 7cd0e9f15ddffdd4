//! The weights room: hostile files, quantised blocks, tokenizers, folders, downloads.

#[path = "common/mod.rs"]
mod common;
#[path = "weights/support.rs"]
mod support;

#[path = "weights/files.rs"]
mod files;
#[path = "weights/hostile_gguf.rs"]
mod hostile_gguf;
#[path = "weights/hostile_safetensors.rs"]
mod hostile_safetensors;
#[path = "weights/hub.rs"]
mod hub;
#[path = "weights/reading.rs"]
mod reading;
#[path = "weights/tokenizers.rs"]
mod tokenizers;
