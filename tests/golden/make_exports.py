"""Makes the golden exports: what our writers must reproduce, written by the packages that other tools use.

Run it in this folder after make_lora.py, with the versions of README.md:  python make_exports.py

tiny_lora.gguf, tiny_llama3_rslora.gguf   the adapters as llama.cpp's convert_lora_to_gguf.py lays them out, through gguf-py;
                                          rsLoRA's scale folded into alpha, which that script cannot do
tiny_llama3_merged.gguf                   PEFT's merge_and_unload of tiny_llama3 with its rsLoRA adapter, as
                                          convert_hf_to_gguf.py lays it out, quantised to Q8_0 by gguf-py
nano_vocabulary.json                      hashes of nano's tokens, token types and merges, and its ids, by gguf.SpecialVocab and
                                          the rules of convert_hf_to_gguf.py
tiny_second/                              another adapter of `tiny`, by PEFT: rank 4, alpha 4, rsLoRA, on q and v only
tiny_combined.safetensors                 tiny_lora and tiny_second combined by PEFT's add_weighted_adapter with weights
                                          0.7 and -0.4: linear.KEY, cat.KEY as saved, and of svd (rank 4) svd.KEY
"""

import hashlib
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save
from transformers import AutoModelForCausalLM, AutoTokenizer

NANO = Path("../../models/nano")


def permute(weights, heads):
    """convert_hf_to_gguf.py's LlamaModel.permute."""
    return (weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
            .swapaxes(1, 2).reshape(weights.shape))


def names(config):
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])


def arranged(path, values, config):
    if path.endswith("q_proj"):
        return permute(values, config["num_attention_heads"])
    if path.endswith("k_proj"):
        return permute(values, config["num_key_value_heads"])
    return values


def adapter(folder, model, out):
    config = json.loads(Path(model, "config.json").read_text())
    settings = json.loads(Path(folder, "adapter_config.json").read_text())
    alpha = settings["lora_alpha"] * (settings["r"] ** 0.5 if settings["use_rslora"] else 1)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for key, values in sorted(load_file(Path(folder, "adapter_model.safetensors")).items()):
        path, factor = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        name = names(config).get_name(path + ".weight", try_suffixes=(".weight",))
        values = arranged(path, values, config) if factor == "lora_B" else values
        writer.add_tensor(f"{name}.{factor.lower()}", np.ascontiguousarray(values, dtype=np.float32))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors(config):
    """convert_hf_to_gguf.py's LlamaModel.generate_extra_tensors."""
    rope = config["rope_scaling"]
    dim, base = config["head_dim"], config["rope_theta"]
    freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for freq in freqs:
        wavelength = 2 * torch.pi / freq
        if wavelength < old / high:
            factors.append(1)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def merged(folder, model, out):
    config = json.loads(Path(model, "config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    net = PeftModel.from_pretrained(base, folder).merge_and_unload()
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for key, values in net.state_dict().items():
        path, values = key.removesuffix(".weight"), values.numpy()
        values = arranged(path, values, config)
        kind = gguf.GGMLQuantizationType.F32
        if values.ndim == 2:
            # Rows that are no whole blocks stay f16, as the converter's fallback has it.
            kind = gguf.GGMLQuantizationType.Q8_0 if values.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F16
        name = names(config).get_name(key, try_suffixes=(".weight",))
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    finish(writer)


def vocabulary(out):
    """convert_hf_to_gguf.py's get_vocab_base, and SpecialVocab as _set_vocab_gpt2 calls it."""
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    rows = json.loads((NANO / "config.json").read_text())["vocab_size"]
    pieces = {id: text for text, id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for id in range(rows):
        tokens.append(pieces.get(id, f"[PAD{id}]"))
        special = id in added and added[id].special
        types.append(int(gguf.TokenType.UNUSED if id not in pieces else
                         gguf.TokenType.CONTROL if special else
                         gguf.TokenType.USER_DEFINED if id in added else gguf.TokenType.NORMAL))
    special = gguf.SpecialVocab(NANO, load_merges=True)
    digest = lambda lines: hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest()
    found = {
        "tokens": digest(tokens), "token_type": digest(types), "merges": digest(special.merges), "rows": rows,
        "special_token_ids": special.special_token_ids, "add_bos_token": special.add_special_token.get("bos"),
        "chat_template": hashlib.sha256(special.chat_template.encode()).hexdigest(),
    }
    Path(out).write_text(json.dumps(found, indent=2) + "\n")


def combined(out):
    torch.manual_seed(11)
    fresh = lambda: AutoModelForCausalLM.from_pretrained("tiny", dtype=torch.float32)
    net = get_peft_model(fresh(), LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], use_rslora=True,
                                             task_type="CAUSAL_LM"))
    for name, values in net.named_parameters():
        if "lora_B" in name:
            values.data.normal_(std=0.1)
    net.peft_config["default"].base_model_name_or_path = "tiny"
    net.save_pretrained("tiny_second")
    Path("tiny_second/README.md").unlink()
    net = PeftModel.from_pretrained(fresh(), "tiny_lora", adapter_name="first")
    net.load_adapter("tiny_second", adapter_name="second")
    tensors = {}
    for kind in ["linear", "cat", "svd"]:
        net.add_weighted_adapter(["first", "second"], [0.7, -0.4], kind, combination_type=kind)
        config = net.peft_config[kind]
        assert config.lora_alpha == config.r, "PEFT scales what it combines by 1"
        # The second adapter's config said rsLoRA, the combination inherits the first's.
        assert not config.use_rslora
        for key, values in get_peft_model_state_dict(net, adapter_name=kind).items():
            tensors[f"{kind}.{key}"] = values.contiguous().numpy()
    Path(out).write_bytes(save(tensors))


def main():
    shutil.rmtree("tiny_second", ignore_errors=True)
    adapter("tiny_lora", "tiny", "tiny_lora.gguf")
    adapter("tiny_llama3_rslora", "tiny_llama3", "tiny_llama3_rslora.gguf")
    merged("tiny_llama3_rslora", "tiny_llama3", "tiny_llama3_merged.gguf")
    vocabulary("nano_vocabulary.json")
    combined("tiny_combined.safetensors")


if __name__ == "__main__":
    main()
