"""PyTorch + PEFT: a LoRA training step on the CPU in f32. One JSON line a case.

python bench.py [--case small|smollm2-135m] [--steps 20] [--warmup 3] [--threads CORES]

A step is forward, backward, AdamW and reading the loss. Weights and ids are random, every position but a row's last
has a target, dropout is 0, LoRA has r = 8 and alpha = 16 on all seven projections.
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

CASES = {
    "small": (
        dict(vocab_size=256, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, tie_word_embeddings=True),
        (4, 64)),
    "smollm2-135m": (
        dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
             num_key_value_heads=3, tie_word_embeddings=True),
        (2, 256)),
}


def trainer(config, shape):
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    net = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**config, use_cache=False)), lora)
    net.train()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(3, config["vocab_size"], shape)

    def step():
        optimizer.zero_grad()
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, net.get_nb_trainable_parameters()[0]


def measure(name, steps, warmup):
    config, shape = CASES[name]
    step, trainable = trainer(config, shape)
    times, losses = [], []
    for _ in range(warmup + steps):
        start = time.perf_counter()
        losses.append(step())
        times.append((time.perf_counter() - start) * 1e3)
    times, first = times[warmup:], times[0]
    median = statistics.median(times)
    return {
        "peer": "pytorch", "case": name, "device": "cpu", "batch": shape[0], "tokens": shape[1], "trainable": trainable,
        "threads": torch.get_num_threads(), "steps": steps, "first_ms": round(first, 1), "median_ms": round(median, 2),
        "min_ms": round(min(times), 2), "tokens_per_s": round(shape[0] * shape[1] / median * 1e3, 1),
        "loss_first": round(losses[0], 4), "loss_last": round(losses[-1], 4),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one case only")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in [args.case] if args.case else CASES:
        print(json.dumps(measure(name, args.steps, args.warmup)), flush=True)


if __name__ == "__main__":
    main()
