//! Bytes in, named tensors and tokenizer files out; nothing here knows of GPUs or training.
//!
//! ```text
//!  source (file, memory, Blob, URL: read by range)
//!    ├─ safetensors ─┐
//!    └─ gguf ────────┴─> Checkpoint: name -> TensorInfo, rows on request (stored: what the bytes mean)
//!  files: a folder, a .gguf or dropped files -> ModelFiles { config or metadata, checkpoint, tokenizer }
//!  hub: a registry name -> a folder in the cache
//! ```
//!
//! Files are hostile until checked: every count, length and offset is compared, in u64, with the length of its
//! source before anything is allocated, and no tensor is ever held whole unless it is asked for whole.

mod checkpoint;
pub mod files;
pub mod gguf;
pub mod gguf_tokenizer;
pub mod gguf_vocabulary;
pub mod gguf_write;
#[cfg(not(target_arch = "wasm32"))]
pub mod hub;
pub mod safetensors;
mod source;
mod stored;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use files::ModelFiles;
pub use gguf::Gguf;
pub use source::Source;
#[cfg(not(target_arch = "wasm32"))]
pub use source::atomic_write;
pub use stored::{StoredType, encode};

use crate::Error;

/// Everything needed to turn text into ids, whichever file it came from.
///
/// Encode with `add_special_tokens = false` and put `bos` in front where `add_bos` says so: a `tokenizer.json` may
/// or may not carry a post-processor for it, and so the rule lives in one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerFiles {
    /// The text of a Hugging Face `tokenizer.json`.
    pub tokenizer_json: String,
    /// Jinja source.
    pub chat_template: Option<String>,
    pub bos: Option<u32>,
    /// Tokens that end a text; the tokenizer's own `eos_token` is first.
    pub eos: Vec<u32>,
    /// Documents start with `bos`.
    pub add_bos: bool,
    pub pad: Option<u32>,
    /// Rows of the model's embedding. A tokenizer may know more tokens than its model, added and never trained.
    pub vocab: Option<usize>,
}

fn malformed(file: &str, at: impl Into<String>, what: impl Into<String>) -> Error {
    let hint = "the file is damaged or was made to do harm: download it again from a source you trust";
    Error::Malformed { file: file.into(), at: at.into(), what: what.into(), hint: hint.into() }
}

fn unsupported(file: &str, what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unsupported { file: file.into(), what: what.into(), hint: hint.into() }
}

/// What a file that is no model really is, by its first bytes: (what, what to do).
fn foreign(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const CONVERT: &str = "convert to safetensors where it was made, e.g. \
        `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)`; pickled files can run code and stay shut";
    const AGAIN: &str = "the download went wrong: fetch the real file (`git lfs pull`, or the page's download link)";
    let known: [(&[u8], &str, &str); 9] = [
        (b"PK\x03\x04", "a zip archive (PyTorch .bin/.pt or NumPy .npz)", CONVERT),
        (b"\x80\x02", "a Python pickle (old PyTorch .bin/.pt)", CONVERT),
        (b"\x80\x04", "a Python pickle", CONVERT),
        (b"\x80\x05", "a Python pickle", CONVERT),
        (b"\x89HDF", "an HDF5 file (Keras)", CONVERT),
        (b"\x1f\x8b", "a gzip archive", "unpack it first"),
        (b"version https://git-lfs", "a Git LFS pointer, not the weights", AGAIN),
        (b"<", "a web page", AGAIN),
        (b"GGUF", "a GGUF file", "open it by a path that ends in .gguf"),
    ];
    known.iter().find(|(magic, ..)| head.starts_with(magic)).map(|&(_, what, hint)| (what, hint))
}
