//! The golden models, adapters and batches, and a rig that drives the sequences of one shape by hand.
#![allow(dead_code)]

use ::safetensors::SafeTensors;
use ::safetensors::tensor::TensorView;
use luthier::adapter::merge::{Target, merge};
use luthier::adapter::{Adapter, Lora, LoraConfig, Role, peft};
use luthier::data::{Batch, Batches, Dataset, Example, IGNORE, PackOptions, Stats};
use luthier::device::Device;
use luthier::model::decoder::{Keep, LossSequences};
use luthier::model::load::Opened;
use luthier::model::tensors::{FileTensor, Tensor};
use luthier::model::{Base, Inputs, Module, Patches, family};
use luthier::ops::control::{Control, REPORT};
use luthier::plan::{Buf, Plan, SequenceId};
use luthier::train::evaluation::write_batch;
use luthier::train::{Schedule, TrainOptions, Trainer};
use luthier::weights::{ModelFiles, Source, TokenizerFiles, safetensors};
use pollster::block_on;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Rows and tokens a row of the golden batches.
pub const B: usize = 2;
pub const T: usize = 24;

pub fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// A golden model, which has no tokenizer.
pub fn files(model: &str) -> ModelFiles {
    let config = serde_json::from_slice(&std::fs::read(golden(model).join("config.json")).unwrap()).unwrap();
    let weights = Source::file(golden(model).join("model.safetensors")).unwrap();
    let checkpoint = block_on(safetensors::open(vec![weights], None)).unwrap();
    ModelFiles::Hf { config, checkpoint, tokenizer: TokenizerFiles::default(), companions: Vec::new() }
}

/// The files of a merged model.
pub fn merged(
    files: &ModelFiles,
    (lora, flat): &(Adapter, Vec<f32>),
    target: &Target,
) -> luthier::Result<BTreeMap<String, Vec<u8>>> {
    let mut out: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let sink = async |name: &str, bytes: &[u8]| {
        out.entry(name.into()).or_default().extend_from_slice(bytes);
        Ok(())
    };
    block_on(merge(files, lora, flat, target, sink)).map(|()| out)
}

/// The golden models of every family.
pub const FAMILIES: [&str; 9] = [
    "tiny",
    "tiny_llama3",
    "tiny_qwen2",
    "tiny_qwen3",
    "tiny_mistral",
    "tiny_gemma2",
    "tiny_gemma3",
    "tiny_gpt2",
    "tiny_phi3",
];

/// The golden model as far as a GGUF file can tell it: that has no `query_pre_attn_scalar`, and knows Mistral as Llama,
/// which has no window.
pub fn in_gguf(model: &str) -> ModelFiles {
    let mut files = files(model);
    let ModelFiles::Hf { config, .. } = &mut files else { panic!("a folder") };
    if !config["query_pre_attn_scalar"].is_null() {
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
    }
    if config["model_type"] == "mistral" {
        config["sliding_window"] = json!(null);
    }
    files
}

/// A model of a golden model's family whose rows are whole blocks of 32, with random weights.
pub fn wide(model: &str) -> ModelFiles {
    let mut files = in_gguf(model);
    let ModelFiles::Hf { config, .. } = &mut files else { panic!("a folder") };
    for (key, width) in [
        ("hidden_size", 32),
        ("n_embd", 32),
        ("intermediate_size", 64),
        ("n_inner", 64),
        ("head_dim", 16),
        ("query_pre_attn_scalar", 16),
    ] {
        if !config[key].is_null() {
            config[key] = width.into();
        }
    }
    random(files)
}

/// The model with random weights.
pub fn random(mut files: ModelFiles) -> ModelFiles {
    let ModelFiles::Hf { config, checkpoint, .. } = &mut files else { panic!("a folder") };
    let spec = family::from_config(config, "random").unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = spec.file_tensors(&spec.family.hf).iter().map(noise).collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(::safetensors::Dtype::F32, shape.clone(), bytes).unwrap()));
    let bytes = ::safetensors::serialize(views, None).unwrap();
    *checkpoint = block_on(safetensors::open(vec![Source::bytes("model.safetensors", bytes)], None)).unwrap();
    files
}

/// Random values for a tensor: around 1 for norms, and small enough for activations to stay near 1 elsewhere.
fn noise(file: &FileTensor) -> (String, Vec<usize>, Vec<u8>) {
    let seed = file.name.bytes().fold(7u64, |seed, b| seed.wrapping_mul(31).wrapping_add(b as u64));
    let (middle, spread) = match file.parts[0] {
        Tensor::Norm(_) => (1.0, 0.1),
        Tensor::Weight(_) => (0.0, 0.1),
        _ => (0.0, 0.5),
    };
    let value = |i: u64| (middle + spread * luthier::num::normal(seed, 0, i)) as f32;
    let bytes = (0..file.shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
    (file.name.clone(), file.shape.iter().map(|extent| *extent as usize).collect(), bytes)
}

/// [`spelt`] for a golden model.
pub fn with_tokenizer(model: &str) -> ModelFiles {
    spelt(files(model))
}

/// A model with a tokenizer of its 96 tokens: two that are special, and a letter each.
pub fn spelt(files: ModelFiles) -> ModelFiles {
    let letters = ('!'..='~').enumerate().map(|(i, letter)| (letter.to_string(), json!(i + 2)));
    let special = [("<s>".to_string(), json!(0)), ("</s>".to_string(), json!(1))];
    let vocab: serde_json::Map<_, _> = special.clone().into_iter().chain(letters).collect();
    let added = special.map(|(content, id)| json!({ "id": id, "content": content, "special": true }));
    let document = json!({
        "added_tokens": added,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    let tokenizer = TokenizerFiles {
        tokenizer_json: document.to_string(),
        bos: Some(0),
        eos: vec![1],
        vocab: Some(96),
        ..Default::default()
    };
    match files {
        ModelFiles::Hf { config, checkpoint, companions, .. } => {
            ModelFiles::Hf { config, checkpoint, companions, tokenizer }
        }
        other => other,
    }
}

pub fn base(model: &str, device: Device) -> Base {
    base_of(&files(model), device)
}

pub fn base_of(files: &ModelFiles, device: Device) -> Base {
    block_on(Base::load(files, device, |_, _| {})).unwrap()
}

/// How far rounding to a type may move a number of a block. A block's scale is itself rounded to f16.
pub fn rounding(kind: &str, block: &[f32]) -> f64 {
    let most = block.iter().fold(0.0, |m: f64, x| m.max(x.abs() as f64));
    let (low, high) = block.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x as f64), h.max(*x as f64)));
    match kind {
        "F32" => 0.0,
        "F16" => most / 2048.0,
        "BF16" => most / 256.0,
        "Q8_0" => most / 254.0 + most / 2048.0,
        // From -8 to 7 steps: the far end of the other sign is a whole step off.
        "Q4_0" => most / 8.0 + most / 2048.0,
        "Q4_1" => (high - low) / 30.0 + (high - low + most) / 2048.0,
        other => panic!("{other} was not asked for"),
    }
}

/// The base with no binding above `max_binding` bytes.
pub fn sharded(model: &str, mut device: Device, max_binding: u64) -> Base {
    let (files, mut plan) = (files(model), Plan::default());
    let opened = block_on(Opened::new(&files)).unwrap();
    let decoder = opened.declare(&mut plan, max_binding).unwrap();
    block_on(device.prepare(&plan)).unwrap();
    let sha256 = block_on(opened.stream(&decoder, &mut device, |_, _| {})).unwrap();
    Base { plan, device, decoder, sha256 }
}

/// An adapter of all linears with noise in A and, unless `identity`, in B.
pub fn adapter(base: &Base, dropout: f32, identity: bool) -> (Adapter, Vec<f32>) {
    let config =
        LoraConfig { rank: 4, alpha: 8.0, dropout, rslora: false, modules: Module::ALL.to_vec(), ..Default::default() };
    let lora = Adapter::new(base.spec(), Lora::new(base.spec(), config).unwrap());
    let mut flat = lora.init(7);
    let noise = lora.init(8);
    for b in lora.parts.iter().filter(|part| matches!(part.role, Role::B(_)) && !identity) {
        // The noise for A, which is uniform around 0, serves B as well.
        let source = noise.iter().filter(|x| **x != 0.0).cycle().skip(b.at);
        b.of_mut(&mut flat).iter_mut().zip(source).for_each(|(b, x)| *b = *x);
    }
    (lora, flat)
}

/// Tensors by name, as f64.
pub struct Tensors(BTreeMap<String, (Vec<usize>, Vec<u32>)>);

impl Tensors {
    pub fn parse(bytes: &[u8]) -> Tensors {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let words = |data: &[u8]| data.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        Tensors(file.iter().map(|(name, t)| (name.to_string(), (t.shape().to_vec(), words(t.data())))).collect())
    }

    pub fn open(path: &str) -> Tensors {
        Tensors::parse(&std::fs::read(golden(path)).unwrap())
    }

    /// Name to shape.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.0.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect()
    }

    pub fn words(&self, name: &str) -> Vec<u32> {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1.clone()
    }

    pub fn floats(&self, name: &str) -> Vec<f64> {
        self.words(name).into_iter().map(|w| f32::from_bits(w) as f64).collect()
    }

    /// The tensors whose names start with `prefix`, without it.
    pub fn under(&self, prefix: &str) -> BTreeMap<String, Vec<f64>> {
        let names = self.0.keys().filter_map(|name| name.strip_prefix(prefix));
        names.map(|name| (name.to_string(), self.floats(&format!("{prefix}{name}")))).collect()
    }

    /// The batch whose tensors' names start with `prefix`.
    pub fn batch(&self, prefix: &str) -> Batch {
        let words = |name: &str| self.words(&format!("{prefix}{name}"));
        let spans: Vec<[u32; 2]> = words("spans").chunks_exact(2).map(|c| [c[0], c[1]]).collect();
        let (ids, positions, targets) = (words("ids"), words("positions"), words("targets"));
        let supervised = targets.iter().filter(|t| **t != IGNORE).count();
        Batch { b: B, t: T, tokens: ids.len(), ids, targets, positions, spans, supervised }
    }
}

/// The parts of a flat adapter buffer under PEFT's names.
pub fn by_key(lora: &Adapter, flat: &[f32]) -> BTreeMap<String, Vec<f64>> {
    let files = peft::files(lora, flat, "base").unwrap();
    Tensors::parse(&files.iter().find(|(name, _)| name == peft::WEIGHTS).unwrap().1).under("")
}

/// The options of the golden runs.
pub fn options(steps: u64) -> TrainOptions {
    TrainOptions {
        lr: Some(1e-2),
        schedule: Schedule::Constant,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        steps: Some(steps),
        batch_size: B,
        seq_len: T,
        val_fraction: 0.0,
        ..Default::default()
    }
}

/// Examples of any ids and masks.
pub fn dataset(documents: &[(Vec<u32>, Vec<bool>)]) -> Dataset {
    let example = |(ids, supervised): &(Vec<u32>, Vec<bool>)| Example {
        ids: ids.clone(),
        supervised: supervised.clone(),
        truncated: false,
        line: 1,
        full_len: ids.len(),
        full_supervised: supervised.iter().filter(|s| **s).count(),
    };
    let examples = Arc::new(documents.iter().map(example).collect::<Vec<_>>());
    Dataset { file: "test".into(), examples, stats: Stats::default() }
}

/// Documents of 5 to 16 random tokens, of which about two thirds are supervised in a ragged way.
pub fn documents(count: usize, seed: u64) -> Vec<(Vec<u32>, Vec<bool>)> {
    let draw = |stream: u64, index: u64, below: u64| (luthier::num::uniform(seed, stream, index) * below as f64) as u64;
    let document = |d: u64| {
        let len = 5 + draw(d, 0, 12);
        let ids = (0..len).map(|i| 3 + draw(d, 1 + i, 90) as u32).collect();
        (ids, (0..len).map(|i| i > 0 && (i + 1 == len || draw(d, 100 + i, 3) > 0)).collect())
    };
    (0..count as u64).map(document).collect()
}

pub fn batches(documents: &[(Vec<u32>, Vec<bool>)], b: usize, packing: bool) -> Batches {
    Batches::new(&dataset(documents), PackOptions { b, t: T, packing, shuffle: false, seed: 0 }).unwrap()
}

/// A trainer that takes its batches by hand, or from two dozen documents.
pub fn trainer(base: &mut Base, (lora, flat): (Adapter, Vec<f32>), options: TrainOptions) -> Trainer {
    let batches = batches(&documents(24, 1), options.batch_size, true);
    block_on(Trainer::new(base, lora, flat, batches, options)).unwrap()
}

/// The golden batch: six documents of ragged masks in two rows, and some padding.
pub fn batch() -> Batch {
    Tensors::open("tiny_lora.safetensors").batch("")
}

/// `count` documents that fill a row each and are supervised but for their first token.
pub fn full_rows(count: usize, seed: u64) -> Vec<(Vec<u32>, Vec<bool>)> {
    let id = |d: usize, i: usize| 3 + (luthier::num::uniform(seed, d as u64, i as u64) * 90.0) as u32;
    (0..count).map(|d| ((0..T).map(|i| id(d, i)).collect(), (0..T).map(|i| i > 0).collect())).collect()
}

/// The documents as one batch of as many rows as they need.
pub fn packed(documents: &[(Vec<u32>, Vec<bool>)], packing: bool) -> Batch {
    let rows = batches(documents, 1, packing).rows();
    batches(documents, rows, packing).batch(0)
}

/// Reads floats in the device's own precision.
pub fn read(base: &mut Base, buf: Buf, len: usize) -> Vec<f64> {
    match &base.device {
        Device::Reference(cpu) => cpu.read(buf, 0, len).to_vec(),
        _ => block_on(base.device.read(buf, 0, len)).unwrap().into_iter().map(f64::from).collect(),
    }
}

/// A base with an adapter and the sequences of one shape.
pub struct Rig {
    pub base: Base,
    pub lora: Adapter,
    pub patches: Patches,
    io: Inputs,
    sequences: LossSequences,
    /// Evaluation without the adapter.
    plain: SequenceId,
}

impl Rig {
    pub fn new(base: Base, adapter: (Adapter, Vec<f32>), b: usize) -> Rig {
        let layers = base.spec().layers;
        Rig::keeping(base, adapter, b, Keep { blocks: layers, packed: false })
    }

    pub fn keeping(mut base: Base, (lora, flat): (Adapter, Vec<f32>), b: usize, keep: Keep) -> Rig {
        let Base { plan, device, decoder, .. } = &mut base;
        let io = Inputs::declare(plan, &decoder.spec, b * T, T);
        let patches = lora.declare(plan, true);
        let sequences = decoder.loss_sequences(plan, &io, Some(&patches), Some(keep));
        let plain = decoder.loss_sequences(plan, &io, None, None).evaluate;
        let prologue = lora.prologue(plan, &patches, decoder);
        block_on(device.prepare(plan)).unwrap();
        io.write_tables(device, &decoder.spec, T);
        device.write_floats(patches.params, 0, &flat);
        if let Some(prologue) = prologue {
            device.run(plan, prologue, 0).unwrap();
        }
        Rig { base, lora, patches, io, sequences, plain }
    }

    fn run(&mut self, sequence: SequenceId, batch: &Batch, seed: u32) -> f64 {
        let inv_tokens = 1.0 / batch.supervised as f32;
        let control = Control { first: true, rows: batch.supervised as u32, inv_tokens, seed, ..Default::default() };
        write_batch(&mut self.base, &self.io, batch, &control);
        self.base.device.run(&self.base.plan, sequence, control.rows).unwrap();
        read(&mut self.base, self.io.ring, REPORT)[0] / batch.supervised as f64
    }

    /// Mean loss, without dropout.
    pub fn loss(&mut self, batch: &Batch) -> f64 {
        self.run(self.sequences.evaluate, batch, 0)
    }

    /// Mean loss and its gradient, with the dropout masks of `seed`.
    pub fn gradients(&mut self, batch: &Batch, seed: u32) -> (f64, Vec<f64>) {
        self.base.device.write_floats(self.patches.grads, 0, &vec![0.0; self.lora.len]);
        let loss = self.run(self.sequences.train.unwrap(), batch, seed);
        (loss, read(&mut self.base, self.patches.grads, self.lora.len))
    }

    /// Logits of every position [N, V].
    pub fn logits(&mut self, batch: &Batch) -> Vec<f64> {
        self.logits_of(self.sequences.evaluate, batch)
    }

    /// [`Rig::logits`] without the adapter.
    pub fn plain_logits(&mut self, batch: &Batch) -> Vec<f64> {
        self.logits_of(self.plain, batch)
    }

    /// All rows are asked for, and what cross-entropy read is read.
    fn logits_of(&mut self, sequence: SequenceId, batch: &Batch) -> Vec<f64> {
        let n = batch.ids.len();
        self.run(sequence, &Batch { targets: vec![0; n], supervised: n, ..batch.clone() }, 0);
        let steps = &self.base.plan.sequences[sequence].steps;
        let mut inputs =
            steps.iter().filter(|s| format!("{:?}", s.kernel) == "cross_entropy.forward").map(|s| s.bufs[1]);
        let logits = inputs.next().unwrap();
        assert!(inputs.next().is_none(), "one chunk of the head holds all rows");
        let (vocab, padded) = (self.base.spec().vocab, self.base.spec().padded_vocab());
        let all = read(&mut self.base, logits, n * padded);
        all.chunks_exact(padded).flat_map(|row| row[..vocab].to_vec()).collect()
    }
}
