"""PyTorch + PEFT: a training step on the CPU in f32, and on CUDA in f32 and bf16. One JSON line a case.

python bench.py [--case NAME] [--device cpu|cuda|auto] [--method lora|full] [--steps 20] [--warmup 3] [--threads CORES]

A step is forward, backward, AdamW and reading the loss. Weights and ids are random, every position but a row's last
has a target, dropout is 0, LoRA has r = 8 and alpha = 16 on all seven projections. On CUDA the frozen weights are of
the case's dtype, f32 products are plain f32 (no TF32), and peak memory is that of torch's allocator.
"""

import argparse
import json
import os
import statistics
import time

import peft
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SMALL = dict(vocab_size=256, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, tie_word_embeddings=True)
SMOLLM2 = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
               num_key_value_heads=3, tie_word_embeddings=True)

# Name: the net, the batch, and the dtype of the base. Those of 8 x 1024 are for CUDA.
CASES = {
    "small": (SMALL, (4, 64), "float32"),
    "smollm2-135m": (SMOLLM2, (2, 256), "float32"),
    "smollm2-135m-8x1024": (SMOLLM2, (8, 1024), "float32"),
    "smollm2-135m-8x1024-bf16": (SMOLLM2, (8, 1024), "bfloat16"),
}
ON_CPU = ["small", "smollm2-135m"]


def trainer(config, shape, dtype, device, method):
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(**config, use_cache=False)).to(device=device, dtype=getattr(torch, dtype))
    if method == "lora":
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
        net = peft.get_peft_model(net, lora)
    net.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(3, config["vocab_size"], shape, device=device)

    def step():
        optimizer.zero_grad()
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in trained)


def measure(name, args):
    config, shape, dtype = CASES[name]
    step, trainable = trainer(config, shape, dtype, args.device, args.method)
    times, losses = [], []
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        losses.append(step())
        times.append((time.perf_counter() - start) * 1e3)
    times, first = times[args.warmup:], times[0]
    median = statistics.median(times)
    cuda = args.device == "cuda"
    return {
        "peer": "pytorch", "case": name, "method": args.method, "dtype": dtype,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "batch": shape[0], "tokens": shape[1], "trainable": trainable, "threads": torch.get_num_threads(),
        "steps": args.steps, "first_ms": round(first, 1), "median_ms": round(median, 2), "min_ms": round(min(times), 2),
        "tokens_per_s": round(shape[0] * shape[1] / median * 1e3, 1),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if cuda else None,
        "loss_first": round(losses[0], 4), "loss_last": round(losses[-1], 4),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one case only")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="cpu")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    for name in [args.case] if args.case else ON_CPU if args.device == "cpu" else CASES:
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps(measure(name, args)), flush=True)


if __name__ == "__main__":
    main()
