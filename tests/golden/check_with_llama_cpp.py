"""What llama.cpp computes with GGUF files that someone else wrote: one JSON object a line.

python check_with_llama_cpp.py FILE IDS_JSON [FILE IDS_JSON ...]

`logprobs` are those of all tokens behind the ids, with keys and values cached in f32.
"""

import json
import sys

import xllamacpp


def server(path):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def logprobs(path, ids):
    asked = {"prompt": ids, "n_predict": 1, "n_probs": 1 << 20, "temperature": 0.0, "cache_prompt": False}
    said = server(path).handle_completions(asked)
    if "choices" not in said:
        sys.exit(f"{path}: {said}")
    tokens = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [token["logprob"] for token in sorted(tokens, key=lambda token: token["id"])]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for path, ids in zip(sys.argv[1::2], sys.argv[2::2]):
        print(json.dumps({"file": path, "logprobs": logprobs(path, json.loads(ids))}), flush=True)


if __name__ == "__main__":
    main()
