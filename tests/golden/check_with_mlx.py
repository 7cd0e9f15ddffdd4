"""What mlx-lm makes of adapters that someone else wrote, and an adapter of its own: one JSON object a line.

python check_with_mlx.py ADAPTER_DIR MODEL_DIR OWN_DIR [ADAPTER_DIR MODEL_DIR OWN_DIR ...] IDS_JSON

IDS_JSON is a list of token ids; `logits` are those of the last, with the adapter. Then mlx-lm makes LoRA layers of the
same model by its own rules, with noise in both factors, and writes them into OWN_DIR as `mlx_lm.lora` does; `own` are the logits
with those.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, save_config


def open_model(folder):
    # It looks for the base of the rotary frequencies where transformers had it before its version 5.
    rope = json.loads(Path(folder, "config.json").read_text()).get("rope_parameters", {})
    model, _ = load_model(Path(folder), model_config={k: v for k, v in rope.items() if k == "rope_theta"})
    model.update(tree_map(lambda x: x.astype(mx.float32), model.parameters()))
    return model.eval()


def last(model, ids):
    return model(mx.array([ids]))[0, -1].tolist()


def own_adapter(folder, out):
    """Of the last block alone, as `--num-layers 1` has it."""
    model = open_model(folder)
    model.freeze()
    settings = {"rank": 3, "scale": 1.7, "dropout": 0.0}
    linear_to_lora_layers(model, 1, settings)
    mx.random.seed(4)
    model.update(tree_map(lambda x: x + 0.1 * mx.random.normal(x.shape), model.trainable_parameters()))
    out = Path(out)
    out.mkdir()
    mx.save_safetensors(str(out / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    said = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": settings, "model": str(folder)}
    save_config(said, out / "adapter_config.json")
    return model.eval()


def main():
    *triples, ids = sys.argv[1:] or [""]
    if not triples or len(triples) % 3:
        sys.exit(__doc__)
    mx.set_default_device(mx.cpu)
    ids = json.loads(ids)
    for adapter, model, out in zip(triples[::3], triples[1::3], triples[2::3]):
        written = mx.load(str(Path(adapter, "adapters.safetensors")))
        tuned = load_adapters(open_model(model), adapter)
        loaded = dict(tree_flatten(tuned.parameters()))
        if odd := [name for name, value in written.items() if name not in loaded or not mx.array_equal(loaded[name], value)]:
            sys.exit(f"{adapter}: {len(odd)} tensors were not loaded as written: {odd[:4]} ...")
        print(json.dumps({"adapter": adapter, "logits": last(tuned.eval(), ids), "own": last(own_adapter(model, out), ids)}), flush=True)


if __name__ == "__main__":
    main()
