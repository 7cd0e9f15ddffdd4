//! Devices that go away, and memory that is not there: errors with a code of their own, never a panic or a wait.

#[path = "common/mod.rs"]
mod common;

use luthier::Error;
use luthier::data::{ReadOptions, read};
use luthier::device::{Device, DeviceChoice};
use luthier::plan::{Elem, Plan};
use luthier::session::Session;
use luthier::train::TrainOptions;
use luthier::weights::ModelFiles;
use pollster::block_on;

fn training(device: DeviceChoice) -> Session {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    let mut session = block_on(Session::open(&nano, "nano", device, |_, _| {})).unwrap();
    let text = "{\"prompt\":\"Put 3 apples on shelf 3\",\"completion\":\"larder put 3\"}\n".repeat(12);
    let records = read("data.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap();
    let options = TrainOptions { steps: Some(20), batch_size: 1, seq_len: 48, val_fraction: 0.0, ..Default::default() };
    block_on(session.start_training(&records, None, options, None, None)).unwrap();
    block_on(session.step()).unwrap();
    block_on(session.reports()).unwrap();
    session
}

#[test]
fn a_lost_gpu_is_an_error_of_its_own() {
    if common::gpu().is_none() {
        return;
    }
    let mut session = training(DeviceChoice::Gpu);
    let saved = block_on(session.checkpoint()).unwrap();
    assert!(session.device().lose());
    let lost = |what: &str, error: Error| assert_eq!(error.code(), "device_lost", "{what}: {error}");
    let error = loop {
        match block_on(session.step()) {
            Ok(_) => assert!(!session.done(), "nobody noticed"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().starts_with("the GPU was lost: ") && error.hint().contains("checkpoint"), "{error}");
    lost("step", error);
    lost("reports", block_on(session.reports()).unwrap_err());
    lost("checkpoint", block_on(session.checkpoint()).unwrap_err());
    lost("adapter", block_on(session.adapter_files()).unwrap_err());
    lost("generate", block_on(session.generate(&["Put".into()], true, true, &Default::default())).unwrap_err());
    drop(session);
    // What was saved is good, and the next device too.
    assert!(saved == block_on(training(DeviceChoice::Gpu).checkpoint()).unwrap());
}

#[test]
fn memory_that_is_not_there_is_an_error_of_its_own() {
    let mut plan = Plan::default();
    plan.persistent("everything", Elem::Float, usize::MAX / 8);
    let error = block_on(Device::cpu().prepare(&plan)).unwrap_err();
    assert_eq!(error.code(), "out_of_memory");
    assert!(error.to_string().contains("no room for") && error.hint().contains("smaller model"), "{error}");
}

#[test]
fn a_cpu_cannot_be_lost() {
    let mut session = training(DeviceChoice::Cpu);
    assert!(!session.device().lose());
    block_on(session.step()).unwrap();
}
