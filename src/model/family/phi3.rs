//! Phi-3: Llama whose q, k and v are one tensor, and whose gate and up are one; all layers may see only the nearest
//! positions (transformers `modeling_phi3.py`, llama.cpp arch `phi3`). The variants with long contexts scale their
//! rotary frequencies by length, which is not covered.

use super::keys::{WINDOW, everywhere, size, under, unsupported};
use super::llama::{self, config, decoder, gguf_decoder, gguf_keys, square};
use super::{Family, Names};
use crate::model::spec::ModelSpec;

pub static FAMILY: Family = Family {
    name: "phi3",
    class: "Phi3ForCausalLM",
    about: "Phi-3 with 4k context",
    arch: "phi3",
    hf: Names {
        modules: [
            "self_attn.qkv_proj",
            "self_attn.qkv_proj",
            "self_attn.qkv_proj",
            "self_attn.o_proj",
            "mlp.gate_up_proj",
            "mlp.gate_up_proj",
            "mlp.down_proj",
        ],
        ..llama::HF
    },
    gguf: Names {
        modules: ["attn_qkv", "attn_qkv", "attn_qkv", "attn_output", "ffn_up", "ffn_up", "ffn_down"],
        ..llama::GGUF
    },
    interleaved: false,
    norms_less_one: false,
    from_config: |keys| {
        let spec = decoder(keys, &FAMILY)?;
        let window = keys.optional_usize("sliding_window")?;
        Ok(ModelSpec { local: everywhere(window, spec.layers), ..spec })
    },
    from_gguf: |keys| {
        if keys.has("rope_factors_long.weight") {
            let what = "rope scaling 'longrope' is not supported".into();
            return Err(unsupported(keys.gguf.name(), what, "use the model's variant with 4k context"));
        }
        let spec = square(gguf_decoder(keys, &FAMILY)?);
        let window = keys.optional_size(WINDOW)?.filter(|window| *window > 0);
        Ok(ModelSpec { local: everywhere(window, spec.layers), ..spec })
    },
    to_config: |spec, file| {
        let mut config = config(spec, file)?;
        config["sliding_window"] = spec.local.as_ref().map(|local| local.window).into();
        Ok(config)
    },
    // llama.cpp has switched this window off, whatever it is: the model is the same up to its length. No window is said
    // as 0, for versions that took one for granted.
    to_gguf: |spec| {
        let window = spec.local.as_ref().map_or(0, |local| local.window);
        let mut keys = gguf_keys(&spec.within_windows());
        keys.extend(under(spec.family.arch, [(WINDOW, Some(size(window)))]));
        keys
    },
};
