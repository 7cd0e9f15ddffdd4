"""Goes on training the adapter in adapter/ with TRL, PEFT and Accelerate, with the options of the run that made it.

    pip install -r requirements.txt
    python train.py                       # one GPU, or the CPU
    accelerate launch train.py            # several GPUs; `accelerate config` asks how

All numbers are in config.json. What was learned before stays: the adapter is loaded, not begun anew.
"""

import json
from pathlib import Path

import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).parent
config = json.loads((HERE / "config.json").read_text())
files = {"train": str(HERE / "train.jsonl")}
if (HERE / "eval.jsonl").exists():
    files["eval"] = str(HERE / "eval.jsonl")
data = load_dataset("json", data_files=files)

tokenizer = AutoTokenizer.from_pretrained(config["model"])
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=dtype)
model = PeftModel.from_pretrained(model, HERE / "adapter", is_trainable=True)
model.print_trainable_parameters()


class Trainer(SFTTrainer):
    """TRL's, with LoRA+: B has a learning rate of its own.

    PEFT's create_loraplus_optimizer gives it to DoRA's lengths, too.
    """

    def create_optimizer(self, *args, **kwargs):
        fresh, ratio = self.optimizer is None, config["loraplus_lr_ratio"]
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and ratio != 1:
            bs = {id(p) for name, p in self.model.named_parameters() if "lora_B" in name}
            for group in list(optimizer.param_groups):
                fast = [p for p in group["params"] if id(p) in bs]
                group["params"] = [p for p in group["params"] if id(p) not in bs]
                if fast:
                    optimizer.add_param_group({**group, "params": fast, "lr": ratio * group["lr"]})
        return optimizer


trainer = Trainer(
    model=model,
    args=SFTConfig(
        output_dir=str(HERE / "out"),
        bf16=dtype == torch.bfloat16,
        eval_strategy="epoch" if "eval" in data else "no",
        report_to="none",
        **config["sft"],
    ),
    train_dataset=data["train"],
    eval_dataset=data.get("eval"),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model(str(HERE / "out" / "adapter"))
