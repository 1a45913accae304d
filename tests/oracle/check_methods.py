#!/usr/bin/env python3
"""Every tuning method against PyTorch autograd and AdamW in f64: the same toy model, tokens and start.

usage: check_methods.py TRIMPOT MAKE_TOY_MODEL [--only SUBSTRING] [--steps 8] [--keep FOLDER]

For each case `trimpot tune --precision f32` runs three times:
  probe   at a learning rate of 1e-30, with a checkpoint after its first step. Its values are the start (LoRA's random A
          is read from it), its first moments are 0.1 times the gradient: so every single element of the gradient is
          compared.
  plain   constant rate, no clipping;  clipped: at half of the first gradient's norm.
Their losses and gradient norms are compared at every step, and the final values that the output file holds.
Printed per case, relative: the worst |g - g_torch| over the largest |g_torch| of its tensor (grad); the norm of the
difference over the norm (norm); the worst loss and gradient norm of all steps; the difference of the learned change of
the values over its norm (change), where f16 rounding of single values may differ by a unit; and, for information, by
how much the loss fell. Exit status 1 if one is above its bound.
"""
import argparse
import json
import sys
import tempfile

import numpy as np
import torch
from methods import LowRank, Scales, WeakColumns, Whole, f16, fake_quantize, train
from safetensors.numpy import load_file
from small import MODULES, Model, Toy, f64, toy_text, toy_tokens, transformers_logits

SEQUENCE, BATCH = 64, 2

# Bounds. f32 sums of some hundred terms are off by about 1e-6; losses are means of 126 such. Later steps amplify:
# f16 commits flip single values by 2^-11.
BOUNDS = {"grad": 2e-5, "norm": 1e-5, "loss": 2e-5, "grad_norm": 2e-4, "change": 1e-2}


def tiles(array, flat, at):
    """[rows, columns] from the checkpoint's layout [tiles][columns][16]; and where the next tensor begins."""
    rows, columns = array.shape
    count = (rows + 15) // 16
    size = count * columns * 16
    part = flat[at : at + size].reshape(count, columns, 16).swapaxes(1, 2).reshape(count * 16, columns)
    return part[:rows], at + size


def metrics(toy, name):
    with open(toy.path(f"{name}.run/metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return np.array([l["loss"] for l in lines]), np.array([l["grad_norm"] for l in lines])


def check(toy, case, tokens, steps):
    model = Model(toy.path(case["model"]))
    teacher = Model(toy.path(case["teacher"])) if "teacher" in case else None
    kd_weight, rate = case.get("kd_weight", 1.0), case["rate"]
    output = "tuned" + case.get("output", ".safetensors")
    common = ["tune", "-m", case["model"], "--data", "text.txt", "-q", "--precision", "f32", "--method", case["trimpot"],
              "--max-seq-length", SEQUENCE, "--batch-size", BATCH, "--lr-scheduler-type", "constant", "--warmup-ratio", 0,
              "--no-shuffle", "--val-size", 0, *case.get("args", [])]  # fmt: skip
    if teacher is not None:
        common += ["--teacher", case["teacher"], "--kd-weight", kd_weight]

    def tune(*args):
        toy.run(*common, "-o", output, "--run-dir", "tuned.run", *args)
        return metrics(toy, "tuned")

    tune("--lr", 1e-30, "--max-steps", 2, "--save-steps", 1, "--max-grad-norm", 0)
    method = case["method"](model, toy.path(output))
    probe = load_file(toy.path("tuned.run/checkpoint-1.safetensors"))
    worst, at, gradients = {}, 0, []

    def note(key, value):
        worst[key] = max(worst.get(key, 0.0), float(value))

    for l in method.learned:
        shape = np.empty(l.start.shape if l.start is not None else l.shape)
        start, _ = tiles(shape, probe["values"], at)
        gradient, at = tiles(shape, probe["first_moment"], at)
        gradients.append(f64(gradient) * 10)
        if l.start is None:
            l.start = f64(start)
        else:
            note("start", (f64(start) - l.start).abs().max())  # exact but for the step of 1e-30
    assert at == len(probe["values"]), "the checkpoint holds other parameters"

    batches = [tokens[step * BATCH : (step + 1) * BATCH] for step in range(steps)]
    norm = None
    for clip in (0.0, 0.5):
        args = ("--lr", rate, "--max-steps", steps, "--max-grad-norm", clip * (norm or 0))
        losses, norms = tune(*args)
        clip *= norm or 0
        torch_losses, torch_norms, values, torch_gradients = train(method, batches, rate, clip, teacher, kd_weight)
        if norm is None:
            norm = norms[0]
            for mine, theirs in zip(gradients, torch_gradients):
                largest = theirs.abs().max()
                if largest > 0:  # of LoRA's A at the start: B is 0
                    note("grad", (mine - theirs).abs().max() / largest)
                    note("norm", (mine - theirs).norm() / theirs.norm())
                else:
                    note("grad", mine.abs().max())
        note("loss", np.max(np.abs(losses - torch_losses) / torch_losses))
        note("grad_norm", np.max(np.abs(norms - torch_norms) / torch_norms))
        files = method.read(toy.path(output))
        difference = sum(float((a - b).pow(2).sum()) for a, b in zip(files, values)) ** 0.5
        change = sum(float((b - s).pow(2).sum()) for b, s in zip(values, method.start_values())) ** 0.5
        note("change", difference / change)
        worst["fell"] = losses[0] - losses[-1]
    bounds = {**BOUNDS, "start": 1e-25, **case.get("bounds", {})}
    bad = [key for key, bound in bounds.items() if not worst.get(key, 0.0) <= bound]
    numbers = "".join(f" {worst.get(k, 0.0):9.1e}" for k in COLUMNS)
    print(f"{case['name']:34}{numbers}{'  BAD ' + ' '.join(bad) if bad else ''}", flush=True)
    return not bad


COLUMNS = ["grad", "norm", "loss", "grad_norm", "change", "fell"]


def columns_of_adapter(model, path):
    """Channels that --weak-columns chose, by layer, in the file's order."""
    tensors = load_file(path)
    chosen = {}
    for index, s in enumerate(model.linears):
        name = f"{s.name}.weight.weak_columns"
        if name in tensors:
            position = np.argsort(model.axes(index)[1])
            chosen[index] = position[tensors[name].astype(np.int64)]
    return chosen


def cases(toy):
    toy.model("q4_1.gguf")
    toy.model("q4_0.gguf", "Q4_0")
    toy.model("f16.gguf", "F16")
    toy.model("other.gguf", "other-seed")
    toy.run("quantize", "other.gguf", "teacher.gguf", "-q", "--method", "f32")
    own = lambda name, *args: toy.quantize("f16.gguf", name, *args)
    calibration = ("--calib", "text.txt", "--calib-samples", 8, "--calib-length", 64)
    # Widths are 64 and 96: with groups of 64 down_proj's last group is half full; with 4 weak columns none is whole.
    own("rtn4.gguf", "--method", "rtn", "--group-size", 64)
    own("rtn3.gguf", "--method", "rtn", "--bits", 3, "--group-size", 64)
    own("rtn3_row.gguf", "--method", "rtn", "--bits", 3, "--group-size", -1)
    own("float4.gguf", "--method", "rtn", "--group-size", 64, "--zeros", "float")
    own("symmetric4.gguf", "--method", "rtn", "--group-size", 32, "--zeros", "symmetric")
    own("int8.gguf", "--method", "int8")
    own("nf4.gguf", "--method", "nf4")
    own("owq.gguf", "--method", "owq", "--weak-columns", 4, *calibration)
    own("qeft4.gguf", "--method", "qeft", "--weak-columns", 4, "--group-size", 32, *calibration)
    own("qeft3.gguf", "--method", "qeft", "--bits", 3, "--weak-columns", 5, "--group-size", 64, *calibration)
    own("online.gguf", "--method", "qeft", "--weak-columns", 4, "--group-size", 32, "--reorder", "online", *calibration)
    own("qeft_f16.gguf", "--method", "qeft", "--weak-columns", 4, "--head-type", "f16", *calibration)
    every, feed_forward = MODULES, MODULES[4:]
    peqa = {"peqa": (True, False), "peqa-zero": (False, True), "peqa-both": (True, True)}

    def scales(name, model, file=".gguf", targets=every, per_row=False):
        args = ["--scale-granularity", "row"] if per_row else []
        if targets is not every:
            args += ["--target-modules", ",".join(targets)]
        label = f"{name} {model[:-5]}{' row' if per_row else ''}{'' if targets is every else ' some'}"
        return {"name": label, "trimpot": name, "model": model, "rate": 5e-3, "output": file, "args": args,
                "method": lambda m, _: Scales(m, targets, *peqa[name], per_row)}  # fmt: skip

    for model in ("q4_1.gguf", "rtn4.gguf", "rtn3.gguf", "rtn3_row.gguf", "float4.gguf", "qeft4.gguf"):
        for name in peqa:
            yield scales(name, model)
    for model in ("q4_0.gguf", "symmetric4.gguf", "int8.gguf"):
        yield scales("peqa", model)
    yield scales("peqa", "q4_1.gguf", per_row=True)
    yield scales("peqa-both", "rtn3.gguf", per_row=True)
    yield scales("peqa", "rtn4.gguf", targets=["q_proj", "down_proj"])

    def teacher(case, weight):
        return {**case, "name": f"{case['name']} teacher {weight:g}", "teacher": "teacher.gguf", "kd_weight": weight}

    yield teacher(scales("peqa", "rtn3.gguf"), 1.0)
    yield teacher(scales("peqa", "rtn3.gguf"), 0.5)

    for model in ("qeft4.gguf", "qeft3.gguf", "online.gguf", "qeft_f16.gguf", "owq.gguf"):
        yield {"name": f"qeft {model[:-5]}", "trimpot": "qeft", "model": model, "rate": 1e-2, "output": ".gguf",
               "method": lambda m, _: WeakColumns(m, every)}  # fmt: skip
    yield teacher({"name": "qeft qeft4", "trimpot": "qeft", "model": "qeft4.gguf", "rate": 1e-2, "output": ".gguf",
                   "method": lambda m, _: WeakColumns(m, every)}, 0.5)  # fmt: skip
    for model in ("q4_1.gguf", "rtn4.gguf", "nf4.gguf", "f16.gguf"):
        yield {"name": f"qeft {model[:-5]} --weak-columns", "trimpot": "qeft", "model": model, "rate": 1e-2,
               "args": ["--weak-columns", 6],
               "method": lambda m, path: WeakColumns(m, every, columns_of_adapter(m, path))}  # fmt: skip

    def low_rank(label, name, model, rank, alpha, targets=every, rslora=False):
        args = ["--lora-r", rank, "--lora-alpha", alpha, "--lora-dropout", 0] + (["--rslora"] if rslora else [])
        if targets is not every and name != "platypus":
            args += ["--target-modules", ",".join(targets)]
        return {"name": label, "trimpot": name, "model": model, "rate": 1e-3 if name == "qalora" else 1e-2, "args": args,
                "method": lambda m, _: LowRank(m, targets, rank, alpha, rslora, name == "qalora")}  # fmt: skip

    yield low_rank("lora f16", "lora", "f16.gguf", 8, 16)
    yield low_rank("lora f16 rslora", "lora", "f16.gguf", 5, 12, rslora=True)
    yield low_rank("lora q4_1 q,v", "lora", "q4_1.gguf", 4, 16, ["q_proj", "v_proj"])
    yield low_rank("lora qeft4", "lora", "qeft4.gguf", 4, 16)
    yield low_rank("lora qeft_f16", "lora", "qeft_f16.gguf", 17, 16)
    yield low_rank("qlora nf4", "qlora", "nf4.gguf", 8, 16)
    yield teacher(low_rank("qlora nf4", "qlora", "nf4.gguf", 8, 16), 1.0)
    for model in ("rtn4.gguf", "rtn3.gguf", "float4.gguf", "q4_1.gguf"):
        yield low_rank(f"qalora {model[:-5]}", "qalora", model, 8, 16)
    yield low_rank("platypus int8", "platypus", "int8.gguf", 16, 16, feed_forward)

    yield {"name": "full f16", "trimpot": "full", "model": "f16.gguf", "rate": 1e-3, "output": ".gguf",
           "method": lambda m, _: Whole(m, every, f16)}  # fmt: skip
    toy.quantize("f16.gguf", "f32.gguf", "--method", "f32")
    yield {"name": "full f32", "trimpot": "full", "model": "f32.gguf", "rate": 1e-3, "output": ".gguf",
           "method": lambda m, _: Whole(m, every, lambda w: w)}  # fmt: skip
    for bits, each in ((4, 64), (3, 32), (8, 128)):
        yield {"name": f"qat {bits} bits g{each}", "trimpot": "qat", "model": "f16.gguf", "rate": 1e-3, "output": ".gguf",
               "bounds": {"change": 5e-2},  # a master next to a tie may fall on the other side: a whole step
               "args": ["--bits", bits, "--group-size", each],
               "method": lambda m, _, bits=bits, each=each: Whole(m, every, fake_quantize(bits, each))}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trimpot")
    parser.add_argument("make_toy_model")
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--keep", help="work in this folder and leave the files there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        toy = Toy(args.trimpot, args.make_toy_model, args.keep or temporary)
        text = toy_text()
        toy.write("text.txt", text)
        tokens = toy_tokens(text)
        tokens = tokens[: len(tokens) // SEQUENCE * SEQUENCE].reshape(-1, SEQUENCE)
        good = True
        print(f"{'':34}" + "".join(f" {k:>9}" for k in COLUMNS))
        for number, case in enumerate(cases(toy)):
            if number == 0:
                for name in ("q4_1.gguf", "qeft4.gguf", "online.gguf"):
                    model = Model(toy.path(name))
                    theirs = transformers_logits(model, tokens[:2])
                    error = (model.logits(tokens[:2]) - theirs).abs().max() / theirs.abs().max()
                    print(f"network against transformers, {name}: {error:.1e}")
                    good = good and error < 1e-5
            if args.only in case["name"]:
                good = check(toy, case, tokens, args.steps) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
