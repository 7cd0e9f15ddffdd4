//! The plan as data: temporaries that live at the same time never share memory, and breaches of the rules are found.

use luthier::adapter::{Adapter, Lora, LoraConfig};
use luthier::device::Device;
use luthier::format::WeightFormat;
use luthier::model::decoder::Keep;
use luthier::model::family::LLAMA;
use luthier::model::{Base, Decoder, Inputs, ModelSpec, Module};
use luthier::num::uniform;
use luthier::ops::rmsnorm;
use luthier::plan::memory::{Memory, Place};
use luthier::plan::{Buf, Elem, Life, Plan, SequenceId};
use luthier::train::options::Activations;
use luthier::train::{TrainOptions, planned};
use std::collections::HashMap;

/// A chain of steps over temporaries, each reading what some earlier step wrote.
fn random_plan(seed: u64, sequences: usize) -> Plan {
    let mut plan = Plan::default();
    let mut count = 0;
    let mut below = |n: usize| {
        count += 1;
        (uniform(seed, 0, count) * n as f64) as usize
    };
    let input = plan.persistent("input", Elem::Float, 64);
    for s in 0..sequences {
        plan.begin(&format!("sequence {s}"));
        let mut alive = vec![input];
        for step in 0..5 + below(40) {
            let len = 4 * (1 + below(50));
            let y = plan.temp(format!("{s}.{step}"), len);
            let (a, b) = (alive[below(alive.len())], alive[below(alive.len())]);
            rmsnorm::forward(&mut plan, "", (1, len), 1e-5, a, b, None, y);
            alive.push(y);
            if below(3) == 0 {
                alive.swap_remove(below(alive.len()));
            }
            if alive.is_empty() {
                alive.push(input);
            }
        }
    }
    plan
}

/// First and last use of each temporary within each sequence.
fn lives(plan: &Plan, sequence: usize) -> HashMap<Buf, (usize, usize)> {
    let mut lives = HashMap::new();
    for (i, step) in plan.sequences[sequence].steps.iter().enumerate() {
        for buf in step.bufs.iter().filter(|b| plan.decl(**b).life == Life::Temp) {
            lives.entry(*buf).or_insert((i, i)).1 = i;
        }
    }
    lives
}

/// The most bytes of temporaries that are alive in one step: no layout can do with less.
fn lower_bound(plan: &Plan) -> u64 {
    let at = |lives: &HashMap<Buf, (usize, usize)>, i: usize| {
        let alive = lives.iter().filter(|(_, (first, last))| (*first..=*last).contains(&i));
        alive.map(|(buf, _)| plan.decl(*buf).len as u64 * 4).sum::<u64>()
    };
    let peak = |s: usize| {
        let lives = lives(plan, s);
        (0..plan.sequences[s].steps.len()).map(|i| at(&lives, i)).max().unwrap_or(0)
    };
    (0..plan.sequences.len()).map(peak).max().unwrap_or(0)
}

fn assert_sound(plan: &Plan, memory: &Memory) {
    for s in 0..plan.sequences.len() {
        let lives: Vec<_> = lives(plan, s).into_iter().collect();
        for (i, (a, (a_first, a_last))) in lives.iter().enumerate() {
            let Place::Slot(slot) = memory.places[a.0 as usize] else { panic!("{a:?} has no slot") };
            assert!(memory.slots[slot].len >= plan.decl(*a).len && memory.slots[slot].elem == plan.decl(*a).elem);
            for (b, (b_first, b_last)) in &lives[..i] {
                let apart = a_last < b_first || b_last < a_first;
                assert!(apart || memory.places[b.0 as usize] != Place::Slot(slot), "{a:?} and {b:?} share {slot}");
            }
        }
    }
}

#[test]
fn live_buffers_never_share_a_slot() {
    let (mut used, mut needed, mut naive) = (0, 0, 0);
    for seed in 0..200 {
        let plan = random_plan(seed, 1 + seed as usize % 3);
        assert_eq!(plan.check(), Vec::<String>::new());
        let mut memory = Memory::default();
        memory.extend(&plan);
        assert_sound(&plan, &memory);
        let temps = plan.bufs.iter().filter(|b| b.life == Life::Temp).map(|b| b.len as u64 * 4);
        let (bytes, bound) = (slot_bytes(&plan), lower_bound(&plan));
        assert!(bytes >= bound, "{bytes} bytes hold {bound}");
        assert_eq!(memory.bytes(&plan), bytes + 64 * 4);
        (used, needed, naive) = (used + bytes, needed + bound, naive + temps.sum::<u64>());
    }
    // Best fit over lifetimes: near the bound, and far below a buffer for each.
    assert!((used as f64) < 1.3 * needed as f64, "{used} bytes where {needed} are needed");
    assert!(used * 2 < naive, "{used} bytes, {naive} without sharing");
}

#[test]
fn a_chain_needs_two_slots() {
    let mut plan = Plan::default();
    let input = plan.persistent("input", Elem::Float, 256);
    plan.begin("chain");
    let mut x = input;
    for i in 0..20 {
        let y = plan.temp(format!("{i}"), 256);
        rmsnorm::forward(&mut plan, "", (1, 256), 1e-5, x, input, None, y);
        x = y;
    }
    assert_eq!(slot_bytes(&plan), 2 * 256 * 4);
}

#[test]
fn a_plan_that_grows_keeps_its_places() {
    let (small, large) = (random_plan(5, 1), random_plan(5, 3));
    let mut memory = Memory::default();
    memory.extend(&small);
    let before = memory.places.clone();
    memory.extend(&large);
    assert_eq!(memory.places[..before.len()], before);
    assert_sound(&large, &memory);
    assert!(memory.places.iter().all(|p| *p != Place::Unused));
}

#[test]
fn reading_before_any_write_is_found() {
    let mut plan = Plan::default();
    let w = plan.persistent("w", Elem::Float, 4);
    plan.begin("first");
    let (x, y) = (plan.temp("x", 4), plan.temp("y", 4));
    rmsnorm::forward(&mut plan, "", (1, 4), 1e-5, x, w, None, y);
    let problems = plan.check();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("reads x before any step wrote it"), "{problems:?}");
}

#[test]
fn a_temporary_of_another_sequence_counts_as_unwritten() {
    let mut plan = Plan::default();
    let w = plan.persistent("w", Elem::Float, 4);
    plan.begin("first");
    let y = plan.temp("y", 4);
    rmsnorm::forward(&mut plan, "", (1, 4), 1e-5, w, w, None, y);
    assert_eq!(plan.check(), Vec::<String>::new());
    plan.begin("second");
    rmsnorm::forward(&mut plan, "", (1, 4), 1e-5, y, w, None, w);
    let problems = plan.check();
    assert!(problems.iter().any(|p| p.contains("second #0") && p.contains("reads y before")), "{problems:?}");
}

#[test]
fn accumulating_onto_nothing_is_found() {
    let mut plan = Plan::default();
    let x = plan.persistent("x", Elem::Float, 4);
    plan.begin("backward");
    let (dy, dx) = (plan.persistent("dy", Elem::Float, 4), plan.temp("dx", 4));
    rmsnorm::backward(&mut plan, "", (1, 4), 1e-5, x, x, dy, dx, true, false);
    assert!(plan.check()[0].contains("reads dx before"), "{:?}", plan.check());
}

#[test]
fn a_written_buffer_bound_twice_is_found() {
    let mut plan = Plan::default();
    let x = plan.persistent("x", Elem::Float, 4);
    plan.begin("in place");
    rmsnorm::forward(&mut plan, "", (1, 4), 1e-5, x, x, None, x);
    assert!(plan.check().iter().any(|p| p.contains("x is written and bound 4 times")), "{:?}", plan.check());
}

/// Bytes of the shared slots.
fn slot_bytes(plan: &Plan) -> u64 {
    let mut memory = Memory::default();
    memory.extend(plan);
    memory.slots.iter().map(|s| s.len as u64 * 4).sum()
}

/// The plan of a Llama of so many layers with LoRA on all linears, its "evaluate" and "train", and the adapter's
/// length.
fn llama(layers: usize, keep: Keep) -> (Plan, [SequenceId; 2], usize) {
    let spec = ModelSpec {
        vocab: 32,
        hidden: 16,
        layers,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        ffn: 32,
        tied: true,
        context: 64,
        ..ModelSpec::plain(&LLAMA)
    };
    let mut plan = Plan::default();
    let decoder = Decoder::declare(&mut plan, &spec, |_| WeightFormat::BF16, 1 << 20);
    let config = LoraConfig { modules: Module::ALL.to_vec(), dropout: 0.0, ..Default::default() };
    let adapter = Adapter::new(&spec, Lora::new(&spec, config).unwrap());
    let patches = adapter.declare(&mut plan, true);
    let io = Inputs::declare(&mut plan, &spec, 16, 16);
    let sequences = decoder.loss_sequences(&mut plan, &io, Some(&patches), Some(keep));
    assert_eq!(plan.check(), Vec::<String>::new());
    (plan, [sequences.evaluate, sequences.train.unwrap()], adapter.len)
}

/// Steps of "evaluate" and of "train".
fn steps(layers: usize, keep: Keep) -> [usize; 2] {
    let (plan, ids, _) = llama(layers, keep);
    ids.map(|id| plan.sequences[id].steps.len())
}

/// What steps say they touch of buffers that many share: each gradient is written once, each weight is read once.
#[test]
fn steps_touch_their_parts() {
    let (plan, [evaluate, train], adapter) = llama(3, Keep { blocks: 3, packed: false });
    let touched = |sequence: SequenceId, kernel: &str, binding: usize| -> usize {
        let steps = plan.sequences[sequence].steps.iter().filter(|step| format!("{:?}", step.kernel) == kernel);
        steps.map(|step| step.touched[binding]).sum()
    };
    assert_eq!(touched(train, "low_rank.gradient", 4), adapter);
    // q, k, v, o, gate, up and down of three blocks, and the head of one chunk: two bf16 a word.
    let weights = 3 * (16 * (16 + 8 + 8 + 16) + 3 * 16 * 32) + 16 * 32;
    assert_eq!(touched(evaluate, "matmul.forward", 1), weights / 2);
    // Half of the adapter is projected with, the other half comes with the products.
    assert_eq!(touched(evaluate, "low_rank.project", 1) + touched(evaluate, "matmul.forward", 3), adapter);
    for step in plan.sequences.iter().flat_map(|sequence| &sequence.steps) {
        let whole = |(binding, buf): (usize, &Buf)| step.touched[binding] <= plan.decl(*buf).len;
        assert!(step.bufs.iter().enumerate().all(whole), "{}", step.name());
    }
}

/// What a block costs in steps: each is a dispatch, and small models wait for little else.
#[test]
fn a_block_is_few_steps() {
    let a_block = |kept: [usize; 2], packed: bool| {
        let steps = |layers: usize, blocks: usize| steps(layers, Keep { blocks, packed });
        let ([eval, train], [eval_less, train_less]) = (steps(4, kept[1]), steps(3, kept[0]));
        [eval - eval_less, train - train_less]
    };
    let [forward, both] = a_block([3, 4], false);
    // Forward: norm, u, q+k+v, rope, attention, u, o; norm, u, gate+up, activation, u, down.
    assert_eq!(forward, 13);
    // Backward: du, down, activation, gradients, du, gate+up, norm, gradients; du, o, gradients, two of attention,
    // rope, du, q+k+v, norm, gradients.
    assert_eq!(both - forward, 18);
    // A block that is recomputed leaves out its last product.
    let [_, recomputed] = a_block([0, 0], false);
    assert_eq!(recomputed - both, 12);
    // To keep activations as bf16 is no step of its own.
    assert_eq!([a_block([3, 4], true), a_block([0, 0], true)], [[forward, both], [forward, recomputed]]);
}

/// What a run of SmolLM2-135M takes: Q4_0 weights, LoRA of rank 16 on all linears, 2048 tokens a step.
#[test]
fn a_run_of_a_real_size_fits_where_it_should() {
    let spec = ModelSpec {
        vocab: 49_152,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        tied: true,
        context: 8192,
        ..ModelSpec::plain(&LLAMA)
    };
    let mut plan = Plan::default();
    let decoder = Decoder::declare(&mut plan, &spec, |_| WeightFormat::Q4_0, 1 << 30);
    let base = Base { plan, device: Device::cpu(), decoder, sha256: String::new() };
    let config = LoraConfig { rank: 16, modules: Module::ALL.to_vec(), ..Default::default() };
    let adapter = Adapter::new(&spec, Lora::new(&spec, config).unwrap());
    let megabytes = |kept: usize, activations: Activations| {
        let options =
            TrainOptions { batch_size: 4, seq_len: 512, kept_blocks: Some(kept), activations, ..Default::default() };
        let total = planned::plan(&base, &adapter, &options).unwrap().memory.total;
        println!("{kept} of 30 blocks kept, {activations:?}: {:.1} MB", total as f64 / 1e6);
        total as f64 / 1e6
    };
    for (kept, activations, most) in [
        (0, Activations::F32, 450.0),
        (0, Activations::Bf16, 450.0),
        (30, Activations::F32, 1700.0),
        (30, Activations::Bf16, 1350.0),
    ] {
        let total = megabytes(kept, activations);
        assert!(total <= most, "{kept} of 30 blocks kept, {activations:?}: {total:.1} MB, {most} allowed");
    }
}
