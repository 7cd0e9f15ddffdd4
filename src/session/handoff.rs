//! A run handed over to PyTorch: the data as TRL reads them, and what `train.py` needs to go on from the adapter.
//!
//! Every answer that Luthier learns becomes a line with a prompt and a completion, so that TRL learns the same tokens
//! without any mark in the chat template; to it what the template puts behind an answer's end belongs to the answer.
//! A conversation of several answers is as many lines.

use crate::data::{Message, Record, Records};
use crate::train::{Optim, Schedule, TrainOptions};
use serde_json::{Value, json};

/// `train.py` and `requirements.txt`: (name, content).
pub fn scripts(options: &TrainOptions) -> [(&'static str, String); 2] {
    let more = match options.optim {
        Optim::AdamW => "",
        Optim::AdamW8bit => "bitsandbytes>=0.50\n",
    };
    let requirements = include_str!("handoff/requirements.txt").to_string() + more;
    [("train.py", include_str!("handoff/train.py").into()), ("requirements.txt", requirements)]
}

/// The lines of records; `chat` says whether the model has a chat template.
pub fn lines(records: &Records, chat: bool) -> String {
    let all = records.records.iter().flat_map(|(_, record)| rows(record, chat));
    all.map(|row| format!("{row}\n")).collect()
}

fn rows(record: &Record, chat: bool) -> Vec<Value> {
    if let Record::Text { text, .. } = record {
        return vec![json!({ "text": text })];
    }
    if let (true, Some(turns)) = (chat, record.turns()) {
        let row = |i: usize| {
            let (prompt, completion): (&[Message], &Message) = (&turns.messages[..i], &turns.messages[i]);
            let mut row = json!({ "prompt": prompt, "completion": [completion] });
            if let Some(tools) = &turns.tools {
                row["tools"] = tools.clone();
            }
            row
        };
        let learned = |i: &usize| turns.messages[*i].is_assistant() && turns.messages[*i].learned;
        return (0..turns.messages.len()).filter(learned).map(row).collect();
    }
    let pair = record.plain().map(|(prompt, completion)| json!({ "prompt": prompt, "completion": completion }));
    pair.into_iter().collect()
}

/// `config.json`: the base model, LoRA+'s ratio, and the run's options by the names that TRL has for them.
pub fn config(model: &str, options: &TrainOptions) -> Value {
    let o = options;
    let schedule = match o.schedule {
        Schedule::Constant if o.warmup_steps > 0 => "constant_with_warmup",
        Schedule::Constant => "constant",
        Schedule::Linear => "linear",
        Schedule::Cosine => "cosine",
    };
    let optim = match o.optim {
        Optim::AdamW => "adamw_torch",
        Optim::AdamW8bit => "adamw_8bit",
    };
    let mut sft = json!({
        "learning_rate": o.peak_lr(), "lr_scheduler_type": schedule, "warmup_steps": o.warmup_steps,
        "weight_decay": o.weight_decay, "max_grad_norm": o.max_grad_norm,
        "per_device_train_batch_size": o.batch_size, "per_device_eval_batch_size": o.batch_size,
        "gradient_accumulation_steps": o.grad_accum, "max_length": o.seq_len, "packing": false,
        "seed": o.seed, "logging_steps": 10, "save_strategy": "epoch", "completion_only_loss": true,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "optim": optim,
    });
    match o.steps {
        Some(steps) => sft["max_steps"] = json!(steps),
        None => sft["num_train_epochs"] = json!(o.epochs),
    }
    json!({ "model": model, "loraplus_lr_ratio": o.loraplus_lr_ratio, "sft": sft })
}

/// `README.md`
pub fn readme(model: &str) -> String {
    format!(
        "# Go on in PyTorch\n\n`python train.py` goes on from `adapter/` (tuned by Luthier on {model}) with TRL, PEFT and \
         Accelerate; see the top of the file. The options in `config.json` are those of the run, with three \
         differences: a row holds one example (Luthier packs several, so a batch of as many rows holds fewer examples), \
         the learning rate's schedule begins anew, and TRL also learns what a chat template puts behind the end of an \
         answer, such as a line break, so its losses are means over more tokens. `train.jsonl` holds every answer with \
         what comes before it; `eval.jsonl`, where there is one, the validation data.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ReadOptions, read};

    #[test]
    fn an_optimizer_brings_what_it_needs() {
        let needs = |optim: Optim| {
            let options = TrainOptions { optim, ..Default::default() };
            let named = config("m", &options)["sft"]["optim"].clone();
            (named, scripts(&options)[1].1.contains("bitsandbytes"))
        };
        assert_eq!(needs(Optim::AdamW), (json!("adamw_torch"), false));
        assert_eq!(needs(Optim::AdamW8bit), (json!("adamw_8bit"), true));
        let plus = TrainOptions { loraplus_lr_ratio: 16.0, ..Default::default() };
        assert_eq!(config("m", &plus)["loraplus_lr_ratio"], json!(16.0));
    }

    #[test]
    fn every_learned_answer_is_a_line() {
        let text = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"},{"role":"assistant","content":"e","weight":0}]}
{"prompt":"p","completion":"q"}
{"text":"t"}"#;
        let records = read("x.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap();
        let rows: Vec<Value> = lines(&records, true).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let said = |row: &Value| (row["prompt"].as_array().unwrap().len(), row["completion"][0]["content"].clone());
        assert_eq!((said(&rows[0]), said(&rows[1])), ((1, json!("b")), (3, json!("d"))));
        assert_eq!(
            rows[2],
            json!({ "prompt": [{ "role": "user", "content": "p" }], "completion": [{ "role": "assistant", "content": "q" }] })
        );
        assert_eq!((rows.len(), &rows[3]), (4, &json!({ "text": "t" })));
        let plain = lines(&records.with(records.records[1..].to_vec()), false);
        assert_eq!(plain, "{\"prompt\":\"p\",\"completion\":\"q\"}\n{\"text\":\"t\"}\n");
    }
}
