//! Checkpoints: a run that stopped and went on is the run that never stopped, bit for bit; anything else is refused.

#[path = "common/mod.rs"]
mod common;

use luthier::adapter::Kind;
use luthier::data::{ReadOptions, Records, read};
use luthier::device::DeviceChoice;
use luthier::session::{Best, Session};
use luthier::train::{Checkpoint, Optim, TrainOptions};
use luthier::weights::ModelFiles;
use luthier::{Error, Result};
use pollster::block_on;

fn data(shelves: usize) -> Records {
    let line = |i: usize| {
        format!("{{\"prompt\":\"Put {i} apples on shelf {}\",\"completion\":\"larder put {i}\"}}\n", i % shelves)
    };
    let text: String = (0..30).map(line).collect();
    read("data.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap()
}

fn options() -> TrainOptions {
    TrainOptions {
        lr: Some(5e-3),
        dropout: 0.1,
        warmup_steps: 2,
        steps: Some(7),
        batch_size: 1,
        grad_accum: 2,
        seq_len: 48,
        seed: 3,
        ..Default::default()
    }
}

fn session(device: DeviceChoice) -> Session {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    block_on(Session::open(&nano, "nano", device, |_, _| {})).unwrap()
}

fn start(session: &mut Session, checkpoint: Option<Vec<u8>>) -> Result<()> {
    start_with(session, &data(7), options(), checkpoint)
}

fn start_with(session: &mut Session, data: &Records, options: TrainOptions, bytes: Option<Vec<u8>>) -> Result<()> {
    let checkpoint = bytes.map(|bytes| block_on(Checkpoint::read("c.safetensors", bytes))).transpose()?;
    block_on(session.start_training(data, None, options, None, checkpoint)).map(drop)
}

/// What a run leaves behind.
#[derive(Debug, Default, PartialEq)]
struct Trace {
    /// Step, bits of the loss and of the gradient norm.
    steps: Vec<(u64, u64, u64)>,
    validations: Vec<(u64, u64)>,
}

/// Runs up to `until` steps, with a validation every third.
fn advance(session: &mut Session, trace: &mut Trace, until: u64) {
    let mut validate = |session: &mut Session| {
        let loss = block_on(session.validate()).unwrap().expect("something is held out").loss;
        trace.validations.push((session.step_number(), loss.to_bits()));
    };
    if session.step_number() == 0 {
        validate(session);
    }
    while session.step_number() < until {
        let mut reports = block_on(session.step()).unwrap();
        reports.extend(block_on(session.reports()).unwrap());
        trace.steps.extend(reports.iter().map(|r| (r.step, r.loss.to_bits(), r.grad_norm.to_bits())));
        if session.step_number().is_multiple_of(3) {
            validate(session);
        }
    }
}

fn adapter(session: &mut Session) -> Vec<u8> {
    block_on(session.adapter_files()).unwrap().pop().unwrap().1
}

fn law(device: DeviceChoice, options: TrainOptions) {
    let start = |session: &mut Session, checkpoint| start_with(session, &data(7), options.clone(), checkpoint);
    let (mut whole, mut want) = (session(device), Trace::default());
    start(&mut whole, None).unwrap();
    advance(&mut whole, &mut want, 7);
    let (last, best, best_adapter) = (adapter(&mut whole), whole.use_best(), adapter(&mut whole));

    let (mut first, mut got) = (session(device), Trace::default());
    start(&mut first, None).unwrap();
    advance(&mut first, &mut got, 4);
    let bytes = block_on(first.checkpoint()).unwrap();
    assert!(bytes == block_on(first.checkpoint()).unwrap(), "the same state is the same bytes");
    drop(first);

    let mut second = session(device);
    // Something else is done with the session before: the run must not notice.
    block_on(second.generate(&["Put".into()], true, false, &Default::default())).unwrap();
    start(&mut second, Some(bytes)).unwrap();
    assert_eq!(second.step_number(), 4);
    advance(&mut second, &mut got, 7);
    assert_eq!(got, want);
    assert!(adapter(&mut second) == last, "another adapter");
    assert_eq!((second.use_best(), best.is_some()), (best, true));
    assert!(adapter(&mut second) == best_adapter, "another best adapter");
    assert!(matches!(best, Some(Best { step: 1.., .. })), "training helps: {best:?}");
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    law(DeviceChoice::Cpu, options());
}

#[test]
fn a_resumed_run_of_several_workers_is_the_uninterrupted_run() {
    law(DeviceChoice::Cpu, TrainOptions { workers: Some(2), ..options() });
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run_on_a_gpu() {
    if common::gpu().is_some() {
        law(DeviceChoice::Gpu, options());
    }
}

/// Its checkpoint holds the codes themselves.
#[test]
fn a_resumed_run_with_moments_of_8_bits_is_the_uninterrupted_run() {
    let options = TrainOptions { optim: Optim::AdamW8bit, ..options() };
    law(DeviceChoice::Cpu, TrainOptions { workers: Some(2), ..options.clone() });
    // Blocks take turns, and resting ones begin anew.
    law(DeviceChoice::Cpu, TrainOptions { method: Kind::Lisa, lisa_interval: 3, lr: Some(1e-3), ..options.clone() });
    if common::gpu().is_some() {
        law(DeviceChoice::Gpu, options);
    }
}

/// A checkpoint after one step.
fn checkpoint() -> Vec<u8> {
    let mut session = session(DeviceChoice::Cpu);
    start(&mut session, None).unwrap();
    advance(&mut session, &mut Trace::default(), 1);
    block_on(session.checkpoint()).unwrap()
}

#[test]
fn torn_and_altered_checkpoints_are_refused() {
    let bytes = checkpoint();
    let refused = |bytes: Vec<u8>, what: &str| match block_on(Checkpoint::read("c.safetensors", bytes)) {
        Err(error @ Error::Malformed { .. }) => {
            assert!(error.to_string().starts_with("c.safetensors: checkpoint: "), "{what}: {error}");
            assert!(error.hint().contains("the one before"), "{what}: {}", error.hint());
        }
        other => panic!("{what}: {other:?}"),
    };
    let n = bytes.len();
    for len in [0, 1, 7, 8, 100, 1000, n / 2, n - 1] {
        refused(bytes[..len].to_vec(), &format!("{len} of {n} bytes"));
    }
    for at in [0, 7, 8, 60, 300, 700, n / 3, n / 2, n - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        refused(flipped, &format!("byte {at} of {n} flipped"));
    }
    refused([bytes, vec![0]].concat(), "a byte more");
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_what_differs() {
    let bytes = checkpoint();
    let mut session = session(DeviceChoice::Cpu);
    let mut refused = |data: Records, options: TrainOptions, part: &str| {
        let error = start_with(&mut session, &data, options, Some(bytes.clone())).unwrap_err();
        assert_eq!(error.code(), "mismatch");
        assert!(error.to_string().contains(part), "{part} is not in: {error}");
    };
    refused(data(5), options(), &format!("data: sha256 {}, the checkpoint's is {}", data(5).sha256, data(7).sha256));
    refused(data(7), TrainOptions { lr: Some(1e-3), ..options() }, "--lr: 0.001, the checkpoint's is 0.005");
    refused(data(7), TrainOptions { rank: 4, ..options() }, "--rank: 4, the checkpoint's is 8");
    refused(data(7), TrainOptions { workers: Some(2), ..options() }, "--workers: 2, the checkpoint's is null");
    let optim = "--optim: \"adamw_8bit\", the checkpoint's is \"adamw\"";
    refused(data(7), TrainOptions { optim: Optim::AdamW8bit, ..options() }, optim);
    // Memory is no part of what is computed.
    start_with(&mut session, &data(7), TrainOptions { kept_blocks: Some(2), ..options() }, Some(bytes)).unwrap();
    assert_eq!(session.step_number(), 1);
    let again = start(&mut session, None).unwrap_err();
    assert_eq!(again.code(), "setting", "a session trains once");
}

#[test]
fn a_checkpoint_of_another_base_is_refused() {
    let folder = std::env::temp_dir().join(format!("luthier-resume-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let mut bytes = std::fs::read(format!("{}/models/nano/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        if name == "model.safetensors" {
            *bytes.last_mut().unwrap() ^= 1; // one bit of one weight
        }
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let files = ModelFiles::open(&folder).unwrap();
    let mut other = block_on(Session::open(&files, "other", DeviceChoice::Cpu, |_, _| {})).unwrap();
    let error = start(&mut other, Some(checkpoint())).unwrap_err().to_string();
    let nano = session(DeviceChoice::Cpu);
    let want = format!("base model: sha256 {}, the checkpoint's is {}", other.base_sha256(), nano.base_sha256());
    assert!(error.contains(&want), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The start may be measured after the first step: the same loss, and the run is none the wiser.
#[test]
fn looking_back_changes_nothing() {
    let run = |back: bool| {
        let mut session = session(DeviceChoice::Cpu);
        start(&mut session, None).unwrap();
        let before = (!back).then(|| block_on(session.validate()).unwrap().unwrap().loss);
        let mut losses: Vec<f64> = block_on(session.step()).unwrap().iter().map(|r| r.loss).collect();
        let loss = before.unwrap_or_else(|| block_on(session.validate_start()).unwrap().unwrap().loss);
        assert_eq!(session.use_best(), Some(Best { loss, step: 0 }));
        losses.extend(block_on(session.reports()).unwrap().iter().map(|r| r.loss));
        assert_eq!(losses.len(), 1, "the report of the first step is not lost");
        (loss, losses, adapter(&mut session))
    };
    assert!(run(false) == run(true));
    // Whatever happens next: a second look back is refused, and the adapter is that of the first step still.
    let mut session = session(DeviceChoice::Cpu);
    start(&mut session, None).unwrap();
    block_on(session.step()).unwrap();
    let first = adapter(&mut session);
    block_on(session.validate_start()).unwrap();
    assert!(adapter(&mut session) == first);
    assert!(matches!(block_on(session.validate_start()), Err(Error::Setting { .. })));
}
