#!/usr/bin/env python3
"""Logits, loss and exact scale gradients of a GGUF model from PyTorch, for the tests of the C++ forward and backward.

usage: dump_reference.py MODEL.gguf OUT_DIR [--text FILE] [--tokens 512] [--grad-tokens 128]
"""
import argparse
import hashlib
import json
from pathlib import Path

import torch
from oracle import Reference, mean_cross_entropy, read_text
from safetensors.torch import save_file

# Written for this file: names, digits, quotes, several scripts, blank lines and doubled spaces, just over 512 tokens.
TEXT = """The workshop at the end of Lime Street opens at 7:45, and by eight the kettle has boiled twice. Ada Brandt mends
radios there. She has 312 of them on the shelves, sorted not by maker but by the sound they make when they fail.

"A radio never lies," she told me. "It hums at 50 hertz when the supply is bad, it crackles when a joint is cold, and
it says nothing at all when somebody has been helpful with a screwdriver."  Then she laughed and handed me a small
blue resistor, 4700 ohms, with one leg missing.

Her method is simple. First she listens. Then she measures three voltages, writes them in a notebook, and compares
them with the voltages she wrote there in 1998, 2004 and 2017. If two of the three agree, the fault is in the third
stage; if none agree, the transformer is tired. I asked what happens when all of them agree. "Then the fault is in the
listener," she said, "and I make coffee."

== The long wave ==

In the evening the station from across the sea comes in: first a whistle, then a voice reading the depths of
harbours. "Nord, 3.5 metres. S\u00fcd, 2.25 metres. \u0152re, 11." Nobody in Lime Street owns a boat. Still, six or seven
neighbours come in, stand between the shelves and wait for the number of the harbour they like best. The baker's is
\u0152re, because it never changes; the children prefer \u6c34\u9580, which the reader cannot pronounce.

for i in range(10):
    print(i, "volts", i * 0.625)

That is the program her nephew wrote to test the new meter. It prints ten lines, and the last one is 5.625. Ada framed
it. Next to it hangs a card with the only rule of the shop: take nothing apart that you have not first heard working,
and put nothing back together that you have not understood. It is a good rule for radios. Some days, she thinks, it
would be a good rule for everything else as well, from clocks to quarrels, though with quarrels the screws are smaller
and the diagrams are never in the box.
"""


def gradients(reference, ids):
    """loss and {gguf name: dL/dW [rows, columns] in transformers' row order} of the mean cross entropy of ids [1, n]."""
    modules = {l.name: reference.model.get_submodule(l.module_name) for l in reference.linears}
    for module in modules.values():
        module.weight.requires_grad_(True)
    loss = mean_cross_entropy(reference.logits(ids), ids)
    loss.backward()
    grads = {}
    for name, module in modules.items():
        grads[name], module.weight.grad = module.weight.grad, None
        module.weight.requires_grad_(False)
    return loss.item(), grads


def direct_gradients(reference, linear, ids):
    """The same gradients of one layer with d and m as real parameters: the layer's weight is built as d * q + m."""
    d = linear.d.clone().requires_grad_(True)
    m = None if linear.m is None else linear.m.clone().requires_grad_(True)
    module = reference.model.get_submodule(linear.module_name)
    plain = module.forward
    module.forward = lambda x: torch.nn.functional.linear(x, linear.weight(d, m), module.bias)
    mean_cross_entropy(reference.logits(ids), ids).backward()
    module.forward = plain
    return d.grad, None if m is None else m.grad


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--text", help="UTF-8 file instead of the built-in text")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--grad-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    reference = Reference(args.model)
    text = read_text(args.text) if args.text else TEXT
    ids = reference.ids(text)
    if len(ids) < args.tokens:
        raise SystemExit(f"the text has {len(ids)} tokens, --tokens asks for {args.tokens}: give a longer --text")
    ids = torch.tensor([ids[: args.tokens]])
    ids.numpy().astype("<i4").tofile(out / "tokens.i32")
    save_file({"tokens": ids[0].to(torch.int32)}, out / "tokens.safetensors")
    (out / "text.txt").write_bytes(text.encode("utf-8"))

    with torch.no_grad():
        logits = reference.logits(ids)
    save_file({"logits": logits[0].contiguous()}, out / "logits.safetensors")

    short = ids[:, : args.grad_tokens]
    loss, grads = gradients(reference, short)
    tensors, checks = {}, {}
    for linear in reference.linears:
        grad = grads[linear.name].reshape(linear.rows, linear.groups, -1)
        d_scale = (grad * linear.codes).sum(-1)
        tensors[linear.name + ".d_scale"] = linear.file_order(d_scale)
        if linear.m is not None:
            tensors[linear.name + ".d_offset"] = linear.file_order(grad.sum(-1))
    picked = {l.name: l for l in reference.linears}
    first, last = reference.linears[0], reference.linears[-1]
    for name in dict.fromkeys([first.name, "blk.0.attn_q.weight", "blk.1.attn_k.weight", last.name]):
        if name not in picked:
            continue
        linear = picked[name]
        d_grad, m_grad = direct_gradients(reference, linear, short)
        checks[name] = {"d_scale": relative(tensors[name + ".d_scale"], linear.file_order(d_grad))}
        if m_grad is not None:
            checks[name]["d_offset"] = relative(tensors[name + ".d_offset"], linear.file_order(m_grad))
        if max(checks[name].values()) > 1e-4:
            raise SystemExit(f"{name}: reduced and direct gradients differ: {checks[name]}")
    save_file(tensors, out / "gradients.safetensors", metadata={"loss": repr(loss), "tokens": str(args.grad_tokens)})

    summary = {
        "model_sha256": hashlib.sha256(Path(args.model).read_bytes()).hexdigest(),
        "tokens": args.tokens,
        "grad_tokens": args.grad_tokens,
        "loss_all_tokens": mean_cross_entropy(logits, ids).item(),
        "loss_grad_tokens": loss,
        "vocab": logits.shape[-1],
        "linears": len(reference.linears),
        "reduction_check_relative_l2": checks,
        "torch": torch.__version__,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
