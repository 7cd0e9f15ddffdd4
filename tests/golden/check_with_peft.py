"""Logits of the last position as PEFT computes them, with adapters that someone else wrote: one JSON object a line.

python check_with_peft.py ADAPTER_DIR MODEL_DIR [ADAPTER_DIR MODEL_DIR ...] IDS_JSON

IDS_JSON is a list of token ids, or a file with one. The models run in f32 on the CPU. A tensor of an
adapter that PEFT does not know, or one that it misses, is an error here, where PEFT itself only warns;
so is a setting that PEFT has no name for.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def load(adapter_dir, model_dir):
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword arguments")
        net = PeftModel.from_pretrained(base, adapter_dir).eval()
    written, loaded = load_file(Path(adapter_dir, "adapter_model.safetensors")), get_peft_model_state_dict(net)
    if odd := sorted(written.keys() ^ loaded.keys()):
        sys.exit(f"{adapter_dir}: {len(odd)} tensors are in the file or in PEFT's model, but not in both: {odd[:4]} ...")
    if changed := [k for k, v in written.items() if not torch.equal(v.float(), loaded[k].float())]:
        sys.exit(f"{adapter_dir}: {len(changed)} tensors were not loaded as written: {changed[:4]} ...")
    return net


def main():
    *pairs, ids = sys.argv[1:] or [""]
    if not pairs or len(pairs) % 2:
        sys.exit(__doc__)
    ids = json.loads(ids if ids.lstrip().startswith("[") else Path(ids).read_text())
    for adapter_dir, model_dir in zip(pairs[::2], pairs[1::2]):
        with torch.no_grad():
            logits = load(adapter_dir, model_dir)(input_ids=torch.tensor([ids])).logits[0, -1]
        found = {"adapter": adapter_dir, "argmax": logits.argmax().item(), "logits": logits.tolist()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
