//! meganeura: a training step of SmolLM2-135M's shape on Vulkan or Metal, all parameters, one row of tokens, Adam. It
//! has no LoRA and no batches. One JSON line.
//!
//! `peer-meganeura [KEY=VALUE ...]` with the keys of [`setup`].

use meganeura::models::smollm2::{SmolLM2Config, build_training_graph};
use std::time::Instant;

/// Width, layers, heads, key and value heads, feed-forward, vocabulary, tokens, steps, and steps before those.
const DEFAULTS: [(&str, usize); 9] =
    [("d", 576), ("l", 30), ("h", 9), ("g", 3), ("f", 1536), ("v", 49152), ("t", 256), ("steps", 5), ("warmup", 2)];

fn setup() -> Result<[usize; 9], String> {
    let mut values = DEFAULTS;
    for arg in std::env::args().skip(1) {
        let (key, value) = arg.split_once('=').ok_or(format!("`{arg}` is not KEY=VALUE"))?;
        let found = values.iter_mut().find(|(name, _)| *name == key).ok_or(format!("no key `{key}`: {DEFAULTS:?}"))?;
        found.1 = value.parse().map_err(|e| format!("`{arg}`: {e}"))?;
    }
    Ok(values.map(|(_, value)| value))
}

fn main() -> Result<(), String> {
    let [d, l, h, g, f, vocab, t, steps, warmup] = setup()?;
    let config = SmolLM2Config {
        vocab_size: vocab,
        hidden_size: d,
        num_hidden_layers: l,
        num_attention_heads: h as u32,
        num_key_value_heads: g as u32,
        intermediate_size: f,
        ..SmolLM2Config::smollm2_135m()
    };
    let graph = build_training_graph(&config, t);
    let start = Instant::now();
    let mut session = meganeura::build(&graph, meganeura::SessionConfig::from_env()).0;
    let mut trainable = 0;
    for (seed, (name, buffer)) in session.plan().param_buffers.clone().into_iter().enumerate() {
        let len = session.plan().buffers[buffer.0 as usize] / 4;
        let value = |i: usize| (((seed * 7919 + i) % 1009) as f32 / 1009.0 - 0.5) * 0.07;
        let norm = name.contains("norm");
        session.set_parameter(&name, &(0..len).map(|i| if norm { 1.0 } else { value(i) }).collect::<Vec<_>>());
        trainable += len;
    }
    let id = |i: usize| (i * 7 + 3) % vocab;
    session.set_input_u32("token_ids", &(0..t).map(|i| id(i) as u32).collect::<Vec<_>>());
    let mut labels = vec![0.0; t * vocab];
    (0..t).for_each(|i| labels[i * vocab + id(i + 1)] = 1.0);
    session.set_input("labels", &labels);
    session.set_adam(1e-3, 0.9, 0.999, 1e-8);
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    let mut first = 0.0;
    for step in 0..warmup + steps {
        let begun = Instant::now();
        session.step();
        session.wait();
        losses.push(session.read_loss());
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        if step == 0 {
            first = start.elapsed().as_secs_f64() * 1e3;
        }
    }
    let mut times = times.split_off(warmup);
    times.sort_by(f64::total_cmp);
    let (median, min) = (times[times.len() / 2], times[0]);
    print!(r#"{{"peer": "meganeura", "case": "full", "batch": 1, "tokens": {t}, "trainable": {trainable}, "#);
    print!(r#""steps": {steps}, "first_ms": {first:.1}, "median_ms": {median:.2}, "min_ms": {min:.2}, "#);
    print!(r#""tokens_per_s": {:.1}, "#, t as f64 / median * 1e3);
    println!(r#""loss_first": {:.4}, "loss_last": {:.4}}}"#, losses[0], losses[losses.len() - 1]);
    Ok(())
}
