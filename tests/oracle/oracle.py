"""What the oracle scripts share: GGUF blocks decoded with numpy, and the same model in PyTorch.

Independent of trimpot's C++ on purpose: the container is read by the gguf package, the network is the one of
transformers, the tokenizer that of tokenizers; only the block decoding is written here, and load_reference() holds it
to the weights that transformers read from the same file.
"""
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from torch import nn

GROUP = 32  # weights per block of every type below
BLOCK_BYTES = {Type.Q4_0: 18, Type.Q4_1: 20, Type.Q5_0: 22, Type.Q5_1: 24, Type.Q8_0: 34}
HAS_OFFSET = {Type.Q4_1, Type.Q5_1}
FIXED_ZERO = {Type.Q4_0: 8, Type.Q5_0: 16}

HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def decode_blocks(tensor):
    """One quantized tensor -> codes int8 [rows, groups, 32], d f32 [rows, groups], m f32 [rows, groups] or None.

    w = d * code + m; the fixed zero point of Q4_0 (8) and Q5_0 (16) is already subtracted from the codes.
    """
    kind = tensor.tensor_type
    columns = int(tensor.shape[0])
    blocks = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1, columns // GROUP, BLOCK_BYTES[kind])

    def f16(at):
        return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)

    at = 4 if kind in HAS_OFFSET else 2
    d, m = f16(0), f16(2) if kind in HAS_OFFSET else None
    if kind == Type.Q8_0:
        return blocks[..., 2:].copy().view(np.int8), d, m
    high = None
    if kind in (Type.Q5_0, Type.Q5_1):
        high = np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little")  # bit j belongs to element j
        at += 4
    nibbles = blocks[..., at : at + 16]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).astype(np.int8)
    if high is not None:
        codes += (high << 4).astype(np.int8)
    return codes - np.int8(FIXED_ZERO.get(kind, 0)), d, m


class Linear:
    """A quantized linear layer of the file, everything in the row order of transformers.

    codes f32-exact int8 [rows, groups, 32], d and m f32 [rows, groups]; to_file[i] = the transformers row that is
    stored as row i of the GGUF tensor.
    """

    def __init__(self, name, module_name, tensor, heads):
        self.name, self.module_name = name, module_name
        codes, d, m = decode_blocks(tensor)
        self.rows, self.groups = d.shape
        self.to_file = np.arange(self.rows)
        if heads:  # arch llama stores q and k rows as adjacent rotary pairs
            self.to_file = self.to_file.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        from_file = np.argsort(self.to_file)
        self.codes = torch.from_numpy(codes[from_file])
        self.d = torch.from_numpy(d[from_file])
        self.m = None if m is None else torch.from_numpy(m[from_file])

    def weight(self, d, m):
        """[rows, columns] from scales (and offsets) [rows, groups]; differentiable in both."""
        w = self.codes.to(d.dtype) * d[..., None]
        if m is not None:
            w = w + m[..., None]
        return w.reshape(self.rows, -1)

    def file_order(self, values):
        return values[torch.from_numpy(self.to_file)].contiguous()


class Reference:
    """model: transformers, f32; linears: the quantized layers in file order; tokenizer: with the file's own split."""

    def __init__(self, path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(path).resolve()
        reader = GGUFReader(path)
        field = lambda key: reader.fields[key].contents() if key in reader.fields else None
        arch = field("general.architecture")
        self.add_bos = bool(field("tokenizer.ggml.add_bos_token"))
        self.model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        self.model.eval()
        self.model.config.use_cache = False
        for p in self.model.parameters():
            p.requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if field("tokenizer.ggml.pre") == "smollm":  # transformers drops the digit split when it reads a GGUF
            from tokenizers import pre_tokenizers as pre

            self.tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(
                [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False, use_regex=True)]
            )
        heads = {"attn_q": field(f"{arch}.attention.head_count"), "attn_k": field(f"{arch}.attention.head_count_kv")}
        self.linears = []
        for tensor in reader.tensors:
            parts = tensor.name.split(".")
            if parts[0] != "blk" or parts[-1] != "weight" or parts[2] not in HF_NAMES:
                continue
            if tensor.tensor_type not in BLOCK_BYTES:
                continue
            module_name = f"model.layers.{parts[1]}.{HF_NAMES[parts[2]]}"
            linear = Linear(tensor.name, module_name, tensor, heads.get(parts[2]) if arch == "llama" else None)
            loaded = self.model.get_submodule(module_name).weight
            error = (linear.weight(linear.d, linear.m) - loaded).abs().max().item()
            if error > 1e-6 * loaded.abs().max().item():
                raise SystemExit(f"{tensor.name}: decoded blocks differ from transformers by {error:g}")
            self.linears.append(linear)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def logits(self, ids):
        """[batch, tokens] -> [batch, tokens, vocab]"""
        return self.model(input_ids=ids).logits


def read_text(path):
    return Path(path).read_bytes().decode("utf-8")  # bytes as they are: line ends count


def mean_cross_entropy(logits, ids):
    """Mean over the tokens - 1 predictions of every row of ids."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def perplexity(reference, text, chunks, context=512):
    """llama-perplexity's protocol: windows without overlap, only the predictions of the second half are scored."""
    ids = reference.ids(text)
    chunks = min(chunks or 1 << 30, len(ids) // context)
    total, count, first = 0.0, 0, context // 2
    with torch.no_grad():
        for c in range(chunks):
            window = torch.tensor([ids[c * context : (c + 1) * context]])
            if reference.add_bos:
                window[0, 0] = reference.tokenizer.bos_token_id
            scored = reference.logits(window)[0, first:-1].double()
            total += nn.functional.cross_entropy(scored, window[0, first + 1 :], reduction="sum").item()
            count += context - 1 - first
    return float(np.exp(total / count)), chunks
