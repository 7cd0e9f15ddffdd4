//! Qwen2 and 2.5: Llama with biases on q, k and v. Qwen3: none, but each head of q and k is normed before it is rotated
//! (transformers `modeling_qwen2.py`, `modeling_qwen3.py`; llama.cpp archs `qwen2`, `qwen3`).

use super::Family;
use super::keys::Keys;
use super::llama::{self, config, decoder, gguf_decoder, gguf_keys, square};
use crate::error::Result;
use crate::model::spec::ModelSpec;
use serde_json::json;

pub static QWEN2: Family = Family {
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    about: "Qwen2, Qwen2.5",
    arch: "qwen2",
    hf: llama::HF,
    gguf: llama::GGUF,
    interleaved: false,
    norms_less_one: false,
    from_config: |keys| {
        whole_attention(keys)?;
        Ok(ModelSpec { qkv_bias: true, ..decoder(keys, &QWEN2)? })
    },
    from_gguf: |keys| Ok(ModelSpec { qkv_bias: true, ..square(gguf_decoder(keys, &QWEN2)?) }),
    to_config: config,
    to_gguf: gguf_keys,
};

pub static QWEN3: Family = Family {
    name: "qwen3",
    class: "Qwen3ForCausalLM",
    about: "Qwen3, dense",
    arch: "qwen3",
    hf: llama::HF,
    gguf: llama::GGUF,
    interleaved: false,
    norms_less_one: false,
    from_config: |keys| {
        whole_attention(keys)?;
        let bias = keys.bool_or("attention_bias", false)?;
        let spec = decoder(keys, &QWEN3)?;
        let head_dim = keys.optional_usize("head_dim")?.unwrap_or(128);
        Ok(ModelSpec { qk_norm: true, qkv_bias: bias, o_bias: bias, head_dim, ..spec })
    },
    from_gguf: |keys| Ok(ModelSpec { qk_norm: true, ..gguf_decoder(keys, &QWEN3)? }),
    to_config: |spec, file| {
        let mut config = config(spec, file)?;
        config["attention_bias"] = spec.o_bias.into();
        Ok(config)
    },
    to_gguf: gguf_keys,
};

/// Both may switch on a sliding window in their upper layers; no model that was published does.
fn whole_attention(keys: &Keys) -> Result<()> {
    keys.only("use_sliding_window", json!(false))
}
