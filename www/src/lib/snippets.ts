/** Lines to copy: how other tools open what is downloaded. */

export function snippets(base: string, stem: string, method: string) {
  const adapter = `${stem}-${method}`;
  return {
    peft: `from transformers import AutoModelForCausalLM as Causal
from peft import PeftModel

base = Causal.from_pretrained("${base}")
model = PeftModel.from_pretrained(base, "${adapter}")`,
    llamaLora: `python convert_lora_to_gguf.py ${adapter} \\
  --base BASE_FOLDER --outfile ${adapter}.gguf
llama-cli -m base.gguf --lora ${adapter}.gguf`,
    merged: `from transformers import pipeline

ask = pipeline("text-generation", "${stem}")`,
    llamaMerged: `python convert_hf_to_gguf.py ${stem} \\
  --outfile ${stem}.gguf
llama-cli -m ${stem}.gguf`,
    cli: `luthier train --from run.json --data DATA --out ${adapter}`,
  };
}
