//! What a session will probably be asked for is compiled while its model is opened.

#[path = "common/mod.rs"]
mod common;

use luthier::adapter::Kind;
use luthier::data::{ReadOptions, Records, read};
use luthier::device::{Device, DeviceChoice};
use luthier::model::generate::Sampling;
use luthier::session::{Likely, Session};
use luthier::train::TrainOptions;
use luthier::weights::ModelFiles;
use pollster::block_on;

fn open(likely: &Likely) -> Session {
    let nano = ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap();
    let device = block_on(Device::open(DeviceChoice::Gpu)).unwrap();
    block_on(Session::open_on(device, likely, &nano, "nano", |_, _| {})).unwrap()
}

fn records() -> Records {
    let line = |n| format!("{{\"prompt\":\"Put {n} apples on shelf {n}\",\"completion\":\"larder put {n}\"}}\n");
    let text: String = (0..24).map(line).collect();
    read("data.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap()
}

/// Starts a run as it is when next to nothing is set, takes a step, and looks at the validation data.
fn train(session: &mut Session, method: Kind) -> f64 {
    let options = TrainOptions { steps: Some(1), method, batch_size: 2, seq_len: 64, ..Default::default() };
    block_on(session.start_training(&records(), None, options, None, None)).unwrap();
    let mut reports = block_on(session.step()).unwrap();
    reports.extend(block_on(session.reports()).unwrap());
    block_on(session.validate()).unwrap().expect("a part was held out");
    reports[0].loss
}

fn answer(session: &mut Session, adapted: bool) {
    let sampling = Sampling { max_new_tokens: 2, ..Default::default() };
    block_on(session.generate(&["Put 3 apples".into()], false, adapted, &sampling)).unwrap();
}

/// Pipelines made only when they were wanted, and those made in vain.
fn late_and_unused(session: &Session) -> (usize, usize) {
    let Device::Gpu(gpu) = session.device() else { panic!("a GPU was asked for") };
    gpu.late_and_unused()
}

#[test]
fn a_default_run_and_answers_find_all_of_their_pipelines() {
    if common::gpu().is_none() {
        return;
    }
    let mut session = open(&Likely::default());
    let (late, ahead) = late_and_unused(&session);
    assert!(late == 0 && ahead > 10, "{late} late, {ahead} made ahead");
    answer(&mut session, false);
    train(&mut session, Kind::Lora);
    answer(&mut session, true);
    assert_eq!(late_and_unused(&session), (0, 0));
}

#[test]
fn a_run_of_the_method_that_was_named_finds_all_of_its_pipelines() {
    if common::gpu().is_none() {
        return;
    }
    for method in [Kind::Dora, Kind::Full] {
        let run = TrainOptions { method, ..Default::default() };
        let mut session = open(&Likely { run: Some(run), answers: false });
        train(&mut session, method);
        assert_eq!(late_and_unused(&session), (0, 0), "{}", method.name());
    }
}

#[test]
fn what_nobody_expected_is_compiled_when_it_is_wanted() {
    if common::gpu().is_none() {
        return;
    }
    let mut guessed = open(&Likely::default());
    let mut unguessed = open(&Likely::NOTHING);
    assert_eq!(late_and_unused(&unguessed), (0, 0));
    let losses = [&mut guessed, &mut unguessed].map(|session| train(session, Kind::Dora));
    assert_eq!(losses[0], losses[1]);
    let [some, all] = [&guessed, &unguessed].map(|session| late_and_unused(session).0);
    assert!(0 < some && some < all, "{some} of {all} were late");
}

/// What cannot be planned is no guess, and no reason to refuse a model.
#[test]
fn a_guess_that_is_wrong_harms_nobody() {
    if common::gpu().is_none() {
        return;
    }
    let run = TrainOptions { target_modules: Some("no_such_module".into()), ..Default::default() };
    let mut session = open(&Likely { run: Some(run), answers: true });
    train(&mut session, Kind::Lora);
    // A device may go while threads compile for it.
    let session = open(&Likely::default());
    assert!(session.device().lose());
}
