//! Text in, batches out. The user's records become ids with a loss mask, and those become packed `[B, T]` batches:
//!
//! ```text
//! file ── read ──> Record ── mask (template) ──> text + spans ── encode ──> Example ── pack ──> Batch
//! ```
//!
//! * `read`       JSONL, JSON arrays, CSV, TSV and plain text; every bad line is an error with its number and reason
//! * `record`     what a line may be: chat, prompt/completion, instruction, ShareGPT, text; detected from its fields
//! * `template`   the model's chat template, run in a sandbox (no loader, limited work, limited output)
//! * `mask`       which stretch of the rendered text the model is to learn: by position, never by token id
//! * `tokenizer`  text <-> ids, the chat façade used by training and by generation alike
//! * `encode`     record -> example, truncation, statistics
//! * `pack`       examples -> batches, a pure function of (seed, index); also the validation split
//! * `inspect`    shows all of it to a person (terminal) or a program (JSON lines)
//! * `preview`    the same before anything is decided: what a file holds, what the model would see, what is wrong

mod encode;
mod inspect;
mod mask;
mod pack;
mod preview;
mod problems;
mod read;
mod record;
mod template;
mod tokenizer;

pub use encode::{Dataset, EncodeOptions, Example, Stats};
pub use inspect::{Lengths, example_json, example_text, histogram, summary};
pub use mask::Piece;
pub use pack::{Batch, Batches, IGNORE, PackOptions, Split, split};
pub use preview::{Preview, preview};
#[cfg(not(target_arch = "wasm32"))]
pub use read::read_file;
pub use read::{Format, ReadOptions, Records, read};
pub use record::{ColumnMap, Message, Record, Turns};
pub use template::ChatTemplate;
pub use tokenizer::{TextStream, Tokenizer};
