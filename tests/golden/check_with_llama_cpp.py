"""What llama.cpp makes of GGUF files that someone else wrote: one JSON object a line.

python check_with_llama_cpp.py FILE IDS_OR_TEXTS_JSON [FILE IDS_OR_TEXTS_JSON ...]

FILE may be MODEL,ADAPTER. `logprobs` are those of all tokens behind a list of ids, with keys and values cached in f32; `ids` are the tokens of each
of a list of texts, special ones among them.
"""

import json
import sys
from urllib.request import ProxyHandler, Request, build_opener

import xllamacpp


def open_model(paths):
    model, *adapters = paths.split(",")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def logprobs(server, ids):
    asked = {"prompt": ids, "n_predict": 1, "n_probs": 1 << 20, "temperature": 0.0, "cache_prompt": False}
    said = server.handle_completions(asked)
    if "choices" not in said:
        sys.exit(str(said))
    tokens = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [token["logprob"] for token in sorted(tokens, key=lambda token: token["id"])]


def tokens(server, text):
    # It listens on loopback, whatever proxy the environment names.
    asked = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = Request(f"{server.listening_address}/tokenize", asked, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request) as said:
        return json.load(said)["tokens"]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for path, asked in zip(sys.argv[1::2], sys.argv[2::2]):
        server, asked = open_model(path), json.loads(asked)
        if isinstance(asked[0], str):
            said = {"ids": [tokens(server, text) for text in asked]}
        else:
            said = {"logprobs": logprobs(server, asked)}
        print(json.dumps({"file": path, **said}), flush=True)


if __name__ == "__main__":
    main()
