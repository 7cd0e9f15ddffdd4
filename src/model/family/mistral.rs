//! Mistral: Llama whose layers may all see only the nearest positions (transformers `modeling_mistral.py`). llama.cpp
//! knows it as Llama, without the window.

use super::Family;
use super::keys::everywhere;
use super::llama::{self, config, decoder, gguf_decoder, gguf_keys};
use crate::model::spec::ModelSpec;

pub static FAMILY: Family = Family {
    name: "mistral",
    class: "MistralForCausalLM",
    about: "Mistral 7B, Nemo and others of that architecture",
    arch: "llama",
    hf: llama::HF,
    gguf: llama::GGUF,
    interleaved: true,
    norms_less_one: false,
    from_config: |keys| {
        let spec = decoder(keys, &FAMILY)?;
        let window = keys.optional_usize("sliding_window")?;
        Ok(ModelSpec { local: everywhere(window, spec.layers), ..spec })
    },
    from_gguf: |keys| gguf_decoder(keys, &FAMILY),
    to_config: |spec, file| {
        let mut config = config(spec, file)?;
        config["sliding_window"] = spec.local.as_ref().map(|local| local.window).into();
        Ok(config)
    },
    // Under this name nobody reads a window: the model is the same up to its length.
    to_gguf: |spec| gguf_keys(&spec.within_windows()),
};
