"""Makes the golden runs of the methods beside LoRA, in the format of make_lora.py: `tiny_METHOD.safetensors`, `.json`.

Run it in this folder after make_lora.py, with the versions of README.md:  python make_methods.py
PEFT's own methods start from an adapter folder `tiny_METHOD/` with noise in it. Methods that train tensors of the base
start from the base itself, whose files make_lora.py made; full tuning stores no `final`, to keep its file small, and LISA
no `grad`: they are those of full tuning.

Prompt and prefix tuning put V virtual tokens before each document. In `ids` these are 0x80000000 | their number; `logits`
holds zeros in their rows. PEFT runs each document by itself.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaForCausalLM

from make_lora import (BATCH, IGNORE, MAX_GRAD_NORM, OPTIMIZER, T, forward, load_model, make_batch, precision, report,
                       stored, summed_loss, supervised, write)

VIRTUAL = 0x80000000
TOKENS = 3
# Documents with their virtual tokens fill rows of T.
PREFIXED = [[(9, 4), (9, 1)], [(21, 8)]]

PEFT = {
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True),
    "patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear",
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"v_proj": 4, "layers.1.mlp.down_proj": 3}),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=TOKENS),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=TOKENS),
    "norm": lambda: peft.LNTuningConfig(
        target_modules=["input_layernorm", "post_attention_layernorm", "norm"]),
}
BASE = ["bitfit", "last-k", "full", "lisa"]
# The blocks that learn in each interval: what Luthier draws with this seed. One goes on, each rests, each comes back.
LISA = {"seed": 3, "blocks": 1, "interval": 2, "drawn": [[1], [1], [0], [1], [0]]}


def key(name):
    """A parameter's name in an adapter file."""
    name = name.replace(".default", "")
    if "lora_magnitude_vector" in name:
        return name.removesuffix(".weight")
    return "prompt_embeddings" if name.startswith("prompt_encoder") else name


def trainable(net):
    return {key(k): p for k, p in net.named_parameters() if p.requires_grad}


def make_adapter(case, model, config, seed):
    shutil.rmtree(case, ignore_errors=True)
    config.task_type = "CAUSAL_LM"
    net = peft.get_peft_model(load_model(model, torch.float32), config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in trainable(net).items():
            noise = torch.randn(p.shape, generator=rng)
            if "magnitude" in name or "ia3" in name or "ln_tuning" in name:
                p.mul_(1.0 + 0.2 * noise)
            else:
                p.copy_((0.05 if "lora_" in name else 0.2) * noise)
    net.save_pretrained(case)
    Path(case, "README.md").unlink()
    path = Path(case, "adapter_config.json")
    written = json.loads(path.read_text())
    for modules in ("target_modules", "feedforward_modules"):
        if isinstance(written.get(modules), list):
            written[modules].sort()
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def peft_net(case, model, dtype):
    config = peft.PeftConfig.from_pretrained(case)
    if config.is_prompt_learning:  # PEFT loads these for inference only
        config.inference_mode = False
        net = peft.get_peft_model(load_model(model, torch.float32), config)
        peft.set_peft_model_state_dict(net, load_file(f"{case}/adapter_model.safetensors"))
        return net.to(dtype)
    return peft.PeftModel.from_pretrained(load_model(model, torch.float32), case, is_trainable=True).to(dtype)


def base_net(method, model, dtype):
    """The base with what a method trains; its parameters have the names of the base's tensors."""
    config = AutoConfig.from_pretrained(model)
    if method == "bitfit":
        config.attention_bias = config.mlp_bias = True
    net = LlamaForCausalLM.from_pretrained(model, config=config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(".bias"):
                p.zero_()
    wanted = {"bitfit": lambda n: n.endswith(".bias"), "full": lambda n: True, "lisa": lambda n: True,
              "last-k": lambda n: n.startswith(f"model.layers.{config.num_hidden_layers - 1}.")}[method]
    for name, p in net.named_parameters():
        p.requires_grad_(wanted(name))
    return net.to(dtype)


def prefixed_batch(seed):
    """Rows of documents with virtual tokens before each."""
    rows = [[(length + TOKENS, prompt + TOKENS) for length, prompt in row] for row in PREFIXED]
    batch = make_batch(rows, seed)
    ids = batch["ids"].reshape(-1)
    for start in np.unique(batch["spans"][:, 0]).tolist():
        ids[start:start + TOKENS] = VIRTUAL | np.arange(TOKENS)
    return batch


def forward_documents(net, batch, dtype):
    """Logits [N,V] of documents by themselves; zeros for virtual tokens."""
    ids = batch["ids"].reshape(-1)
    logits = torch.zeros(len(ids), net.config.vocab_size, dtype=dtype)
    for start, end in np.unique(batch["spans"], axis=0).tolist():
        real = torch.tensor(ids[start + TOKENS:end].astype(np.int64))[None]
        out = net(input_ids=real, use_cache=False).logits[0]
        logits[start + TOKENS:end] = out[-real.shape[1]:]
    return logits


def learns(name, drawn):
    """Embedding, head and last norm always learn, a block where it was drawn."""
    return not name.startswith("model.layers.") or int(name.split(".")[2]) in drawn


def begin_interval(params, drawn, settings):
    """Only what learns has gradients; AdamW begins anew, for the blocks that go on and for what always learns too."""
    for name, p in params.items():
        p.grad = None
        p.requires_grad_(learns(name, drawn))
    return torch.optim.AdamW([p for p in params.values() if p.requires_grad], **settings)


def train(model, make_net, batch, run_forward, steps, dtype, settings, lisa):
    with precision(model, dtype):
        net = make_net(dtype)
        params = trainable(net)
        optimizer = torch.optim.AdamW(params.values(), **settings)
        run = {"losses": [], "grad_norms": []}
        for step in range(steps):
            if lisa and step % lisa["interval"] == 0:
                optimizer = begin_interval(params, lisa["drawn"][step // lisa["interval"]], settings)
            optimizer.zero_grad()
            logits = run_forward(net, batch, dtype)
            loss = summed_loss(logits, batch) / supervised([batch])
            loss.backward()
            if step == 0:
                run["logits"] = logits.detach()
                run["grads"] = {k: p.grad.clone() for k, p in params.items() if p.grad is not None}
            run["losses"].append(loss.item())
            run["grad_norms"].append(torch.nn.utils.clip_grad_norm_(params.values(), MAX_GRAD_NORM).item())
            optimizer.step()
        run["final"] = {k: p.detach() for k, p in params.items()}
        return run


def settings_of(method):
    """Of AdamW. Its first steps are the gradients' signs, which LISA takes anew in each interval: its rate is exact in f32,
    and what rounding turns over weighs little. Luthier refuses weight decay there, since it steps one flat buffer, and
    blocks that rest would shrink."""
    own = {"full": {"lr": 1e-3}, "lisa": {"lr": 2**-11, "weight_decay": 0.0}}
    return OPTIMIZER | own.get(method, {})


def make_case(method, model, seed):
    case = f"{model}_{method}"
    if method in PEFT:
        make_adapter(case, model, PEFT[method](), seed)
        make_net = lambda dtype: peft_net(case, model, dtype)
    else:
        make_net = lambda dtype: base_net(method, model, dtype)
    virtual = method in ("prompt", "prefix")
    batch = prefixed_batch(seed) if virtual else make_batch(BATCH, seed)
    run_forward = forward_documents if virtual else forward
    settings, lisa = settings_of(method), LISA if method == "lisa" else None
    f64, f32 = (train(model, make_net, batch, run_forward, 10, dtype, settings, lisa)
                for dtype in (torch.float64, torch.float32))
    tensors = {"logits": f64["logits"].float().numpy()}
    if method != "lisa":
        tensors |= stored("grad", f64["grads"])
    if method != "full":
        tensors |= stored("final", f64["final"])
    facts = report(model, case if method in PEFT else None, [batch], f64, f32) | {"method": method}
    facts["optimizer"] |= settings
    write(case, batch | tensors, facts | ({"lisa": lisa} if lisa else {}))


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for seed, method in enumerate(list(PEFT) + BASE):
        make_case(method, "tiny_llama3" if method in ("last-k", "lisa") else "tiny", seed + 60)


if __name__ == "__main__":
    main()
