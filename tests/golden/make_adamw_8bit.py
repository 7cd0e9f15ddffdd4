"""Makes adamw_8bit.safetensors: what bitsandbytes makes of 8-bit moments, for tests/ops/adamw_8bit.rs.

    map.signed, map.unsigned [256]     create_dynamic_map
    SIGN.x [1000]                      values over many decades, and a block of zeros
    SIGN.codes, .largest, .values      quantize_blockwise of x in blocks of 256 (codes as floats), and dequantize_blockwise
    theta [301], grads [8, 301]        a problem of two blocks, the second not full
    theta.STEP [301]                   after each step of optimizer_update_8bit_blockwise("adam"), which is AdamW
    m.codes, m.largest, v.codes, ...   its states after the last

bitsandbytes has several quantisers for one definition, the nearest value. Its kernel for CPUs is off by up to 2^-15 of the
largest (it looks 16 bits up), so its portable kernel is taken, also inside of the optimizer. Rounding of f32 could turn a
code over that lies between two values: the seed is one where none comes nearer to the middle than MARGIN of itself.
One thing is ours: a second moment above 0 is never rounded to 0 (why: src/ops/adamw_8bit.rs).
"""

import importlib

import bitsandbytes
import bitsandbytes.backends.cpu.ops as cpu
import bitsandbytes.functional as functional
import torch
from safetensors.torch import save_file

BLOCK = 256
LEN, STEPS = 301, 8
# As f32 has them: 1 - beta2 is another number where beta2 was rounded.
BETA1, BETA2 = torch.tensor([0.9, 0.999]).tolist()
HYPER = dict(beta1=BETA1, beta2=BETA2, eps=1e-8, lr=1e-2, weight_decay=0.1, gnorm_scale=0.5)
MARGIN = 2e-6

MAPS = {"signed": functional.create_dynamic_map(True), "unsigned": functional.create_dynamic_map(False)}


def portable_kernels():
    """bitsandbytes' kernels in plain PyTorch, by name: its module, read again with a register of our own."""
    kernels, register = {}, bitsandbytes._ops.register_kernel
    bitsandbytes._ops.register_kernel = lambda name, _: lambda kernel: kernels.setdefault(name.split("::")[1], kernel)
    importlib.reload(importlib.import_module("bitsandbytes.backends.default.ops"))
    bitsandbytes._ops.register_kernel = register
    return kernels


PORTABLE = portable_kernels()
margins = []


def quantize(x, code):
    """Codes and largest magnitudes; notes how near to the middle of two values any x is."""
    codes, largest = PORTABLE["quantize_blockwise"](x, code, BLOCK)
    parts = x.double() / largest.double().clamp(min=1e-38).repeat_interleave(BLOCK)[: x.numel()]
    middles = (code[:-1].double() + code[1:].double()) / 2
    apart = (parts[:, None] - middles).abs().min(1).values
    margins.append((apart / parts.abs()).nan_to_num(1.0).min().item())
    theirs, same = torch.ops.bitsandbytes.quantize_blockwise(x, code, BLOCK)
    further = (code[theirs.int()] - parts).abs() - (code[codes.int()] - parts).abs()
    assert (same == largest).all() and (further[parts != 0] <= 2**-15).all()
    if code is MAPS["unsigned"]:
        codes = torch.maximum(codes, (x > 0).to(codes.dtype))
    return codes, largest


def quantize_into(x, code, largest_out, codes_out, blocksize):
    assert blocksize == BLOCK
    codes, largest = quantize(x, code)
    codes_out.copy_(codes)
    largest_out.copy_(largest)


cpu._quant_blockwise_fp32_direct = quantize_into


def values(generator, signed):
    x = torch.randn(1000, generator=generator)
    x[BLOCK : 2 * BLOCK] *= 10 ** (-7 * torch.rand(BLOCK, generator=generator))
    x[2 * BLOCK : 3 * BLOCK] = 0
    return x if signed else x * x


def draw(seed):
    margins.clear()
    generator = torch.Generator().manual_seed(seed)
    out = {f"map.{name}": code for name, code in MAPS.items()}
    for name, code in MAPS.items():
        x = values(generator, name == "signed")
        codes, largest = quantize(x, code)
        back = torch.ops.bitsandbytes.dequantize_blockwise(codes, largest, code, BLOCK, torch.float32)
        out |= {f"{name}.x": x, f"{name}.codes": codes.float(), f"{name}.largest": largest, f"{name}.values": back}
    theta = torch.randn(LEN, generator=generator)
    # Parameters whose gradients differ by two decades, as those of a model do.
    grads = torch.randn(STEPS, LEN, generator=generator) * 10 ** (-2 * torch.rand(LEN, generator=generator))
    out |= {"theta": theta.clone(), "grads": grads}
    state = [torch.zeros(LEN, dtype=torch.uint8) for _ in range(2)]
    largest = [torch.zeros(-(-LEN // BLOCK)) for _ in range(2)]
    for step in range(1, STEPS + 1):
        h = HYPER
        cpu._optimizer_update_8bit_blockwise_cpu(
            "adam", grads[step - 1], theta, *state, h["beta1"], h["beta2"], 0.0, 0.0, h["eps"], step, h["lr"],
            MAPS["signed"], MAPS["unsigned"], *largest, h["weight_decay"], h["gnorm_scale"],
        )
        out[f"theta.{step}"] = theta.clone()
    for name, codes, most in zip("mv", state, largest):
        out |= {f"{name}.codes": codes.float(), f"{name}.largest": most}
    return out


seed = next(seed for seed in range(1000) if draw(seed) and min(margins) >= MARGIN)
out = draw(seed)
print(f"seed {seed}, margin {min(margins):.1e}")
save_file({name: tensor.contiguous() for name, tensor in out.items()}, "adamw_8bit.safetensors")
