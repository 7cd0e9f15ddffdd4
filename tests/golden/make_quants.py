"""Writes quants.safetensors: blocks of every quantised GGUF type with gguf-py's decoded values beside them.

Run with gguf, numpy and safetensors installed: `python make_quants.py`.
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

ROWS, COLS = 2, 512
rng = np.random.default_rng(7)
tensors = {}

# Types that gguf-py can encode: normal numbers, encoded and decoded by it.
values = (rng.standard_normal((ROWS, COLS)) * np.exp2(rng.integers(-6, 3, (ROWS, 1)))).astype(np.float32)
tensors["values"] = values
for kind in [T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]:
    tensors[f"{kind.name}.blocks"] = gguf.quantize(values, kind)

# K-quants: any bits are valid blocks as long as the f16 scales are finite.
for kind, scales in [(T.Q4_K, [0, 2]), (T.Q6_K, [208])]:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLS // block, size), dtype=np.uint8)
    for at in scales:
        blocks[:, at : at + 2] = rng.standard_normal((len(blocks), 1)).astype(np.float16).view(np.uint8)
    tensors[f"{kind.name}.blocks"] = blocks.reshape(ROWS, -1)

for name in [name for name in tensors if name.endswith(".blocks")]:
    kind = T[name.removesuffix(".blocks")]
    tensors[f"{kind.name}.values"] = gguf.dequantize(tensors[name], kind).astype(np.float32)

save_file(tensors, Path(__file__).with_name("quants.safetensors"))
