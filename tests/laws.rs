//! Laws that hold whatever the numbers are: what equals what, bit for bit where nothing may differ.

#[path = "common/mod.rs"]
mod common;
#[path = "common/tiny.rs"]
mod tiny;

use luthier::Error;
use luthier::adapter::{Adapter, Kind};
use luthier::data::{Batch, IGNORE, ReadOptions, read, read_file};
use luthier::device::{Device, DeviceChoice};
use luthier::model::Base;
use luthier::model::decoder::Keep;
use luthier::model::generate::{Finish, Generator, Request, Sampling};
use luthier::model::tensors::Tensor;
use luthier::plan::Style;
use luthier::session::Session;
use luthier::train::options::Activations;
use luthier::train::{Optim, Schedule, TrainOptions, Trainer};
use luthier::weights::ModelFiles;
use pollster::block_on;
use tiny::{Rig, documents};

/// Runs a law on the CPU and, where there is one, on the GPU with both families of shaders.
fn everywhere(law: impl Fn(&dyn Fn() -> Device, &str)) {
    law(&Device::cpu, "CPU");
    if common::gpu().is_none() {
        return;
    }
    for style in [Style::Software, Style::Tiled] {
        let open = || {
            let mut gpu = common::gpu().expect("it was there");
            gpu.set_style(style);
            Device::Gpu(Box::new(gpu))
        };
        law(&open, &format!("GPU, {style:?}"));
    }
}

/// Fails unless all of `got` are within `tolerance` of `want`, relative to the largest of `want`.
fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0, |m: f64, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs() / largest;
        assert!(error <= tolerance, "{what}: value {i} is {g}, not {w}: {error:.1e} of the largest");
    }
}

fn rig(model: &str, device: Device, dropout: f32, b: usize) -> Rig {
    let base = tiny::base(model, device);
    let adapter = tiny::adapter(&base, dropout, false);
    Rig::new(base, adapter, b)
}

/// The model that comes with the sources.
fn nano() -> ModelFiles {
    ModelFiles::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano")).unwrap()
}

fn steps(base: &mut Base, adapter: (Adapter, Vec<f32>), options: TrainOptions) -> Vec<f32> {
    let mut trainer = tiny::trainer(base, adapter, options);
    while !trainer.done() {
        block_on(trainer.step(base)).unwrap();
    }
    block_on(trainer.reports(base)).unwrap();
    block_on(trainer.values(base)).unwrap()
}

#[test]
fn an_adapter_with_b_zero_is_the_identity() {
    everywhere(|device, name| {
        let base = tiny::base("tiny", device());
        let adapter = tiny::adapter(&base, 0.0, true);
        let mut rig = Rig::new(base, adapter, 2);
        let batch = tiny::batch();
        assert!(rig.logits(&batch) == rig.plain_logits(&batch), "{name}");
    });
}

#[test]
fn merged_weights_are_the_adapted_model() {
    for (device, tolerance) in [(Device::reference as fn() -> Device, 1e-6), (Device::cpu, 1e-5)] {
        let mut adapted = rig("tiny_llama3", device(), 0.0, 2);
        let mut merged = rig("tiny_llama3", device(), 0.0, 2);
        let flat = tiny::adapter(&merged.base, 0.0, false).1;
        let files = tiny::files("tiny_llama3");
        for (site, patch) in &adapted.lora.sites() {
            let (o, i) = merged.base.spec().linear_shape(site.module);
            let low = patch.low_rank.unwrap();
            let checkpoint = files.checkpoint();
            let info = checkpoint.get(&adapted.base.spec().hf_name(Tensor::Weight(*site))).unwrap();
            let mut w = block_on(checkpoint.read_f32(info)).unwrap();
            for (n, w) in w.iter_mut().enumerate() {
                let (row, col) = (n / i, n % i);
                let term = |k: usize| flat[low.b + k * o + row] as f64 * flat[low.a + k * i + col] as f64;
                *w = (*w as f64 + low.scale as f64 * (0..low.rank).map(term).sum::<f64>()) as f32;
            }
            let shard = merged.base.decoder.matrix(Tensor::Weight(*site)).unwrap().shards[0];
            merged.base.device.write_floats(shard.buf, shard.offset, &w);
        }
        let batch = tiny::batch();
        let (want, plain) = (adapted.logits(&batch), adapted.plain_logits(&batch));
        close("logits", &merged.plain_logits(&batch), &want, tolerance);
        assert!(want != plain);
    }
}

#[test]
fn micro_batches_are_one_batch() {
    let documents = documents(9, 4);
    for (device, tolerance) in [(Device::reference as fn() -> Device, 1e-6), (Device::cpu, 1e-4)] {
        let run = |b: usize| {
            let mut base = tiny::base("tiny", device());
            let (lora, flat) = tiny::adapter(&base, 0.0, false);
            let batches = tiny::batches(&documents, b, true);
            let window = batches.batches_per_epoch() as usize;
            let options = TrainOptions { batch_size: b, grad_accum: window, ..tiny::options(3) };
            let mut trainer = block_on(Trainer::new(&mut base, lora, flat, batches, options)).unwrap();
            let mut numbers = Vec::new();
            while !trainer.done() {
                let reports = block_on(trainer.step(&mut base)).unwrap();
                numbers.extend(reports.iter().flat_map(|r| [r.loss, r.grad_norm]));
            }
            let last = block_on(trainer.values(&mut base)).unwrap();
            (window, numbers, last.into_iter().map(f64::from).collect::<Vec<_>>())
        };
        let whole = run(tiny::packed(&documents, true).b);
        assert_eq!(whole.0, 1);
        for b in [1, 2, 3] {
            let parts = run(b);
            assert!(parts.0 > 1 && parts.1.len() == 6);
            close("losses and norms", &parts.1, &whole.1, tolerance);
            close("adapter", &parts.2, &whole.2, 10.0 * tolerance);
        }
    }
}

#[test]
fn packed_is_unpacked() {
    let documents = documents(7, 5);
    for (device, tolerance) in [(Device::reference as fn() -> Device, 1e-6), (Device::cpu, 1e-5)] {
        let run = |packing: bool| {
            let batch = tiny::packed(&documents, packing);
            let (loss, grads) = rig("tiny", device(), 0.0, batch.b).gradients(&batch, 0);
            (batch, loss, grads)
        };
        let (packed, unpacked) = (run(true), run(false));
        assert!(packed.0.b < unpacked.0.b && packed.0.supervised == unpacked.0.supervised);
        close("loss", &[packed.1], &[unpacked.1], tolerance);
        close("gradients", &packed.2, &unpacked.2, tolerance);
    }
}

/// Other tokens for `rows`, with the same targets.
fn disturbed(batch: &Batch, rows: std::ops::Range<usize>) -> Batch {
    let mut other = batch.clone();
    other.ids[rows].iter_mut().for_each(|id| *id = (*id + 41) % 96);
    other
}

#[test]
fn a_token_sees_only_what_is_before_it_in_its_document() {
    everywhere(|device, name| {
        let mut rig = rig("tiny_llama3", device(), 0.0, 2);
        let vocab = rig.base.spec().vocab;
        let batch = tiny::batch();
        let [start, end] = batch.spans[0].map(|row| row as usize);
        let middle = (start + end) / 2;
        let logits = rig.logits(&batch);
        let other = rig.logits(&disturbed(&batch, middle..end));
        let same = |n: usize| logits[n * vocab..][..vocab] == other[n * vocab..][..vocab];
        for n in 0..batch.ids.len() {
            let sees = (middle..end).contains(&n);
            assert_eq!(same(n), !sees, "{name}: row {n}, tokens {middle} to {end} changed");
        }
    });
}

#[test]
fn masked_tokens_have_no_gradient() {
    everywhere(|device, name| {
        let mut rig = rig("tiny", device(), 0.0, 2);
        let mut batch = tiny::batch();
        let [start, end] = batch.spans[0].map(|row| row as usize);
        // Nothing is asked of the first document, and nothing of the last tokens of the second.
        let [next, next_end] = batch.spans[end].map(|row| row as usize);
        let tail = next_end - 3..next_end;
        batch.targets[start..end].fill(IGNORE);
        batch.targets[tail.clone()].fill(IGNORE);
        batch.supervised = batch.targets.iter().filter(|t| **t != IGNORE).count();
        assert!(next < tail.start && batch.supervised > 4);
        let want = rig.gradients(&batch, 0);
        assert!(want.1.iter().any(|g| *g != 0.0));
        for rows in [start..end, tail] {
            assert!(rig.gradients(&disturbed(&batch, rows.clone()), 0) == want, "{name}: rows {rows:?}");
        }
        let seen = rig.gradients(&disturbed(&batch, next..next + 1), 0);
        assert!(seen != want, "{name}: the first token of a supervised document matters");
    });
}

#[test]
fn recomputed_blocks_are_kept_blocks() {
    everywhere(|device, name| {
        let batch = tiny::batch();
        let run = |blocks: usize, packed: bool| {
            let base = tiny::base("tiny", device());
            let adapter = tiny::adapter(&base, 0.1, false);
            Rig::keeping(base, adapter, 2, Keep { blocks, packed }).gradients(&batch, 5)
        };
        for packed in [false, true] {
            let want = run(0, packed);
            (1..=3).for_each(|kept| assert!(run(kept, packed) == want, "{name}: {kept} blocks kept, packed: {packed}"));
        }
    });
}

/// Gate and up rounded to 8 bits leave the loss alone, and move a gradient by no more than their own error, 2⁻⁹, twice:
/// once through the activation, once through its slope.
#[test]
fn activations_kept_as_bf16_are_near() {
    everywhere(|device, name| {
        let batch = tiny::batch();
        // With a gate, without one, and with norms behind the halves.
        for model in ["tiny", "tiny_gpt2", "tiny_gemma2"] {
            let run = |packed: bool| {
                let base = tiny::base(model, device());
                let adapter = tiny::adapter(&base, 0.0, false);
                let blocks = base.spec().layers;
                Rig::keeping(base, adapter, 2, Keep { blocks, packed }).gradients(&batch, 0)
            };
            let (whole, packed) = (run(false), run(true));
            assert!(packed.0 == whole.0, "{name}, {model}: the loss is {}, not {}", packed.0, whole.0);
            close(&format!("{name}, {model}: gradients"), &packed.1, &whole.1, 2.0 / 512.0);
            assert!(packed.1 != whole.1, "{name}, {model}: nothing was rounded");
        }
        let train = |activations: Activations| {
            let mut base = tiny::base("tiny", device());
            let adapter = tiny::adapter(&base, 0.0, false);
            let mut trainer = tiny::trainer(&mut base, adapter, TrainOptions { activations, ..tiny::options(10) });
            let window = [batch.clone()];
            let mut losses = Vec::new();
            while !trainer.done() {
                let reports = block_on(trainer.step_on(&mut base, &window)).unwrap();
                losses.extend(reports.iter().map(|report| report.loss));
            }
            losses
        };
        let (whole, packed) = (train(Activations::F32), train(Activations::Bf16));
        assert!(whole.len() == 10 && packed != whole && whole[9] < 0.9 * whole[0], "{name}: {whole:?}");
        // Adam moves a parameter by its rate however small the gradient: those near 0 may go the other way.
        close(&format!("{name}: losses"), &packed, &whole, 0.01);
    });
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    everywhere(|device, name| {
        let run = |seed: u64| {
            let mut base = tiny::base("tiny", device());
            let (lora, _) = tiny::adapter(&base, 0.1, false);
            let flat = lora.init(seed);
            steps(&mut base, (lora, flat), TrainOptions { seed, ..tiny::options(6) })
        };
        let first = run(1);
        assert!(first == run(1), "{name}: the same seed");
        assert!(first != run(2), "{name}: another seed");
    });
}

/// On a model whose products are large enough to be shared out.
#[test]
fn the_number_of_threads_does_not_matter() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut base = block_on(Base::load(&nano(), Device::cpu(), |_, _| {})).unwrap();
            let adapter = tiny::adapter(&base, 0.1, false);
            steps(&mut base, adapter, TrainOptions { batch_size: 8, ..tiny::options(3) })
        })
    };
    let want = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == want, "{threads} threads");
    }
}

#[test]
fn dropout_masks_follow_the_seed() {
    everywhere(|device, name| {
        let mut dropped = rig("tiny", device(), 0.2, 2);
        let mut whole = rig("tiny", device(), 0.0, 2);
        let batch = tiny::batch();
        let first = dropped.gradients(&batch, 1);
        assert!(first == dropped.gradients(&batch, 1), "{name}: the same seed");
        assert!(first != dropped.gradients(&batch, 2), "{name}: another seed");
        assert!(dropped.loss(&batch) == whole.loss(&batch), "{name}: evaluation has no dropout");
    });
}

/// The gradient of the training loss, dropout included, against central differences in f64.
#[test]
fn gradients_are_differences_of_the_loss() {
    const H: f64 = 1e-5;
    for (model, dropout) in [("tiny", 0.0), ("tiny_llama3", 0.0), ("tiny", 0.3), ("tiny_llama3", 0.3)] {
        let mut rig = rig(model, Device::reference(), dropout, 2);
        let (batch, seed) = (tiny::batch(), 9);
        let (params, len) = (rig.patches.params, rig.lora.len);
        let flat = tiny::read(&mut rig.base, params, len);
        let (_, grads) = rig.gradients(&batch, seed);
        let mut at = |i: usize, value: f64| {
            let Device::Reference(cpu) = &mut rig.base.device else { unreachable!() };
            cpu.write_floats(params, i, [value].into_iter());
            rig.gradients(&batch, seed).0
        };
        // Some entries of A and some of B at every site.
        let lora = tiny::adapter(&tiny::base(model, Device::cpu()), 0.0, false).0;
        let entries: Vec<usize> = lora.parts.iter().flat_map(|part| [part.at + 5, part.at + 18]).collect();
        let largest = entries.iter().fold(0.0, |m: f64, i| m.max(grads[*i].abs()));
        for i in entries {
            let difference = (at(i, flat[i] + H) - at(i, flat[i] - H)) / (2.0 * H);
            at(i, flat[i]);
            let error = (difference - grads[i]).abs() / largest;
            assert!(error < 1e-6, "{model}, dropout {dropout}, entry {i}: {} by differences {difference}", grads[i]);
        }
    }
}

/// A batch with more rows than a chunk of the head holds, its supervised rows in two chunks or, with most masked, in
/// one; and the same rows in batches of one chunk each.
#[test]
fn a_head_in_chunks_is_a_whole_head() {
    const ROWS: usize = 54;
    let law = |device: &dyn Fn() -> Device, name: &str| {
        for mask_every in [ROWS, 2] {
            let mut documents = tiny::full_rows(ROWS, 3);
            documents.iter_mut().step_by(mask_every).skip(1).for_each(|(_, mask)| mask[..tiny::T - 1].fill(false));
            let rig = |b: usize| {
                let base = block_on(Base::load(&nano(), device(), |_, _| {})).unwrap();
                let adapter = tiny::adapter(&base, 0.0, false);
                (Rig::new(base, adapter, b), tiny::batches(&documents, b, false))
            };
            let (mut whole, batches) = rig(ROWS);
            let chunk = luthier::model::decoder::head_chunk(whole.base.spec(), ROWS * tiny::T);
            let batch = batches.batch(0);
            assert_eq!(batch.supervised > chunk, mask_every == ROWS, "{} of {chunk}", batch.supervised);
            assert!(chunk < ROWS * tiny::T);
            let (loss, grads) = whole.gradients(&batch, 0);
            let (mut rig, batches) = rig(ROWS / 3);
            let (mut want_loss, mut want) = (0.0, vec![0.0; grads.len()]);
            for part in (0..3).map(|i| batches.batch(i)) {
                let share = part.supervised as f64 / batch.supervised as f64;
                let (loss, grads) = rig.gradients(&part, 0);
                want_loss += share * loss;
                want.iter_mut().zip(grads).for_each(|(w, g)| *w += share * g);
            }
            close(&format!("{name}: loss"), &[loss], &[want_loss], 1e-5);
            close(&format!("{name}: gradients"), &grads, &want, 1e-5);
        }
    };
    law(&Device::cpu, "CPU");
    if common::gpu().is_some() {
        law(&|| Device::Gpu(Box::new(common::gpu().expect("it was there"))), "GPU");
    }
}

/// Ids of one document as a batch of one row.
fn one_document(ids: &[u32]) -> Batch {
    let mut supervised = vec![true; ids.len()];
    supervised[0] = false;
    tiny::packed(&[(ids.to_vec(), supervised)], false)
}

#[test]
fn the_cache_gives_what_the_whole_forward_gives() {
    everywhere(|device, name| {
        let mut rig = rig("tiny_llama3", device(), 0.0, 1);
        let prompt = documents(1, 6)[0].0.clone();
        let generator = block_on(Generator::new(&mut rig.base, Some(&rig.patches), 1, tiny::T)).unwrap();
        let sampling = Sampling { max_new_tokens: tiny::T - prompt.len(), ..Default::default() };
        for adapted in [false, true] {
            let prompts = [prompt.clone()];
            let out = block_on(generator.run(
                &mut rig.base,
                Request { prompts: &prompts, first: 0, adapted, stop: &[], sampling: &sampling },
                |_, _| true,
            ))
            .unwrap();
            let ids = [prompt.as_slice(), &out[0].ids].concat();
            assert!(ids.len() > prompt.len() + 5);
            let batch = one_document(&ids);
            let logits = if adapted { rig.logits(&batch) } else { rig.plain_logits(&batch) };
            let best = |row: &[f64]| (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as u32;
            let rows: Vec<&[f64]> = logits.chunks_exact(rig.base.spec().vocab).collect();
            for at in prompt.len()..ids.len() {
                assert_eq!(ids[at], best(rows[at - 1]), "{name}, adapted: {adapted}, position {at}");
            }
            let last = block_on(generator.prompt_logits(&mut rig.base, adapted, &prompts)).unwrap();
            let last: Vec<f64> = last.into_iter().map(f64::from).collect();
            close(&format!("{name}: logits of the prompt"), &last, rows[prompt.len() - 1], 1e-5);
        }
    });
}

/// More prompt tokens than a prefill chunk has rows, so that prompts are cut, and more prompts than sequences.
#[test]
fn prompts_together_are_prompts_alone() {
    everywhere(|device, name| {
        let mut base = tiny::base("tiny", device());
        let (lora, flat) = tiny::adapter(&base, 0.0, false);
        let patches = lora.declare(&mut base.plan, false);
        let together = block_on(Generator::new(&mut base, Some(&patches), 8, 48)).unwrap();
        let alone = block_on(Generator::new(&mut base, Some(&patches), 1, 48)).unwrap();
        base.device.write_floats(patches.params, 0, &flat);
        let prompts: Vec<Vec<u32>> = documents(8, 6).into_iter().map(|(ids, _)| ids).collect();
        assert!(prompts.iter().map(Vec::len).sum::<usize>() > 64);
        let sampling = Sampling { max_new_tokens: 10, ..Default::default() };
        let run = |generator: &Generator, base: &mut Base, prompts: &[Vec<u32>]| {
            block_on(generator.run(
                base,
                Request { prompts, first: 0, adapted: true, stop: &[], sampling: &sampling },
                |_, _| true,
            ))
            .unwrap()
        };
        let all = run(&together, &mut base, &prompts);
        for (prompt, got) in prompts.iter().zip(all) {
            let want = run(&alone, &mut base, std::slice::from_ref(prompt));
            assert_eq!(got.ids, want[0].ids, "{name}");
        }
    });
}

#[test]
fn memory_is_what_was_planned_and_no_step_allocates() {
    everywhere(|device, name| {
        let mut base = tiny::base("tiny", device());
        let adapter = tiny::adapter(&base, 0.1, false);
        let activations = Activations::Bf16;
        let options = TrainOptions { grad_accum: 2, kept_blocks: Some(1), activations, ..tiny::options(5) };
        let mut trainer = tiny::trainer(&mut base, adapter, options);
        holds_what_was_planned(&mut base, &mut trainer, name);
    });
}

fn holds_what_was_planned(base: &mut Base, trainer: &mut Trainer, name: &str) {
    let before = base.device.allocated();
    let planned = trainer.memory.total;
    let off = (before as f64 - planned as f64).abs() / planned as f64;
    assert!(off < 0.02, "{name}: {before} bytes, {planned} planned");
    while !trainer.done() {
        block_on(trainer.step(base)).unwrap();
        assert_eq!(base.device.allocated(), before, "{name}: step {}", trainer.step_number());
    }
}

/// 2 bytes of moments a number and 1 in 64 more, instead of 8; and a table of 2 KiB.
#[test]
fn moments_of_8_bits_take_a_quarter() {
    everywhere(|device, name| {
        let planned = [Optim::AdamW, Optim::AdamW8bit].map(|optim| {
            let mut base = tiny::base("tiny", device());
            let adapter = tiny::adapter(&base, 0.1, false);
            let len = adapter.0.len as u64;
            let mut trainer = tiny::trainer(&mut base, adapter, TrainOptions { optim, ..tiny::options(2) });
            holds_what_was_planned(&mut base, &mut trainer, name);
            (len, trainer.memory.clone())
        });
        let [(len, floats), (_, blocks)] = planned;
        assert_eq!(floats.adapter, 16 * len);
        assert_eq!(blocks.adapter, 8 * len + 2 * 4 * 65 * len.div_ceil(256));
        assert_eq!(floats.total - blocks.total, floats.adapter - blocks.adapter - 2048, "{name}");
    });
}

/// Of what a run learns by moments of f32, a run by moments of 8 bits learns all but 1 % (or more than all), whether
/// few numbers are trained or all, at the same time or in turns.
#[test]
fn moments_of_8_bits_learn_as_much() {
    let data =
        read_file(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/train.jsonl").as_ref(), &ReadOptions::default()).unwrap();
    for (method, lr) in [(Kind::Lora, 5e-3), (Kind::Full, 1e-3), (Kind::Lisa, 1e-3)] {
        let learned = [Optim::AdamW, Optim::AdamW8bit].map(|optim| {
            let mut session = block_on(Session::open(&nano(), "nano", DeviceChoice::Cpu, |_, _| {})).unwrap();
            let shape = TrainOptions { steps: Some(24), seq_len: 96, warmup_steps: 3, ..Default::default() };
            let options = TrainOptions { method, optim, lr: Some(lr), lisa_interval: 6, ..shape };
            block_on(session.start_training(&data, None, options, None, None)).unwrap();
            let start = block_on(session.validate()).unwrap().unwrap().loss;
            while session.step_number() < 24 {
                block_on(session.step()).unwrap();
            }
            start - block_on(session.validate()).unwrap().unwrap().loss
        });
        println!("{}: {learned:?} nats", method.name());
        assert!(learned[0] > 1.0 && learned[1] > 0.99 * learned[0], "{}: {learned:?} nats", method.name());
    }
}

#[test]
fn the_base_stays_as_it_is() {
    everywhere(|device, name| {
        let mut rig = rig("tiny", device(), 0.0, 2);
        let batch = tiny::batch();
        let before = rig.plain_logits(&batch);
        let adapter = tiny::adapter(&rig.base, 0.0, false);
        let trained = steps(&mut rig.base, adapter.clone(), tiny::options(5));
        assert!(trained != adapter.1, "{name}: training trains");
        assert!(rig.plain_logits(&batch) == before, "{name}");
    });
}

/// The step that broke is named, and what was good before it is kept.
#[test]
fn a_run_that_diverges_stops_with_its_last_good_adapter() {
    everywhere(|device, name| {
        let run = |lr: f64, poison: Option<f32>| {
            let mut base = tiny::base("tiny", device());
            let (lora, mut flat) = tiny::adapter(&base, 0.0, false);
            flat[3] = poison.unwrap_or(flat[3]);
            let options = TrainOptions { lr: Some(lr), max_grad_norm: 0.0, ..tiny::options(20) };
            let mut trainer = tiny::trainer(&mut base, (lora, flat.clone()), options);
            let mut reported = 0;
            let error = loop {
                match block_on(trainer.step(&mut base)) {
                    Ok(reports) => {
                        reported += reports.len() as u64;
                        assert!(!trainer.done(), "{name}: lr {lr}, poison {poison:?} did not stop");
                    }
                    Err(error) => break error,
                }
            };
            let Error::Diverged { step, .. } = &error else { panic!("{name}: {error}") };
            assert_eq!(reported, step - 1, "{name}: the sound steps are reported first");
            assert!(error.to_string().starts_with(&format!("step {step}: the loss is")) && !error.hint().is_empty());
            (*step, flat, block_on(trainer.values(&mut base)).unwrap())
        };
        let (step, start, last) = run(1e30, None);
        assert_eq!(step, 2, "{name}: the first step is still finite");
        assert!(last != start && last.iter().all(|x| x.is_finite()), "{name}");
        for poison in [f32::NAN, f32::INFINITY] {
            let (step, start, last) = run(1e-3, Some(poison));
            assert_eq!(step, 1, "{name}");
            let bits = |flat: &[f32]| flat.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&last) == bits(&start), "{name}: {poison} stays where it was, and does not spread");
        }
    });
}

/// A matrix in pieces, as where it is larger than a binding may be.
#[test]
fn matrices_in_pieces_are_matrices() {
    everywhere(|device, name| {
        let batch = tiny::batch();
        for model in ["tiny", "tiny_llama3"] {
            let mut whole = rig(model, device(), 0.0, 2);
            let base = tiny::sharded(model, device(), 2048);
            let adapter = tiny::adapter(&base, 0.0, false);
            assert!(base.decoder.head.shards.len() > 4);
            assert_eq!(whole.base.decoder.head.shards.len(), 1);
            let mut pieces = Rig::new(base, adapter, 2);
            close(&format!("{name}, {model}: logits"), &pieces.logits(&batch), &whole.logits(&batch), 1e-5);
            let (got, want) = (pieces.gradients(&batch, 0), whole.gradients(&batch, 0));
            close(&format!("{name}, {model}: gradients"), &got.1, &want.1, 1e-5);
        }
    });
}

/// The end token is learned like any other: after tuning, answers end where they ended in the data.
#[test]
fn a_tuned_model_gives_its_answers_and_stops() {
    let answers = [
        ("Ring the north bell twice", "belfry ring --bell north --times 2"),
        ("Hush the south bell", "belfry hush south"),
        ("Which bells are hung?", "belfry list"),
        ("Oil the west bell at noon", "belfry oil west --at 12:00"),
        ("Ring every bell once", "belfry ring --all"),
    ];
    let line = |(prompt, completion): &(&str, &str)| {
        format!("{}\n", serde_json::json!({ "prompt": prompt, "completion": completion }))
    };
    let text: String = answers.iter().map(line).collect();
    let records = read("bells.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap();
    let mut session = block_on(Session::open(&nano(), "nano", DeviceChoice::Cpu, |_, _| {})).unwrap();
    let options = TrainOptions {
        rank: 16,
        lr: Some(5e-3),
        schedule: Schedule::Linear,
        steps: Some(40),
        batch_size: 2,
        seq_len: 128,
        val_fraction: 0.0,
        ..Default::default()
    };
    block_on(session.start_training(&records, None, options, None, None)).unwrap();
    while !session.done() {
        block_on(session.step()).unwrap();
    }
    let prompts = answers.map(|(prompt, _)| prompt.into());
    let sampling = Sampling { max_new_tokens: 60, ..Default::default() };
    let tuned = block_on(session.generate(&prompts, true, true, &sampling)).unwrap();
    for (got, (prompt, completion)) in tuned.iter().zip(answers) {
        assert_eq!((got.text.trim(), got.finish), (completion, Finish::Stop), "{prompt}");
    }
    let before = block_on(session.generate(&prompts, true, false, &sampling)).unwrap();
    assert!(before.iter().zip(answers).all(|(got, (_, completion))| got.text.trim() != completion));
}
