#!/usr/bin/env python3
"""PEQA in PyTorch: tunes one factor per group scale with AdamW and prints the losses, as yardstick for `trimpot tune`.

usage: train_peqa.py MODEL.gguf (--text FILE | --alpaca FILE.json) [--lr 5e-3 ...] [--steps 40] [--seq 128] [--batch 2]
                     [--granularity group|row] [--step relative|absolute] [--schedule constant|linear|cosine]
                     [--warmup N] [--eval-text FILE] [--chunks N] [--holdout N] [--eval-every N] [--bf16]

What is computed:
  parameters  theta, one per group of 32 (or per row), starting at 1, f32; every d of the group's block becomes
              f16(d * theta), its m f16(m * theta): the zero point -m/d stays. Rounding is passed straight through.
  absolute    the optimizer moves s = d * theta itself (s starts at d): the step of the PEQA paper.
  optimizer   torch AdamW, betas 0.9 and 0.999, eps 1e-8, no weight decay, no clipping.
  --text      the tokens of the whole file, no BOS, cut into consecutive windows of --seq in file order; each step takes
              the next --batch windows; loss = mean over batch * (seq - 1) predictions.
  --alpaca    rows shuffled with seed 0, the first --holdout held out; each step takes the next --batch rows in the
              model's chat template, cut at --seq tokens; loss = mean over the answer tokens (<|im_end|> included).
Each --lr is a run of its own from the untouched model: one JSON object per line on stdout, notes on stderr.
"""
import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from oracle import Reference, mean_cross_entropy, perplexity, read_text
from torch import nn


class StraightThroughF16(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.half().float()

    @staticmethod
    def backward(ctx, grad):
        return grad


class ScaledLinear(nn.Module):
    """Stands in for nn.Linear: its weight is built from the codes and the tuned scales."""

    def __init__(self, linear, bias, granularity, step):
        super().__init__()
        self.linear, self.bias, self.step = linear, bias, step
        shape = (linear.rows, linear.groups if granularity == "group" else 1)
        if step == "absolute":  # per row the yardstick of a row's step is its mean |d|
            self.base = linear.d if granularity == "group" else linear.d.abs().mean(1, keepdim=True)
            self.parameter = nn.Parameter(self.base.clone())
        else:
            self.base = torch.ones(shape)
            self.parameter = nn.Parameter(torch.ones(shape))
        self.eval_weight = None

    def theta(self):
        # A group without scale stays frozen.
        return torch.where(self.base == 0, torch.ones(()), self.parameter / torch.where(self.base == 0, 1.0, self.base))

    def weight(self):
        theta = self.theta()
        d = StraightThroughF16.apply(self.linear.d * theta)
        m = None if self.linear.m is None else StraightThroughF16.apply(self.linear.m * theta)
        return self.linear.weight(d, m)

    def forward(self, x):
        if torch.is_grad_enabled():
            self.eval_weight = None
            return nn.functional.linear(x, self.weight(), self.bias)
        if self.eval_weight is None:
            self.eval_weight = self.weight()
        return nn.functional.linear(x, self.eval_weight, self.bias)


def chat_row(reference, row, seq):
    """(ids, number of prompt tokens)"""
    user = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
    prompt = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False
    )
    prompt_ids = reference.ids(prompt)
    return (prompt_ids + reference.ids(row["output"] + "<|im_end|>"))[:seq], len(prompt_ids)


def answer_loss(reference, rows):
    """Sum of the cross entropy over the answers' tokens, and their number."""
    length = max(len(ids) for ids, _ in rows)
    batch = torch.zeros(len(rows), length, dtype=torch.long)  # padding on the right: causal, so nothing sees it
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (ids, prompt) in enumerate(rows):
        batch[i, : len(ids)] = torch.tensor(ids)
        mask[i, prompt : len(ids)] = True
    mask = mask[:, 1:]
    hidden = reference.model.model(input_ids=batch).last_hidden_state[:, :-1][mask]
    logits = reference.model.lm_head(hidden)
    return nn.functional.cross_entropy(logits, batch[:, 1:][mask], reduction="sum"), int(mask.sum())


class TextTask:
    def __init__(self, reference, args):
        ids = reference.ids(read_text(args.text))
        self.reference, self.args = reference, args
        self.windows = torch.tensor(ids[: len(ids) // args.seq * args.seq]).reshape(-1, args.seq)
        if args.steps * args.batch > len(self.windows):
            raise SystemExit(f"{args.text}: {len(self.windows)} windows, {args.steps * args.batch} wanted")

    def loss(self, step):
        window = self.windows[step * self.args.batch : (step + 1) * self.args.batch]
        return mean_cross_entropy(self.reference.logits(window), window)

    def holdout(self):
        return {}


class ChatTask:
    def __init__(self, reference, args):
        rows = json.loads(Path(args.alpaca).read_text(encoding="utf-8"))
        random.Random(0).shuffle(rows)
        self.reference, self.args = reference, args
        rows = [chat_row(reference, r, args.seq) for r in rows[: args.holdout + args.steps * args.batch]]
        rows = [(ids, prompt) for ids, prompt in rows if len(ids) > prompt]
        self.held, self.rows = rows[: args.holdout], rows[args.holdout :]

    def loss(self, step):
        at = step * self.args.batch
        total, count = answer_loss(self.reference, [self.rows[(at + i) % len(self.rows)] for i in range(self.args.batch)])
        return total / count

    def holdout(self):
        total = count = 0
        rows = sorted(self.held, key=lambda r: len(r[0]))
        with torch.no_grad():
            for i in range(0, len(rows), 8):
                part, n = answer_loss(self.reference, rows[i : i + 8])
                total, count = total + part.item(), count + n
        return {"holdout_loss": total / count, "holdout_tokens": count}


def lr_factor(args, step):
    if step < args.warmup:
        return (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    if args.schedule == "linear":
        return 1 - done
    if args.schedule == "cosine":
        return 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())
    return 1.0


def evaluate(reference, task, args):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
        result = task.holdout()
        if args.eval_text:
            result["perplexity"], result["chunks"] = perplexity(reference, read_text(args.eval_text), args.chunks)
    return result


def run(reference, task, args, lr, before):
    modules = []
    for linear in reference.linears:
        parent, _, leaf = linear.module_name.rpartition(".")
        parent = reference.model.get_submodule(parent)
        plain = reference.plain[linear.module_name]
        module = ScaledLinear(linear, plain.bias, args.granularity, args.step)
        setattr(parent, leaf, module)
        modules.append(module)
    parameters = [m.parameter for m in modules]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, seconds, evals = [], [], []
    for step in range(args.steps):
        start = time.time()
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(args, step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = task.loss(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.time() - start)
        print(f"lr {lr:g} step {step + 1}/{args.steps} loss {losses[-1]:.4f} {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        if args.eval_every and (step + 1) % args.eval_every == 0 and step + 1 < args.steps:
            evals.append({"step": step + 1, **evaluate(reference, task, args)})
    after = evaluate(reference, task, args)
    with torch.no_grad():
        theta = torch.cat([m.theta().flatten() for m in modules])
        moved = {"mean_abs": (theta - 1).abs().mean().item(), "max_abs": (theta - 1).abs().max().item()}
    return {
        "lr": lr, "steps": args.steps, "seq": args.seq, "batch": args.batch, "granularity": args.granularity,
        "step": args.step, "schedule": args.schedule, "warmup": args.warmup, "bf16": args.bf16,
        "trainable": theta.numel(),
        "before": before, "during": evals, "after": after, "theta_moved": moved,
        "seconds_per_step": sum(seconds) / max(1, len(seconds)), "losses": losses,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--text", help="plain text to train on")
    data.add_argument("--alpaca", help="instruction/input/output rows to train on")
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--granularity", choices=["group", "row"], default="group")
    parser.add_argument("--step", choices=["relative", "absolute"], default="relative")
    parser.add_argument("--schedule", choices=["constant", "linear", "cosine"], default="constant")
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--eval-text", help="text for a perplexity by llama-perplexity's protocol")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--holdout", type=int, default=128, help="rows of --alpaca that are only evaluated")
    parser.add_argument("--eval-every", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bf16 products everywhere: to survey settings, no yardstick")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    reference = Reference(args.model)
    reference.plain = {l.module_name: reference.model.get_submodule(l.module_name) for l in reference.linears}
    task = TextTask(reference, args) if args.text else ChatTask(reference, args)
    before = evaluate(reference, task, args)
    print(f"before: {before}", file=sys.stderr, flush=True)
    for lr in args.lr:
        print(json.dumps(run(reference, task, args, lr, before)), flush=True)


if __name__ == "__main__":
    main()
