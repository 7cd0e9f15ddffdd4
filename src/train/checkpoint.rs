//! A run between two steps as a file, so that it can go on later as if it had never stopped.
//!
//! The file is safetensors: `adapter`, `m`, `v` and, after a validation, `best`, each flat as the trainer has it;
//! moments of 8 bits are U32 [blocks, 65], packed as `shaders/adamw_8bit.wgsl` says. Its metadata say which run this is
//! (the hashes of base, data and options: [`Identity`]) and where it stands. One of them is a SHA-256 over the whole
//! file, its own digits taken as zeros: a torn or altered file is never gone on from.

use super::optimizer::{Moments, Optim};
use super::options::TrainOptions;
use super::trainer::State;
use crate::data::{Dataset, Records};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::ops::adamw_8bit::BLOCK_WORDS;
use crate::weights::Source;
use crate::weights::safetensors::{self, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const VERSION: &str = "1";
const MOMENTS: [&str; 2] = ["m", "v"];
const SEAL: &[u8] = b"\"sha256\":\"";
const UNSEALED: [u8; 64] = [b'0'; 64];

/// What has to be the same for a run to go on, by name. The hashes are SHA-256.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    base: String,
    data: String,
    validation: String,
    /// Tokens and masks: columns, tokenizer and chat template show in them.
    examples: String,
    adapter: String,
    options: String,
}

impl Identity {
    /// `base` is the model's hash, `adapter` says its layout; `examples` are those of training and validation.
    pub fn new(
        base: &str,
        adapter: String,
        records: [Option<&Records>; 2],
        examples: [Option<&Dataset>; 2],
        options: &TrainOptions,
    ) -> Identity {
        let [data, validation] = records.map(|r| r.map_or("none".into(), |r| r.sha256.clone()));
        let examples = examples.map(|e| e.map_or("none".into(), Dataset::digest)).join(" ");
        // Recomputed activations are the same bits, so memory may differ from machine to machine.
        let TrainOptions { kept_blocks, memory_gib, .. } = TrainOptions::default();
        let options = TrainOptions { kept_blocks, memory_gib, ..options.clone() };
        let options = serde_json::to_string(&options).expect("plain data");
        Identity { base: base.into(), data, validation, examples, adapter, options }
    }

    /// Of all that has to be the same.
    pub fn sha256(&self) -> String {
        let mut digest = Digest::default();
        for (name, value) in self.pairs() {
            digest.add(format!("{name} {} {value}\n", value.len()).as_bytes());
        }
        digest.hex()
    }

    fn pairs(&self) -> [(&'static str, &str); 6] {
        [
            ("base", &self.base),
            ("data", &self.data),
            ("validation", &self.validation),
            ("examples", &self.examples),
            ("adapter", &self.adapter),
            ("options", &self.options),
        ]
    }

    /// Refuses a checkpoint of another run; says all that differs.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let of = &checkpoint.identity;
        let mut problems = Vec::new();
        for (what, now, then) in [
            ("base model", &self.base, &of.base),
            ("data", &self.data, &of.data),
            ("validation data", &self.validation, &of.validation),
        ] {
            if now != then {
                problems.push(format!("{what}: sha256 {now}, the checkpoint's is {then}"));
            }
        }
        if self.options != of.options {
            problems.extend(different_options(&self.options, &of.options));
        }
        if self.adapter != of.adapter {
            problems.push(format!("adapter: {}, the checkpoint's is {}", self.adapter, of.adapter));
        }
        if problems.is_empty() && self.examples != of.examples {
            problems.push("examples: the same data were read by other columns, or by another tokenizer".into());
        }
        if problems.is_empty() {
            return Ok(());
        }
        let hint = "a run goes on only with the model, data and options it was started with; else start a new one";
        Err(Error::Mismatch { file: checkpoint.file.clone(), problems, hint: hint.into() })
    }
}

fn different_options(now: &str, then: &str) -> Vec<String> {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (now, then) = (parse(now), parse(then));
    // An option that one side does not know had no other value there than its default: null, where it is unknown here.
    let defaults = serde_json::to_value(TrainOptions::default()).expect("plain data");
    let value = |of: &Value, key: &str| of.get(key).unwrap_or(&defaults[key]).clone();
    let keys: BTreeSet<&String> =
        [&now, &then].into_iter().filter_map(Value::as_object).flat_map(|o| o.keys()).collect();
    let differs = keys.into_iter().map(|key| (key, value(&now, key), value(&then, key))).filter(|(_, a, b)| a != b);
    let said = |(key, now, then): (&String, Value, Value)| {
        format!("--{}: {now}, the checkpoint's is {then}", key.replace('_', "-"))
    };
    differs.map(said).collect()
}

/// A checkpoint that was read and found whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What errors call it.
    pub file: String,
    pub identity: Identity,
    pub state: State,
}

/// The bytes of a checkpoint.
pub fn to_bytes(state: &State, identity: &Identity) -> Result<Vec<u8>> {
    let mut tensors = vec![Tensor::floats("adapter", &state.adapter)];
    for (name, words) in MOMENTS.into_iter().zip(&state.moments.words) {
        tensors.push(match state.moments.optim {
            Optim::AdamW => Tensor::floats(name, bytemuck::cast_slice(words)),
            Optim::AdamW8bit => Tensor::words(name, BLOCK_WORDS, words),
        });
    }
    let mut metadata = BTreeMap::from(identity.pairs().map(|(key, value)| (key, value.to_string())));
    metadata.insert("checkpoint", VERSION.into());
    metadata.insert("step", state.step.to_string());
    if let Some((loss, step, adapter)) = &state.best {
        tensors.push(Tensor::floats("best", adapter));
        // Bits, since decimals have to come back exactly.
        metadata.insert("best_loss", format!("{:016x}", loss.to_bits()));
        metadata.insert("best_step", step.to_string());
    }
    metadata.insert("sha256", String::from_utf8_lossy(&UNSEALED).into_owned());
    let pairs: Vec<(&str, &str)> = metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut bytes = safetensors::write(&tensors, &pairs)?;
    let at = seal_at(&bytes).expect("the seal was just written");
    let seal = digest(&bytes, at);
    bytes[at..at + seal.len()].copy_from_slice(seal.as_bytes());
    Ok(bytes)
}

/// Where the digits of the seal stand: in the header, whose length comes first.
fn seal_at(bytes: &[u8]) -> Option<usize> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let header = bytes.get(8..8usize.checked_add(usize::try_from(length).ok()?)?)?;
    let at = 8 + header.windows(SEAL.len()).position(|window| window == SEAL)? + SEAL.len();
    (bytes.len() >= at + UNSEALED.len()).then_some(at)
}

/// The hash of a file whose seal stands at `at`.
fn digest(bytes: &[u8], at: usize) -> String {
    let mut digest = Digest::default();
    digest.add(&bytes[..at]);
    digest.add(&UNSEALED);
    digest.add(&bytes[at + UNSEALED.len()..]);
    digest.hex()
}

impl Checkpoint {
    /// Reads the bytes of the file called `file`; refuses what is torn, altered or no checkpoint.
    pub async fn read(file: &str, bytes: Vec<u8>) -> Result<Checkpoint> {
        let at = seal_at(&bytes).ok_or_else(|| broken(file, "this is no checkpoint, or only the beginning of one"))?;
        let (written, found) = (&bytes[at..at + UNSEALED.len()], digest(&bytes, at));
        if written != found.as_bytes() {
            let written = String::from_utf8_lossy(written);
            let what = format!("its {} bytes have sha256 {found}, it was written with {written}", bytes.len());
            return Err(broken(file, what));
        }
        let mut words = safetensors::words(&bytes)?;
        let parsed = safetensors::open(vec![Source::bytes(file, bytes)], None).await?;
        let field = |name: &str| parsed.metadata.get(name).ok_or_else(|| broken(file, format!("{name} is missing")));
        let number = |name: &str, radix: u32| {
            let text = field(name)?;
            u64::from_str_radix(text, radix).map_err(|_| broken(file, format!("{name} is '{text}'")))
        };
        let version = field("checkpoint")?;
        if version != VERSION {
            let what = format!("a checkpoint of version {version}; this program reads version {VERSION}");
            return Err(Error::Unsupported { file: file.into(), what, hint: "use the program that wrote it".into() });
        }
        let text = |name: &str| field(name).cloned();
        let identity = Identity {
            base: text("base")?,
            data: text("data")?,
            validation: text("validation")?,
            examples: text("examples")?,
            adapter: text("adapter")?,
            options: text("options")?,
        };
        let flat = async |name: &str| parsed.read_f32(parsed.get(name)?).await;
        let best = match parsed.tensors.contains_key("best") {
            true => Some((f64::from_bits(number("best_loss", 16)?), number("best_step", 10)?, flat("best").await?)),
            false => None,
        };
        let moments = match MOMENTS.map(|name| words.remove(name)) {
            [Some(m), Some(v)] => Moments { optim: Optim::AdamW8bit, words: [m, v] },
            _ => {
                let words = [flat("m").await?, flat("v").await?].map(bytemuck::cast_vec);
                Moments { optim: Optim::AdamW, words }
            }
        };
        let state = State { step: number("step", 10)?, adapter: flat("adapter").await?, moments, best };
        Ok(Checkpoint { file: file.into(), identity, state })
    }
}

fn broken(file: &str, what: impl Into<String>) -> Error {
    Error::Malformed {
        file: file.into(),
        at: "checkpoint".into(),
        what: what.into(),
        hint: "it is torn or was altered: go on from the one before it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that began before there was a choice of optimizer goes on with the one there was, and with no other.
    #[test]
    fn an_option_that_a_checkpoint_does_not_know_had_its_default() {
        let run = |options: &TrainOptions| Identity::new("base", "adapter".into(), [None; 2], [None; 2], options);
        let now = run(&TrainOptions::default());
        let mut older = now.clone();
        let mut options: Value = serde_json::from_str(&older.options).unwrap();
        assert_eq!(options.as_object_mut().unwrap().remove("optim"), Some("adamw".into()));
        older.options = options.to_string();
        let state = State { step: 0, adapter: vec![], moments: Moments::zeros(Optim::AdamW, 0), best: None };
        let checkpoint = Checkpoint { file: "c".into(), identity: older, state };
        now.check(&checkpoint).unwrap();
        let other = run(&TrainOptions { optim: Optim::AdamW8bit, ..Default::default() });
        let error = other.check(&checkpoint).unwrap_err().to_string();
        assert!(error.contains("--optim: \"adamw_8bit\", the checkpoint's is \"adamw\""), "{error}");
        let mut newer = checkpoint;
        newer.identity.options = newer.identity.options.replacen('{', "{\"yet_unknown\":7,", 1);
        let error = now.check(&newer).unwrap_err().to_string();
        assert!(error.contains("--yet-unknown: null, the checkpoint's is 7"), "{error}");
    }
}
