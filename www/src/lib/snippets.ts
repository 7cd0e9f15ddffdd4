/** Lines to copy: how other tools open what is downloaded. */

import type { AdapterFormat, MergeTarget, Method } from "luthier-web";

/** Names that transformers can download; others are names of ours. */
const onHub = (base: string): boolean => /^[\w.-]+\/[\w.-]+$/.test(base);

/** For a downloaded adapter. A base that nobody else can find by its name is best taken along, merged, where that can be. */
export function adapterSnippets(format: AdapterFormat, base: string, stem: string, method: Method, merges: boolean): [title: string, text: string][] {
  const lora = `${stem}-${method}`;
  switch (format) {
    case "peft":
      if (!onHub(base) && merges) return [[`${base} is not on a hub: save the merged model instead`, transformers(stem)]];
      return [["transformers and peft", `from transformers import AutoModelForCausalLM as Causal
from peft import PeftModel

base = Causal.from_pretrained("${onHub(base) ? base : "BASE_FOLDER"}")
model = PeftModel.from_pretrained(base, "${lora}")`]];
    case "gguf":
      return [
        ["llama.cpp, with the base as GGUF", `llama-cli -m BASE.gguf --lora ${lora}.gguf`],
        ["Ollama: a Modelfile", `FROM ./BASE.gguf
ADAPTER ./${lora}.gguf`],
      ];
    case "mlx":
      return [["mlx-lm", `mlx_lm.generate --model ${onHub(base) ? base : "BASE_FOLDER"} \\
  --adapter-path ${lora} --prompt "..."`]];
  }
}

/** For a downloaded merged model. */
export function mergedSnippets({ format, name }: MergeTarget): [title: string, text: string][] {
  if (format === "hf") return [["transformers", transformers(name)]];
  return [
    ["llama.cpp", `llama-cli -m ${name}.gguf`],
    ["Ollama", `ollama create ${name} -f ${name}.Modelfile
ollama run ${name}`],
  ];
}

const transformers = (folder: string): string => `from transformers import pipeline

ask = pipeline("text-generation", "./${folder}")`;

export const cliSnippet = (stem: string, method: Method): string => `luthier train --from run.json --data DATA --out ${stem}-${method}`;
