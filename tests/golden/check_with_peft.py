"""Logits of the last position as PEFT computes them, with an adapter that someone else wrote, as one JSON object.

python check_with_peft.py ADAPTER_DIR MODEL_DIR IDS_JSON

IDS_JSON is a list of token ids, or a file with one. The model runs in f32 on the CPU. A tensor of the
adapter that PEFT does not know, or one that it misses, is an error here, where PEFT itself only warns.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def load(adapter_dir, model_dir):
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    net = PeftModel.from_pretrained(base, adapter_dir).eval()
    written, loaded = load_file(Path(adapter_dir, "adapter_model.safetensors")), get_peft_model_state_dict(net)
    if odd := sorted(written.keys() ^ loaded.keys()):
        sys.exit(f"{len(odd)} tensors are in the file or in PEFT's model, but not in both: {odd[:4]} ...")
    if changed := [k for k, v in written.items() if not torch.equal(v.float(), loaded[k].float())]:
        sys.exit(f"{len(changed)} tensors were not loaded as written: {changed[:4]} ...")
    return net


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    adapter_dir, model_dir, ids = sys.argv[1:]
    ids = json.loads(ids if ids.lstrip().startswith("[") else Path(ids).read_text())
    with torch.no_grad():
        logits = load(adapter_dir, model_dir)(input_ids=torch.tensor([ids])).logits[0, -1]
    print(json.dumps({"argmax": logits.argmax().item(), "logits": logits.tolist()}))


if __name__ == "__main__":
    main()
