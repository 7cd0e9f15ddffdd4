//! A step dealt to several workers, each a session of its own, is the step of one; its bits depend on their number
//! alone.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::tolerance::apart;
use luthier::adapter::Kind;
use luthier::data::{Batches, ReadOptions, Records, read};
use luthier::device::{Device, DeviceChoice};
use luthier::session::{Dealt, Offer, Session};
use luthier::train::{Deal, TrainOptions, Trainer};
use luthier::weights::ModelFiles;
use pollster::block_on;
use tiny::documents;

/// Batches of four rows, the last of an epoch of one: then there is nothing for most workers.
fn batches() -> Batches {
    let of = |count: usize| tiny::batches(&documents(count, 4), 4, true);
    (20..).map(of).find(|batches| batches.rows() % 4 == 1).unwrap()
}

/// Losses and norms of a run, and the adapter.
fn dealt(device: Device, workers: usize) -> (Vec<f64>, Vec<f64>) {
    let mut base = tiny::base("tiny", device);
    let (lora, flat) = tiny::adapter(&base, 0.0, false);
    let batches = batches();
    assert!((5..40).contains(&batches.rows()), "{} rows, and some epochs", batches.rows());
    let options = TrainOptions { batch_size: 4, grad_accum: 2, workers: Some(workers), ..tiny::options(5) };
    let mut trainer = block_on(Trainer::new(&mut base, lora, flat, batches, options)).unwrap();
    let mut numbers = Vec::new();
    while !trainer.done() {
        let reports = block_on(trainer.step(&mut base)).unwrap();
        numbers.extend(reports.iter().flat_map(|r| [r.loss, r.grad_norm, r.tokens as f64, r.supervised_tokens as f64]));
    }
    assert_eq!(numbers.len(), 5 * 4);
    let last = block_on(trainer.values(&mut base)).unwrap();
    (numbers, last.into_iter().map(f64::from).collect())
}

#[test]
fn a_step_of_several_workers_is_the_step_of_one() {
    for (device, tolerance) in [(Device::reference as fn() -> Device, 1e-5), (Device::cpu, 1e-4)] {
        same(device, &[2, 3, 4, 8], tolerance);
    }
    if common::gpu().is_some() {
        same(|| Device::Gpu(Box::new(common::gpu().expect("it was there"))), &[2], 1e-4);
    }
}

fn same(device: impl Fn() -> Device, dealt_to: &[usize], tolerance: f64) {
    let want = dealt(device(), 1);
    for workers in dealt_to {
        let got = dealt(device(), *workers);
        for (got, want, tolerance) in [(got.0, &want.0, tolerance), (got.1, &want.1, 10.0 * tolerance)] {
            let error = apart(&got, want);
            assert!(error < tolerance, "{workers} workers: {error:.1e}");
        }
    }
}

fn data() -> Records {
    let line = |i: usize| format!("{{\"prompt\":\"Put {i} apples away\",\"completion\":\"larder put {i}\"}}\n");
    let text: String = (0..30).map(line).collect();
    read("data.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap()
}

fn options(method: Kind) -> TrainOptions {
    TrainOptions {
        method,
        dropout: if method == Kind::Lora { 0.1 } else { 0.0 },
        lisa_interval: 2,
        steps: Some(4),
        batch_size: 3,
        seq_len: 48,
        val_fraction: 0.3,
        workers: Some(3),
        ..Default::default()
    }
}

fn session() -> Session {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    block_on(Session::open(&nano, "nano", DeviceChoice::Cpu, |_, _| {})).unwrap()
}

fn started(options: &TrainOptions) -> Session {
    let mut session = session();
    block_on(session.start_training(&data(), None, options.clone(), None, None)).unwrap();
    session
}

/// Bits of losses, norms and validations, and the adapter's bytes. In steps that `helped` says, helpers bring their
/// shares.
fn run(options: &TrainOptions, helpers: &mut [Session], helped: impl Fn(u64) -> bool) -> (Vec<u64>, Vec<u8>) {
    let mut session = started(options);
    let mut bits = Vec::new();
    while !session.done() {
        let step = session.step_number();
        let mut gather = |session: &mut Session, of: Dealt| {
            if !helped(step) {
                return;
            }
            let parameters = block_on(session.parameters()).unwrap();
            block_on(session.compute_share(of)).unwrap();
            for (i, helper) in helpers.iter_mut().enumerate() {
                assert_eq!(helper.run_sha256().unwrap(), session.run_sha256().unwrap());
                session.add_share(of, block_on(helper.share_of(of, step, &parameters, i + 1)).unwrap()).unwrap();
            }
        };
        gather(&mut session, Dealt::Step);
        let mut reports = block_on(session.step()).unwrap();
        reports.extend(block_on(session.reports()).unwrap());
        bits.extend(reports.iter().flat_map(|r| [r.loss.to_bits(), r.grad_norm.to_bits()]));
        gather(&mut session, Dealt::Validation);
        bits.extend(block_on(session.validate()).unwrap().map(|evaluation| evaluation.loss.to_bits()));
    }
    (bits, block_on(session.adapter_files()).unwrap().pop().unwrap().1)
}

/// Helpers, none, or some that are lost for a while: the same bits, whatever is trained.
#[test]
fn it_does_not_matter_who_computes_a_share() {
    for method in [Kind::Lora, Kind::Dora, Kind::Prefix, Kind::Lisa, Kind::Full] {
        let options = options(method);
        let alone = run(&options, &mut [], |_| false);
        assert_eq!(alone.0.len(), 4 * 3);
        let mut helpers = [started(&options), started(&options)];
        assert!(run(&options, &mut helpers, |_| true) == alone, "{}: helped", method.name());
        assert!(run(&options, &mut helpers[..1], |step| step % 2 == 1) == alone, "{}: one, sometimes", method.name());
        let other = run(&TrainOptions { workers: Some(1), ..options }, &mut [], |_| false);
        assert!(other != alone, "{}: another number of workers rounds in other places", method.name());
    }
}

#[test]
fn what_is_no_share_is_refused() {
    let options = options(Kind::Lora);
    let (mut session, mut helper) = (started(&options), started(&options));
    let parameters = block_on(session.parameters()).unwrap();
    let refused = |result: luthier::Result<()>, part: &str| {
        let error = result.unwrap_err();
        assert!(error.code() == "setting" && error.to_string().contains(part), "{error}");
    };
    for of in [Dealt::Step, Dealt::Validation] {
        refused(block_on(helper.share_of(of, 0, &parameters, 3)).map(drop), "worker 3 of 3");
        refused(block_on(helper.share_of(of, 0, &parameters[1..], 1)).map(drop), "numbers of an adapter");
        let share = block_on(helper.share_of(of, 0, &parameters, 1)).unwrap();
        refused(session.add_share(of, share[1..].to_vec()), &format!("not {}", share.len()));
        block_on(session.compute_share(of)).unwrap();
        session.add_share(of, share.clone()).unwrap();
        session.add_share(of, share.clone()).unwrap();
        refused(session.add_share(of, share), "share 3 of 3");
    }
    let seeded = started(&TrainOptions { seed: 1, ..options });
    assert_ne!(seeded.run_sha256().unwrap(), session.run_sha256().unwrap());
}

/// Those that hold a copy each are counted, and there are only as many as fit.
#[test]
fn workers_are_as_many_as_fit() {
    let mut session = session();
    let options = TrainOptions { batch_size: 4, grad_accum: 2, seq_len: 64, ..Default::default() };
    let estimate = |session: &Session, workers: Option<usize>, gib: f64| {
        session.estimate(&data(), None, &TrainOptions { workers, memory_gib: gib, ..options.clone() }, None)
    };
    let taken = |session: &Session, workers, gib| {
        let summary = estimate(session, workers, gib).unwrap();
        (summary.workers, summary.memory)
    };
    assert_eq!(taken(&session, None, 4.0).0, 1, "natively threads share the work");
    let (workers, in_turn) = taken(&session, Some(4), 4.0);
    assert_eq!((workers, in_turn.helpers), (4, 0), "and shares are computed in turn");

    session.offer_workers(Offer { workers: 6, gib: 8.0 });
    let (workers, memory) = taken(&session, None, 4.0);
    assert_eq!((workers, Deal::among(6, &options).workers), (4, 4));
    assert_eq!((memory.total, memory.helpers), (4 * in_turn.total, 3 * in_turn.total));
    assert_eq!(taken(&session, Some(2), 4.0).0, 2);
    assert_eq!(taken(&session, Some(1), 4.0).1.helpers, 0);
    // Rather more workers that compute some blocks twice than fewer: but no more than fit.
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let (mut last, mut recomputed) = (4, false);
    for share in (1..=20).rev() {
        let allowed = gib(memory.total) * share as f64 / 20.0;
        let Ok(summary) = estimate(&session, None, allowed) else { break };
        assert!(gib(summary.memory.total) <= allowed && summary.workers <= last, "{summary:?}");
        recomputed |= summary.workers == 4 && summary.memory.kept_blocks < summary.memory.blocks;
        last = summary.workers;
    }
    assert_eq!((last, recomputed), (1, true));
    // What is offered bounds those that nobody asked for.
    let half = gib(memory.total) / 2.0;
    session.offer_workers(Offer { workers: 6, gib: half });
    let (workers, within) = taken(&session, None, 4.0);
    assert!(workers < 4 && gib(within.total) <= half, "{workers}: {within:?}");
    assert_eq!(taken(&session, Some(4), 4.0).0, 4);
    let error = estimate(&session, Some(4), gib(memory.total) / 8.0).unwrap_err();
    assert!(error.hint().contains("--workers"), "{error}: {}", error.hint());
    let error = estimate(&session, Some(0), 4.0).unwrap_err();
    assert!(error.to_string().contains("workers"), "{error}");
}
