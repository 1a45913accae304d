#!/usr/bin/env python3
"""Writes golden.inc: a small matrix quantized to NF4 with double quantization by bitsandbytes.

Needs bitsandbytes and PyTorch. The 8-bit codes come from bitsandbytes' own PyTorch kernel, which
rounds to the nearest value of the map as its CUDA kernel does; its CPU library looks codes up in a
table and misses the nearest about once in 600 values.

    python3 make_golden.py > golden.inc
"""
import torch
from bitsandbytes import functional as bnb

ROWS, COLUMNS = 5, 128


def weights():
    """Whole numbers / 1024 from a linear congruence, so that the C++ test can remake them."""
    state, values = 12345, []
    for i in range(ROWS * COLUMNS * 60):
        state = (state * 1103515245 + 12345) % 2**31
        # A block's size varies, so that the magnitudes spread.
        values.append((state // 65536 % 2001 - 1000) * (1 + i // 64 % 37) / 32768)
    w = torch.tensor(values, dtype=torch.float32)
    w[64:128] = 0
    return w


def show(name, kind, values, form):
    print(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for value in values:
        text = " " + form(value) + ","
        if len(line) + len(text) > 98:
            print(line)
            line = "   "
        line += text
    print(line + "\n};")


def main():
    w = weights()
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    plain = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")[1].absmax
    packed = packed.flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()
    reference = torch.ops.bitsandbytes.quantize_blockwise.default.redispatch
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    code = bnb.create_dynamic_map(signed=True)
    absmax_codes, absmax_scales = reference(keys, plain - state.offset, code, 256)
    print("// Made by make_golden.py with bitsandbytes; do not edit.")
    print(f"constexpr int kRows = {ROWS * 60}, kColumns = {COLUMNS};")
    # All codes would be 77 kB: the first rows as they are, and a sum over the others.
    show("kCodes", "unsigned char", codes[: ROWS * COLUMNS].tolist(), str)
    weight = torch.arange(codes.numel()) % 1009 + 1
    print(f"constexpr long long kCodeSum = {(codes.long() * weight).sum().item()};")
    show("kAbsmaxCodes", "unsigned char", absmax_codes.tolist(), str)
    show("kAbsmaxScales", "float", absmax_scales.tolist(), lambda x: x.hex() + "f")
    print(f"constexpr float kOffset = {state.offset.item().hex()}f;")
    show("kDynamicMap", "float", code.tolist(), lambda x: x.hex() + "f")


if __name__ == "__main__":
    main()
