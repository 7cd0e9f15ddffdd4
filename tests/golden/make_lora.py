"""Makes the golden runs: tiny random models, LoRA adapters written by PEFT, and what PyTorch computes with them.

Run it in this folder, with the versions of README.md:  python make_lora.py
With names of models (`tiny_qwen2` ...) it makes only those. It writes the models `tiny/`, `tiny_llama3/` and one of
each other family, and for each case an adapter folder (`tiny_lora/` ...) and two files.

CASE.safetensors (N = B*T rows, row n = b*T + t):
  ids        u32 [B,T]    token ids; a row may end in padding (id 0)
  positions  u32 [B,T]    position within the document, the rotary angle's; 0 for padding
  spans      u32 [N,2]    rows [start, end) of row n's document; each padding token is its own document
  targets    u32 [N]      the id that row n is to predict, 0xffffffff where nothing is asked of it
  logits     f32 [N,V]    before any update
  grad.KEY   f32          d loss / d tensor before any update, not clipped; KEY is its name in the adapter file
  final.KEY  f32          the adapter after the last update
CASE.json: the optimizer; the loss (mean over the targets) before each update and the gradient norm before clipping, in
f64 and in f32; how far f32 lies from f64 (`f32_noise`: losses as differences, tensors relative to the
largest value of each); and greedy generation with and without the adapter.

`tiny_accumulate` starts from the adapter of `tiny_lora` and accumulates two micro-batches an update, the sum of their
losses divided by the number of targets in both. Its inputs are `0.ids` ..., `1.ids` ...; it has no logits, no `final`.

Tensors are computed in f64 and stored as f32.
"""

import importlib
import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save
from torch.nn.functional import cross_entropy

IGNORE = 0xFFFFFFFF
T = 24
VOCAB = 96
OPTIMIZER = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
MAX_GRAD_NORM = 1.0

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SMALL = dict(
    hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    rms_norm_eps=1e-6, max_position_embeddings=64, rope_parameters=ROPE)

LOCAL = dict(
    sliding_window=4, layer_types=["sliding_attention", "full_attention"],
    rope_parameters={"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
                     "sliding_attention": ROPE})


class Family:
    """A family's classes, and what its golden model is to have; the seed is one whose greedy choices are clear."""

    def __init__(self, name, prefix, seed, norm_mean=1.0, methods=("lora",), **config):
        self.name, self.prefix, self.seed, self.config = name, prefix, seed, config
        self.norm_mean, self.methods = norm_mean, methods

    @property
    def modeling(self):
        return importlib.import_module(f"transformers.models.{self.name}.modeling_{self.name}")

    @property
    def model(self):
        return getattr(transformers, "GPT2LMHeadModel" if self.name == "gpt2" else f"{self.prefix}ForCausalLM")

    def new(self):
        config = getattr(transformers, self.prefix + ("TextConfig" if self.name == "gemma3" else "Config"))(vocab_size=VOCAB, **self.config)
        return self.model(config)

    def load(self, path, dtype):
        return self.model.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").to(dtype)


# Every width is a multiple of 4, some of nothing larger. The second model differs in most of what a config can say.
BOTH = ("lora", "rslora")
MODELS = {
    "tiny": Family(
        "llama", "Llama", 0, methods=BOTH,
        hidden_size=48, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=64, rope_parameters=ROPE),
    # The rotary wavelengths of this one fall on all three branches of llama3 scaling: kept, blended, divided.
    "tiny_llama3": Family(
        "llama", "Llama", 1, methods=BOTH,
        hidden_size=32, intermediate_size=60, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        head_dim=12, rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=64,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 2.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    "tiny_qwen2": Family("qwen2", "Qwen2", 2, **SMALL, tie_word_embeddings=True),
    # The windows are shorter than the documents; in Gemma's some layers see all. Caps are small enough to bite.
    "tiny_mistral": Family("mistral", "Mistral", 4, **SMALL, sliding_window=5, tie_word_embeddings=False),
    "tiny_gemma2": Family(
        "gemma2", "Gemma2", 4, norm_mean=0.0, **SMALL, head_dim=12, query_pre_attn_scalar=20, sliding_window=4,
        attn_logit_softcapping=2.0, final_logit_softcapping=6.0),
    "tiny_gemma3": Family(
        "gemma3", "Gemma3", 45, norm_mean=0.0, **(SMALL | LOCAL), head_dim=8, query_pre_attn_scalar=8),
    "tiny_gpt2": Family("gpt2", "GPT2", 4, n_embd=16, n_layer=2, n_head=2, n_positions=64, n_inner=28),
    "tiny_phi3": Family("phi3", "Phi3", 4, **SMALL, sliding_window=5, pad_token_id=0),
    "tiny_qwen3": Family("qwen3", "Qwen3", 5, **SMALL, head_dim=12, tie_word_embeddings=False),
}
METHODS = {
    "lora": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "rslora": dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True),
}
# A row is its documents as (length, how many of the first tokens are prompt and not supervised); the rest is padding.
BATCH = [[(9, 4), (6, 1), (5, 5)], [(15, 6), (1, 1), (8, 3)]]
SECOND_BATCH = [[(7, 6)], [(24, 20)]]
PROMPT = [58, 80, 3, 92, 60]


class DoubleTorch:
    """`torch` as the model's source sees it, without the casts to f32 inside its norms, rotary angles and softmax."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def precision(model, dtype):
    modeling, to_float = MODELS[model].modeling, torch.Tensor.float
    if dtype == torch.float64:
        modeling.torch, torch.Tensor.float = DoubleTorch(), torch.Tensor.double
    yield
    modeling.torch, torch.Tensor.float = torch, to_float


def make_model(name, seed):
    shutil.rmtree(name, ignore_errors=True)
    family = MODELS[name]
    model = family.new()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            is_norm = key.endswith("norm.weight") or ".ln_" in key and key.endswith(".weight")
            p.copy_(0.25 * torch.randn(p.shape, generator=rng) + (family.norm_mean if is_norm else 0.0))
    model.save_pretrained(name)
    Path(name, "generation_config.json").unlink()
    if name == "tiny_llama3":
        write_old_layout(Path(name, "config.json"))


def write_old_layout(path):
    """Before transformers 5 configs had `rope_theta`, `rope_scaling` and `torch_dtype`; one model keeps them so."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    del config["transformers_version"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_model(name, dtype):
    return MODELS[name].load(name, dtype)


def make_adapter(case, model, method, seed):
    shutil.rmtree(case, ignore_errors=True)
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **METHODS[method])
    net = peft.get_peft_model(load_model(model, torch.float32), config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in trainable(net).items():
            p.copy_((0.2 if "lora_A" in key else 0.1) * torch.randn(p.shape, generator=rng))
    net.save_pretrained(case)
    Path(case, "README.md").unlink()
    path = Path(case, "adapter_config.json")  # PEFT writes its set of modules in any order; keep the file the same
    written = json.loads(path.read_text())
    written["target_modules"].sort()
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def load_adapted(case, model, dtype):
    return peft.PeftModel.from_pretrained(load_model(model, torch.float32), case, is_trainable=True).to(dtype)


def trainable(net):
    """The adapter's parameters by their names in an adapter file."""
    return {k.replace(".default", ""): p for k, p in net.named_parameters() if p.requires_grad}


def make_batch(rows, seed):
    rng = np.random.default_rng(seed)
    n = len(rows) * T
    ids, positions, targets = np.zeros(n, np.uint32), np.zeros(n, np.uint32), np.full(n, IGNORE, np.uint32)
    spans = np.stack([np.arange(n), np.arange(n) + 1], axis=1).astype(np.uint32)
    for b, docs in enumerate(rows):
        start = b * T
        for length, prompt in docs:
            end = start + length
            ids[start:end] = rng.integers(3, VOCAB, length)
            positions[start:end] = np.arange(length)
            spans[start:end] = (start, end)
            first = max(prompt, 1)  # nothing predicts a document's first token
            targets[start + first - 1:end - 1] = ids[start + first:end]
            if length > prompt + 4:
                targets[start + prompt + 1] = IGNORE  # a hole: a masked token amid supervised ones
            start = end
        assert start <= (b + 1) * T
    shape = (len(rows), T)
    return {"ids": ids.reshape(shape), "positions": positions.reshape(shape), "spans": spans, "targets": targets}


def forward(net, batch, dtype):
    """Logits [N,V] of a packed batch: causal attention within each document."""
    rows = batch["ids"].shape[0]
    start = torch.tensor(batch["spans"][:, 0].astype(np.int64)).reshape(rows, T)
    same = start[:, :, None] == start[:, None, :]
    causal = same & torch.ones(T, T, dtype=torch.bool).tril()
    ids, positions = (torch.tensor(batch[k].astype(np.int64)) for k in ("ids", "positions"))
    mask = masks(net.config, causal, dtype)
    out = net(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    return out.logits.reshape(rows * T, -1)


def masks(config, causal, dtype):
    """The mask of all layers, or one for each kind; a local layer sees the nearest `sliding_window` positions."""

    def mask(seen):
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))[:, None]

    window = getattr(config, "sliding_window", None)
    if window is None:
        return mask(causal)
    near = causal & torch.ones(T, T, dtype=torch.bool).triu(1 - window)
    if getattr(config, "layer_types", None) is None:
        return mask(near)
    return {"full_attention": mask(causal), "sliding_attention": mask(near)}


def summed_loss(logits, batch):
    targets = batch["targets"].astype(np.int64)
    return cross_entropy(logits, torch.tensor(np.where(targets == IGNORE, -100, targets)), reduction="sum")


def supervised(batches):
    return sum(int((b["targets"] != IGNORE).sum()) for b in batches)


def train(case, model, batches, steps, dtype):
    """Losses, norms and tensors of `steps` updates, each on the mean loss over the targets of all `batches`."""
    with precision(model, dtype):
        net = load_adapted(case, model, dtype)
        params = trainable(net)
        optimizer = torch.optim.AdamW(params.values(), **OPTIMIZER)
        run = {"losses": [], "grad_norms": []}
        for step in range(steps):
            optimizer.zero_grad()
            loss = 0.0
            for batch in batches:
                logits = forward(net, batch, dtype)
                part = summed_loss(logits, batch) / supervised(batches)
                part.backward()
                loss += part.item()
            if step == 0:
                run["logits"] = logits.detach()
                run["grads"] = {k: p.grad.clone() for k, p in params.items()}
            run["losses"].append(loss)
            run["grad_norms"].append(torch.nn.utils.clip_grad_norm_(params.values(), MAX_GRAD_NORM).item())
            optimizer.step()
        run["final"] = {k: p.detach() for k, p in params.items()}
        return run


def check_unpacked(case, model, batch, packed):
    """Each document alone, with the library's own mask and positions, has the logits it has in the packed batch."""
    with precision(model, torch.float64), torch.no_grad():
        net = load_adapted(case, model, torch.float64)
        ids = torch.tensor(batch["ids"].astype(np.int64)).reshape(-1)
        for start, end in np.unique(batch["spans"], axis=0).tolist():
            alone = net(input_ids=ids[None, start:end], use_cache=False).logits[0]
            assert (alone - packed[start:end]).abs().max() < 1e-10, (case, start, end)


def check_one_batch(case, model, batches, run):
    """Accumulated micro-batches are one batch of all their rows."""
    joined = {k: np.concatenate([b[k] for b in batches]) for k in ("ids", "positions", "targets")}
    offsets = np.cumsum([0] + [b["ids"].size for b in batches[:-1]])
    joined["spans"] = np.concatenate([b["spans"] + o for b, o in zip(batches, offsets)])
    whole = train(case, model, [joined], len(run["losses"]), torch.float64)
    assert np.allclose(whole["losses"], run["losses"], rtol=1e-10, atol=0)


def greedy(model, net, count=12):
    """Greedy ids after PROMPT, and the least lead of a chosen logit over the next one."""
    ids, lead = list(PROMPT), float("inf")
    with precision(model, torch.float64), torch.no_grad():
        for _ in range(count):
            top = net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            lead = min(lead, (top.values[0] - top.values[1]).item())
            ids.append(top.indices[0].item())
    assert lead > 1e-2 and 2 not in ids, (lead, ids)  # no rounding flips a choice; 2 would end the sequence
    return ids[len(PROMPT):], lead


def generation(case, model):
    base, base_lead = greedy(model, load_model(model, torch.float64))
    adapted, adapted_lead = greedy(model, load_adapted(case, model, torch.float64))
    assert base != adapted and len(set(adapted)) > 1, (case, base, adapted)  # the adapter shows, and each step counts
    return {"prompt": PROMPT, "base": base, "adapted": adapted, "least_lead": min(base_lead, adapted_lead)}


def tensor_noise(exact, rounded):
    """Largest difference of two tensors in units of the first one's largest value."""
    return ((exact - rounded.double()).abs().max() / exact.abs().max()).item()


def stored(prefix, tensors):
    return {f"{prefix}.{k}": v.float().numpy() for k, v in tensors.items()}


def report(model, adapter, batches, f64, f32):
    return {
        "model": model,
        "adapter": adapter,
        "supervised": supervised(batches),
        "optimizer": {"kind": "adamw", **OPTIMIZER, "max_grad_norm": MAX_GRAD_NORM},
        "losses_f64": f64["losses"],
        "losses_f32": f32["losses"],
        "grad_norms_f64": f64["grad_norms"],
        "grad_norms_f32": f32["grad_norms"],
        "f32_noise": {
            "logits": tensor_noise(f64["logits"], f32["logits"]),
            "grads": max(tensor_noise(g, f32["grads"][k]) for k, g in f64["grads"].items()),
            "losses": max(abs(a - b) for a, b in zip(f64["losses"], f32["losses"])),
            "final": max(tensor_noise(p, f32["final"][k]) for k, p in f64["final"].items()),
        },
        "made_with": {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft)},
    }


def write(case, tensors, facts):
    Path(f"{case}.safetensors").write_bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}))
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in facts.items())
    Path(f"{case}.json").write_text(f"{{\n{lines}\n}}\n")


def make_case(case, model, method, seed):
    make_adapter(case, model, method, seed)
    batch = make_batch(BATCH, seed)
    f64, f32 = (train(case, model, [batch], 10, dtype) for dtype in (torch.float64, torch.float32))
    check_unpacked(case, model, batch, f64["logits"])
    tensors = {"logits": f64["logits"].float().numpy()} | stored("grad", f64["grads"]) | stored("final", f64["final"])
    write(case, batch | tensors, report(model, case, [batch], f64, f32) | {"generate": generation(case, model)})


def make_accumulation(case, adapter, model):
    batches = [make_batch(BATCH, 1), make_batch(SECOND_BATCH, 2)]
    f64, f32 = (train(adapter, model, batches, 3, dtype) for dtype in (torch.float64, torch.float32))
    check_one_batch(adapter, model, batches, f64)
    tensors = {f"{i}.{k}": v for i, b in enumerate(batches) for k, v in b.items()}
    write(case, tensors | stored("grad", f64["grads"]), report(model, adapter, batches, f64, f32))


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the order of sums, and so the last bits, does not depend on the machine's cores
    wanted = sys.argv[1:] or list(MODELS)
    for model in wanted:
        make_model(model, MODELS[model].seed)
        for method in MODELS[model].methods:
            make_case(f"{model}_{method}", model, method, MODELS[model].seed + 10)
    if "tiny" in wanted:
        make_accumulation("tiny_accumulate", "tiny_lora", "tiny")


if __name__ == "__main__":
    main()
