"""What the checks of methods and quantizers share: any GGUF file of a small llama, ours included, read with numpy, and
its network in PyTorch, f64 and differentiable in whatever a method learns.

Independent of trimpot's C++ on purpose; only the format's description (src/model/stored.h, src/format/grouped.h) is
shared. The network works in the file's own order of channels; check_network() holds it to transformers.
"""
import json
import os
import subprocess

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from oracle import BLOCK_BYTES, decode_blocks

KINDS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], dtype=np.float32)  # fmt: skip


def dynamic_map():
    """bitsandbytes' signed 8-bit map, ascending."""
    values = []
    for power in range(7):
        edges = torch.linspace(0.1, 1, (1 << power) + 1, dtype=torch.float32)
        middles = (10.0 ** (power - 6)) * ((edges[:-1] + edges[1:]) / 2)
        values += middles.tolist() + (-middles).tolist()
    return np.sort(np.array(values + [0.0, 1.0], dtype=np.float32))


def unpack(packed, bits, columns):
    """Codes u8 [rows, columns] of packed rows, bit by bit from the lowest."""
    bits_of = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")[:, : columns * bits]
    return (bits_of.reshape(len(packed), columns, bits) << np.arange(bits, dtype=np.uint8)).sum(2, dtype=np.uint8)


def f64(array):
    return torch.from_numpy(np.array(array, dtype=np.float64))


class Stored:
    """One linear layer as the file has it: y = weight() x, plus the weak columns.

    kind: "dense" (values [rows, n]), "grouped" or "nf4" (levels [rows, n], scales [rows, groups], and zeros or offsets
    or neither; `middle` is the fixed zero). weak [rows, k]; robust and weak_columns: the input channel of each column.
    """

    zeros = offsets = weak = codes = None
    middle = 0

    def __init__(self, file, name, rows, columns):
        self.name, self.rows, self.columns = name, rows, columns
        t = file.tensors
        self.weak_columns = t[f"{name}.weak_columns"].astype(np.int64) if f"{name}.weak_columns" in t else np.zeros(0, int)
        self.robust = np.setdiff1d(np.arange(columns), self.weak_columns)
        self.width = len(self.robust)
        if len(self.weak_columns):
            self.weak = f64(t[f"{name}.weak"])
        if f"{name}.absmax" in t:
            self.kind, self.bits, self.each = "nf4", 4, 64
            self.codes = unpack(t[f"{name}.codes"], 4, self.width)
            codes = t[f"{name}.absmax"].view(np.uint8)
            nested = np.arange(codes.size).reshape(codes.shape)[file.places(name, rows)] // 256
            absmax = dynamic_map()[codes] * t[f"{name}.absmax_scales"][nested] + t[f"{name}.absmax_offset"][0]
            self.levels, self.scales = f64(NF4[self.codes]), f64(absmax.astype(np.float16))
        elif f"{name}.codes" in t:
            self.kind, self.bits = "grouped", int(file.field("trimpot.bits"))
            self.each = int(file.field("trimpot.group_size")) or self.width
            self.codes = unpack(t[f"{name}.codes"], self.bits, self.width)
            self.levels, self.scales = f64(self.codes), f64(t[f"{name}.scales"])
            self.zeros = f64(t[f"{name}.zeros"]) if f"{name}.zeros" in t else None
            self.offsets = f64(t[f"{name}.offsets"]) if f"{name}.offsets" in t else None
            self.middle = 0 if self.zeros is not None or self.offsets is not None else 1 << (self.bits - 1)
        elif file.types[f"{name}.weight"] in BLOCK_BYTES:
            codes, d, m = decode_blocks(file.raw[f"{name}.weight"])
            self.kind, self.each = "grouped", 32
            self.levels, self.scales = f64(codes).reshape(rows, -1), f64(d)
            self.offsets = None if m is None else f64(m)
        else:
            self.kind, self.values = "dense", f64(t[f"{name}.weight"])
        if self.kind != "dense":
            self.group = torch.from_numpy(np.arange(self.width) // self.each)
            self.groups = int(self.group[-1]) + 1

    def robust_weight(self, scales=None, zeros=None, offsets=None):
        """[rows, n], differentiable in the given parts; the others are the file's."""
        if self.kind == "dense":
            return self.values
        scales = self.scales if scales is None else scales
        zeros = self.zeros if zeros is None else zeros
        offsets = self.offsets if offsets is None else offsets
        levels = self.levels - (self.middle if zeros is None else zeros[:, self.group])
        w = scales[:, self.group] * levels
        return w if offsets is None else w + offsets[:, self.group]

    def weight(self, robust=None, weak=None):
        """[rows, columns] in the file's order of channels."""
        robust = self.robust_weight() if robust is None else robust
        if self.weak is None:
            return robust
        order = torch.from_numpy(np.argsort(np.concatenate([self.robust, self.weak_columns])))
        return torch.cat([robust, self.weak if weak is None else weak], 1)[:, order]


class Model:
    """A GGUF file's tensors (numpy, by name), its sizes, and the network's fixed parts in f64."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.path = path
        self.fields = reader.fields
        self.raw = {t.name: t for t in reader.tensors}
        self.types = {t.name: t.tensor_type for t in reader.tensors}
        self.tensors = {n: np.array(t.data) for n, t in self.raw.items()}
        for n, kind in self.types.items():
            if kind == Type.BF16:
                self.tensors[n] = (self.tensors[n].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        arch = self.field("trimpot.architecture") or self.field("general.architecture")
        size = lambda key: self.field(f"{arch}.{key}")
        self.layers, self.hidden = int(size("block_count")), int(size("embedding_length"))
        self.heads, self.kv_heads = int(size("attention.head_count")), int(size("attention.head_count_kv"))
        self.head_dim = int(size("attention.key_length") or self.hidden // self.heads)
        self.feed_forward = int(size("feed_forward_length"))
        self.eps, self.base = float(size("attention.layer_norm_rms_epsilon")), float(size("rope.freq_base"))
        kv = self.kv_heads * self.head_dim
        q, h, f = self.heads * self.head_dim, self.hidden, self.feed_forward
        self.sizes = [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)]
        self.linears = [Stored(self, f"blk.{l}.{k}", *s) for l in range(self.layers) for k, s in zip(KINDS, self.sizes)]
        self.residual = self.order("residual_order", self.hidden)  # original channel at each position
        self.ffn = [self.order(f"blk.{l}.ffn_order", f) for l in range(self.layers)]
        moved = self.residual if self.field("trimpot.embedding_in_original_order") else np.arange(self.hidden)
        self.embedding = self.dense("token_embd")[:, torch.from_numpy(moved)]
        self.head = self.dense("output")[:, torch.from_numpy(moved)] if "output.weight" in self.raw else self.embedding
        self.norm = lambda name: f64(self.tensors[f"{name}.weight"])

    def places(self, name, rows):
        """Place of each row in PyTorch's order; the inverse of how llama.cpp moves q and k."""
        if not name.endswith(("attn_q", "attn_k")):
            return np.arange(rows)
        return np.arange(rows).reshape(-1, 2, self.head_dim // 2).swapaxes(1, 2).reshape(-1)

    def field(self, key):
        return self.fields[key].contents() if key in self.fields else None

    def order(self, name, count):
        return self.tensors[name].astype(np.int64) if name in self.tensors else np.arange(count)

    def dense(self, name):
        if self.types[f"{name}.weight"] not in BLOCK_BYTES:
            return f64(self.tensors[f"{name}.weight"])
        codes, d, m = decode_blocks(self.raw[f"{name}.weight"])
        w = f64(codes) * f64(d)[..., None] + (0 if m is None else f64(m)[..., None])
        return w.reshape(len(d), -1)

    def axes(self, index):
        """Original channel at each of a layer's rows and columns."""
        layer, kind = divmod(index, 7)
        rows, columns = self.sizes[kind]
        row = self.residual if kind in (3, 6) else self.ffn[layer] if kind in (4, 5) else np.arange(rows)
        column = np.arange(columns) if kind == 3 else self.ffn[layer] if kind == 6 else self.residual
        return row, column

    def original(self, index):
        """A layer's weight [rows, columns] with rows and columns in the original order."""
        w, out = self.linears[index].weight().numpy(), np.zeros(self.sizes[index % 7])
        row, column = self.axes(index)
        out[np.ix_(row, column)] = w
        return out

    def rms_norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.norm(name)

    def rotate(self, x):
        """[batch, tokens, heads, head_dim]: llama.cpp's arch llama turns adjacent pairs."""
        half = self.head_dim // 2
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * self.base ** (
            -torch.arange(half, dtype=torch.float64) / half
        )
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    def layer(self, layer, x, apply, seen=None):
        """One block; apply(index, input) is the linear layer. `seen` gets the four distinct inputs."""
        batch, tokens, _ = x.shape
        heads = lambda y, n: y.reshape(batch, tokens, n, self.head_dim)
        at = 7 * layer
        a = self.rms_norm(x, f"blk.{layer}.attn_norm")
        q = self.rotate(heads(apply(at, a), self.heads)).transpose(1, 2)
        k = self.rotate(heads(apply(at + 1, a), self.kv_heads)).transpose(1, 2)
        v = heads(apply(at + 2, a), self.kv_heads).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        scores = scores + torch.full((tokens, tokens), float("-inf"), dtype=torch.float64).triu(1)
        o = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + apply(at + 3, o)
        b = self.rms_norm(x, f"blk.{layer}.ffn_norm")
        inner = torch.nn.functional.silu(apply(at + 4, b)) * apply(at + 5, b)
        if seen is not None:
            seen += [a, o, b, inner]
        return x + apply(at + 6, inner)

    def logits(self, ids, apply=None):
        """[batch, tokens] -> [batch, tokens, vocabulary]"""
        weights = {}

        def plain(index, x):
            if index not in weights:
                weights[index] = self.linears[index].weight()
            return x @ weights[index].T

        x = self.embedding[ids]
        for layer in range(self.layers):
            x = self.layer(layer, x, apply or plain)
        return self.rms_norm(x, "output_norm") @ self.head.T


def toy_tokens(text):
    """The toy tokenizer has no merges: one token per byte after three control tokens."""
    return torch.tensor([3 + b for b in text.encode()])


def toy_text(length=20000, seed=0):
    """Letters with some order in them, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 7))) for _ in range(40)]
    text = ""
    while len(text) < length:
        text += words[min(39, int(rng.exponential(8)))] + " "
    return text


def transformers_logits(model, ids):
    """The same file's weights in transformers' LlamaForCausalLM, f32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.embedding.shape[0], hidden_size=model.hidden, intermediate_size=model.feed_forward,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim, rms_norm_eps=model.eps, tie_word_embeddings=False, max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": model.base},
    )  # fmt: skip
    network = LlamaForCausalLM(config).float().eval()
    inverse = np.argsort(model.residual)
    state = {
        "model.embed_tokens.weight": model.embedding[:, inverse],
        "lm_head.weight": model.head[:, inverse],
        "model.norm.weight": model.norm("output_norm")[inverse],
    }
    for index in range(len(model.linears)):
        layer, kind = divmod(index, 7)
        w = model.original(index)
        if kind < 2:  # adjacent rotary pairs back to halves
            w = w.reshape(-1, model.head_dim // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        block = "self_attn" if kind < 4 else "mlp"
        state[f"model.layers.{layer}.{block}.{MODULES[kind]}.weight"] = torch.from_numpy(w)
        state[f"model.layers.{layer}.input_layernorm.weight"] = model.norm(f"blk.{layer}.attn_norm")[inverse]
        state[f"model.layers.{layer}.post_attention_layernorm.weight"] = model.norm(f"blk.{layer}.ffn_norm")[inverse]
    network.load_state_dict({k: v.float() for k, v in state.items()})
    with torch.no_grad():
        return network(input_ids=ids).logits.double()


class Toy:
    """A folder with toy models and the two programs."""

    def __init__(self, trimpot, make_toy_model, folder):
        self.trimpot, self.make, self.folder = os.path.abspath(trimpot), os.path.abspath(make_toy_model), folder

    def path(self, name):
        return os.path.join(self.folder, name)

    def model(self, name, *kind):
        """Its predictions are nearly certain, for the head is the embedding; smaller logits leave something to learn."""
        subprocess.run([self.make, self.path(name), *kind], check=True)
        for tensor in GGUFReader(self.path(name), "r+").tensors:
            if tensor.name == "output_norm.weight":
                tensor.data[:] *= 0.1
                tensor.data.flush()
        return name

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return name

    def run(self, *args):
        done = subprocess.run([self.trimpot, *map(str, args)], cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"trimpot {' '.join(map(str, args))}\n{done.stderr}")
        return done.stdout

    def run_json(self, *args):
        return json.loads(self.run(*args, "--json"))

    def quantize(self, source, name, *args):
        self.run("quantize", source, name, "-q", *args)
        return name
