#!/usr/bin/env python3
"""Every quantizer in numpy, from its definition, against `trimpot quantize`, number by number.

usage: check_quantizers.py TRIMPOT MAKE_TOY_MODEL [--only SUBSTRING] [--keep FOLDER]

Round to nearest and NF4 are f32 arithmetic without sums: every code, scale and zero must be equal (NF4 against
bitsandbytes too, if that is installed and 64 divides the width). The others sum, and f32 against f64 may fall on the
other side of a tie: a difference passes only where the f64 number lies within TIE of the tie, and the number of
differences and the largest such distance are printed. Each step is recomputed from trimpot's own results so far, so that
one such difference does not hide what comes after it:
  grid      squared errors of all 51 candidates in f64; another candidate's error must be within TIE of the least
  OPTQ      column by column with trimpot's codes; Hessians in f64 from inputs that trimpot's quantized layers give
  columns   sensitivities in f64; a column that was left out must be within TIE of one that was taken
Exit status 1 if anything else differs.
"""
import argparse
import sys
import tempfile

import numpy as np
import torch
from small import NF4, Model, Toy, dynamic_map, toy_text, toy_tokens

# f32 sums of up to 1024 terms have a relative error of about 1e-6; OPTQ's updates add up a few hundred of such.
TIE = 1e-4
SAMPLES, LENGTH = 16, 64
F32 = np.float32


def to_f16(x):
    return x.astype(np.float16).astype(F32)


def range_parameters(lo, hi, bits, zeros):
    """Scales and zeros or offsets of groups with the range [lo, hi], f32: src/quantize/rtn.h."""
    top, middle = F32(2**bits - 1), F32(2 ** (bits - 1))
    lo, hi = np.minimum(lo, F32(0)).astype(F32), np.maximum(hi, F32(0)).astype(F32)
    if zeros == "symmetric":
        return to_f16(np.maximum(hi, -lo) / (middle - F32(1))), np.full_like(lo, middle)
    s = to_f16((hi - lo) / top)
    if zeros == "float":
        return s, to_f16(lo)
    return s, np.clip(np.round(-lo / np.where(s == 0, F32(1), s)), F32(0), top)


def steps_of(w, s, z, bits, zeros):
    """What is rounded to the code, in w's precision."""
    safe = np.where(s == 0, 1, s).astype(w.dtype)
    return (w - z.astype(w.dtype)) / safe if zeros == "float" else w / safe


def codes_of(w, s, z, bits, zeros):
    shift = 0 if zeros == "float" else z.astype(w.dtype)
    return np.clip(np.round(steps_of(w, s, z, bits, zeros)) + shift, 0, 2**bits - 1)


def value_of(q, s, z, zeros):
    return q * s + z if zeros == "float" else (q - z) * s


class Tally:
    """Differences at ties, and everything else, which is an error."""

    def __init__(self):
        self.counts, self.errors = {}, []

    def note(self, what, count, total, distance):
        old = self.counts.get(what, (0, 0, 0.0))
        self.counts[what] = (old[0] + count, old[1] + total, max(old[2], distance))

    def equal(self, what, mine, theirs):
        count = int((np.asarray(mine) != np.asarray(theirs)).sum())
        self.note(what, count, np.size(mine), 0.0)
        if count:
            self.errors.append(f"{count} {what} differ")

    def near(self, what, differs, distance):
        """distance: to the tie, where they differ."""
        worst = float(distance[differs].max()) if differs.any() else 0.0
        self.note(what, int(differs.sum()), differs.size, worst)
        if not worst <= TIE:
            self.errors.append(f"{what}: a difference at a distance of {worst:.1e} from the tie")

    def report(self, name):
        text = ", ".join(
            f"{total} {what}" + (f" ({count} at ties, within {far:.0e})" if count else "")
            for what, (count, total, far) in self.counts.items()
        )
        print(f"{name:44} {text}{'  BAD: ' + '; '.join(self.errors[:4]) if self.errors else ''}", flush=True)
        return not self.errors


class Case:
    """A file of trimpot's and the unquantized one it was made of."""

    def __init__(self, toy, source, out, bits=4, group=128, zeros="integer", weak=0, act_order=False):
        self.source, self.out = Model(toy.path(source)), Model(toy.path(out))
        self.bits, self.group, self.zeros, self.weak, self.act_order = bits, group, zeros, weak, act_order
        self.tally = Tally()

    def each(self, columns):
        return columns if self.group == -1 else min(self.group, columns)

    def weights(self, index):
        """The unquantized layer with rows and channels in the order of the file, f32."""
        row, column = self.out.axes(index)
        return self.source.original(index)[np.ix_(row, column)].astype(F32)

    def columns(self, index):
        """Channels in the order of the columns: robust ones, then weak ones."""
        s = self.out.linears[index]
        return np.concatenate([s.robust, s.weak_columns])

    def stored(self, index):
        """Codes, scales and zeros or offsets as the file has them, f32."""
        s = self.out.linears[index]
        z = s.zeros if s.zeros is not None else s.offsets
        middle = np.full(s.scales.shape, F32(s.middle))
        return s.codes.astype(F32), s.scales.numpy().astype(F32), middle if z is None else z.numpy().astype(F32)

    def group_slices(self, columns):
        each = self.each(columns)
        return [slice(at, min(at + each, columns)) for at in range(0, columns, each)]

    def check_shapes(self):
        for index, s in enumerate(self.out.linears):
            assert s.kind == "grouped" and s.bits == self.bits and len(s.weak_columns) == self.weak
            rows, columns = self.source.sizes[index % 7]
            assert s.groups == len(self.group_slices(columns - self.weak)) and s.rows == rows

    def check_min_max(self, index, w):
        """Parameters of the columns w, all in f32: equal."""
        _, scales, zeros = self.stored(index)
        for g, at in enumerate(self.group_slices(w.shape[1])):
            s, z = range_parameters(w[:, at].min(1), w[:, at].max(1), self.bits, self.zeros)
            self.tally.equal("scales", s, scales[:, g])
            self.tally.equal("zeros", z, zeros[:, g])

    def check_rounding(self, index, w):
        codes, scales, zeros = self.stored(index)
        for g, at in enumerate(self.group_slices(w.shape[1])):
            mine = codes_of(w[:, at], scales[:, g, None], zeros[:, g, None], self.bits, self.zeros)
            self.tally.equal("codes", mine, codes[:, at])

    def grid_candidates(self, part):
        """Squared errors, scales and zeros of all 51 factors, [51, rows]."""
        lo, hi = np.minimum(part.min(1), 0).astype(F32), np.maximum(part.max(1), 0).astype(F32)
        errors, scales, zeros = [], [], []
        for step in range(51):
            p = F32(F32(100 - step) / F32(100))
            s, z = range_parameters(p * lo, p * hi, self.bits, self.zeros)
            q = codes_of(part, s[:, None], z[:, None], self.bits, self.zeros)
            wrong = value_of(q.astype(np.float64), s[:, None], z[:, None], self.zeros) - part
            errors.append((wrong**2).sum(1))
            scales.append(s)
            zeros.append(z)
        return np.array(errors), np.array(scales), np.array(zeros)

    def check_grid(self, index, w):
        _, scales, zeros = self.stored(index)
        for g, at in enumerate(self.group_slices(w.shape[1])):
            part = w[:, at]
            errors, s, z = self.grid_candidates(part)
            best = errors.argmin(0)
            rows = np.arange(len(part))
            same = (s == scales[:, g]) & (z == zeros[:, g])  # which candidates are trimpot's
            if not same.any(0).all():
                self.tally.errors.append("parameters that are no candidate of the grid")
                continue
            theirs = np.where(same, errors, np.inf).min(0)
            least = errors[best, rows]
            self.tally.near("grid choices", theirs != least, np.abs(theirs - least) / np.maximum(least, 1e-30))

    def check_found(self, part, scales, zeros):
        """A group's parameters found on the way: f16's rounding and a zero next to a tie may differ."""
        lo, hi = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        top, middle = 2**self.bits - 1, 2 ** (self.bits - 1)
        exact = np.maximum(hi, -lo) / (middle - 1) if self.zeros == "symmetric" else (hi - lo) / top

        def halves(what, exact, theirs):
            unit = np.spacing(np.abs(theirs).astype(np.float16)).astype(np.float64)
            tie = np.abs(np.abs(exact - theirs) / unit - 0.5)
            self.tally.near(what, to_f16(exact) != theirs, tie * unit / np.abs(theirs))

        halves("scales", exact, scales)
        if self.zeros == "float":
            halves("offsets", lo, zeros)
        if self.zeros == "integer":
            steps = -lo / scales
            mine = np.clip(np.round(steps), 0, top)
            self.tally.near("zeros", mine != zeros, np.abs(np.abs(steps - zeros) - 0.5))

    def check_optq(self, index, w, hessian, dynamic, damping=0.01):
        """w [rows, columns] f32 with weak columns last; hessian f64 in the same order."""
        s = self.out.linears[index]
        codes, scales, zeros = self.stored(index)
        robust, columns = s.width, w.shape[1]
        diagonal = np.diag(hessian)
        assert (diagonal > 0).all()
        order = np.arange(columns)
        if self.act_order:
            order[:robust] = np.argsort(-diagonal[:robust], kind="stable")
        h = (hessian + np.eye(columns) * damping * diagonal.mean())[np.ix_(order, order)]
        upper = np.linalg.cholesky(np.linalg.inv(h)).T  # H^-1 = U^T U
        w = w.astype(np.float64)[:, order]
        each = self.each(robust)
        for position in range(robust):
            column = order[position]
            g = column // each
            if dynamic and position % each == 0:
                part = w[:, position : min(position + each, robust)]
                self.check_found(part, scales[:, g], zeros[:, g])
            sc, z, q = scales[:, g], zeros[:, g], codes[:, column]
            mine = codes_of(w[:, position], sc, z, self.bits, self.zeros)
            steps = steps_of(w[:, position], sc, z, self.bits, self.zeros) + (0 if self.zeros == "float" else z)
            self.tally.near("codes", mine != q, np.abs(np.abs(steps - q) - 0.5))
            error = (w[:, position] - value_of(q.astype(np.float64), sc, z, self.zeros)) / upper[position, position]
            w[:, position + 1 :] -= error[:, None] * upper[position, position + 1 :]
        if self.weak:
            mine, theirs = w[:, robust:], s.weak.numpy()
            ulp = np.spacing(np.abs(theirs).astype(np.float16)).astype(np.float64)
            # Half a unit is rounding; updates of a few hundred f32 terms are off by as much as the codes' distances.
            off = np.abs(mine - theirs) - 0.5 * ulp
            self.tally.near("weak values", off > 0, off / np.abs(mine).max())

    def take_best(self, what, values, chosen):
        """`chosen` must be the highest of `values`."""
        left = np.setdiff1d(np.arange(len(values)), chosen)
        gap = values[left].max() - values[chosen].min()
        best = np.argsort(-values, kind="stable")[: len(chosen)]
        differs = ~np.isin(chosen, best)
        self.tally.near(what, differs, np.full(len(chosen), gap / abs(values[chosen].min())))

    def column_costs(self, index, diagonal, search):
        """lambda_j ||dW_j||^2, in the order of the file; the groups are cut in the original order."""
        row, column = self.out.axes(index)
        w = self.source.original(index).astype(F32)
        wrong = np.zeros(w.shape[1])
        for at in self.group_slices(w.shape[1]):
            s, z = range_parameters(w[:, at].min(1), w[:, at].max(1), self.bits, self.zeros)
            if search == "grid":
                errors, scales, zeros = self.grid_candidates(w[:, at])
                best, rows = errors.argmin(0), np.arange(len(w))
                s, z = scales[best, rows], zeros[best, rows]
            q = codes_of(w[:, at], s[:, None], z[:, None], self.bits, self.zeros)
            value = value_of(q.astype(F32), s[:, None], z[:, None], self.zeros).astype(F32)
            wrong[at] = ((w[:, at].astype(np.float64) - value) ** 2).sum(0)
        return diagonal * wrong[column]


def inputs_of(seen):
    """By kind: q, k, v, o, gate, up, down."""
    a, o, b, inner = seen
    return [a, a, a, o, b, b, inner]


def walk(case, windows, visit):
    """visit(index, H) with H of the inputs that everything before the layer, already quantized, gives it."""
    x = case.out.embedding[windows]
    for layer in range(case.out.layers):
        seen = []
        x = case.out.layer(layer, x, lambda i, y: y @ case.out.linears[i].weight().T, seen)
        for kind, y in enumerate(inputs_of(seen)):
            y = y.flatten(0, 1)
            visit(7 * layer + kind, (2 / len(y) * y.T @ y).numpy())


def check_global_columns(case, windows):
    """QEFT's algorithm 1 on the unquantized model: one vote of attention, one of feed-forward in each layer."""
    model, sums = case.source, 0
    x = model.embedding[windows]
    for layer in range(model.layers):
        seen = []
        x = model.layer(layer, x, lambda i, y: y @ model.linears[i].weight().T, seen)
        for y in (seen[0], seen[2]):
            diagonal = y.flatten(0, 1).pow(2).mean(0).numpy()
            top = np.argsort(-diagonal, kind="stable")[: case.weak]
            votes = np.zeros(len(diagonal))
            votes[top] = diagonal[top] / diagonal.mean()
            sums = sums + votes
    columns = [case.out.axes(i)[1][case.out.linears[i].weak_columns] for i in range(len(case.out.linears)) if i % 7 not in (3, 6)]
    for c in columns:
        case.tally.equal("shared columns", c, columns[0])
    case.take_best("global columns", sums, columns[0])


def run_calibrated(case, windows, search, reconstruct, selection):
    """search: minmax or grid; reconstruct: rtn or optq; selection: none, layer or global."""
    case.check_shapes()

    def visit(index, hessian):
        s = case.out.linears[index]
        if selection == "layer" or (selection == "global" and index % 7 in (3, 6)):
            case.take_best("weak columns", case.column_costs(index, np.diag(hessian), search), s.weak_columns)
        columns = case.columns(index)
        w = case.weights(index)[:, columns]
        dynamic = search == "minmax" and reconstruct == "optq" and not case.act_order
        if search == "grid":
            case.check_grid(index, w[:, : s.width])
        elif not dynamic:
            case.check_min_max(index, w[:, : s.width])
        if reconstruct == "optq":
            case.check_optq(index, w, hessian[np.ix_(columns, columns)], dynamic)
        else:
            case.check_rounding(index, w[:, : s.width])
            if case.weak:
                case.tally.equal("weak values", to_f16(w[:, s.width :]), s.weak.numpy())

    if selection == "global":
        check_global_columns(case, windows)
    walk(case, windows, visit)


def check_nf4(case):
    """Own definition, and bitsandbytes where its blocks are the same."""
    tally = case.tally
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError:
        quantize_4bit = None
        print("bitsandbytes is not installed: NF4 is checked by its definition only")
    levels, nested = NF4, dynamic_map()
    middle = (levels[:-1] + levels[1:]) / F32(2)
    nested_middle = (nested[:-1] + nested[1:]) / F32(2)
    for index, s in enumerate(case.out.linears):
        t, w = case.out.tensors, case.weights(index)
        rows, columns = w.shape
        count = (columns + 63) // 64
        padded = np.zeros((rows, count * 64), F32)
        padded[:, :columns] = w
        blocks = padded.reshape(rows, count, 64)
        absmax = np.abs(blocks).max(2)
        share = blocks * (F32(1) / absmax[..., None])
        codes = np.searchsorted(middle, share.astype(F32), side="left").reshape(rows, -1)[:, :columns]
        tally.equal("codes", codes, s.codes)
        offset = t[f"{s.name}.absmax_offset"][0]
        scales = t[f"{s.name}.absmax_scales"]
        tally.near("offsets", np.array([F32(absmax.astype(np.float64).mean()) != offset]),
                   np.array([abs(absmax.astype(np.float64).mean() / offset - 1)]))  # fmt: skip
        places = case.out.places(s.name, rows)
        of = np.arange(absmax.size).reshape(absmax.shape)[places] // 256
        less = absmax - offset
        tally.equal("scales", [np.abs(less[of == b]).max() for b in range(of.max() + 1)], scales)
        share = (less * (F32(1) / scales)[of]).astype(F32)
        mine = np.searchsorted(nested_middle, np.clip(share, -1, 1), side="left")
        tally.equal("magnitudes", mine, t[f"{s.name}.absmax"].view(np.uint8))
        if quantize_4bit is None or columns % 64:
            continue
        packed, state = quantize_4bit(torch.from_numpy(w[np.argsort(places)]), blocksize=64, compress_statistics=True, quant_type="nf4")
        packed = packed.flatten().numpy()
        tally.equal("codes of bitsandbytes", np.stack([packed >> 4, packed & 15], 1).reshape(w.shape)[places], s.codes)
        # Its mean is a sum in f32, which may move the last bit of the offset and so the scales.
        theirs = state.state2.absmax.numpy()
        tally.near("scales of bitsandbytes", theirs != scales, np.abs(theirs / scales - 1))
        theirs = state.absmax.numpy().reshape(absmax.shape)[places]
        # Its CPU library differs from its own definition within 2^-16 of a tie (version 0.50).
        differs = theirs != t[f"{s.name}.absmax"].view(np.uint8)
        distance = np.abs(share[..., None] - nested_middle).min(-1)
        tally.near("magnitudes of bitsandbytes", differs, distance)


def cases(toy):
    """(name, function that returns a Tally)"""
    toy.model("f16.gguf", "F16")
    toy.model("wide.gguf", "wide")
    text = toy_text(SAMPLES * LENGTH + 2000, seed=1)
    toy.write("text.txt", text)
    windows = toy_tokens(text)[: SAMPLES * LENGTH].reshape(SAMPLES, LENGTH)
    calibration = ("--calib", "text.txt", "--calib-samples", SAMPLES, "--calib-length", LENGTH)

    def made(source, method, *args, bits=4, group=None, zeros="integer", weak=0, act_order=False):
        group_args = () if group is None else ("--group-size", group)
        format_args = ("--bits", bits, "--zeros", zeros, *group_args) if method not in ("nf4", "int8") else ()
        weak_args = ("--weak-columns", weak) if weak else ()
        toy.quantize(source, "out.gguf", "--method", method, *format_args, *weak_args, *args,
                     *(["--act-order"] if act_order else []))  # fmt: skip
        return Case(toy, source, "out.gguf", bits, group, zeros, weak, act_order)

    def rounding(source, grid, **how):
        case = made(source, "rtn", *(["--search", "grid"] if grid else []), **how)
        case.check_shapes()
        for index in range(len(case.out.linears)):
            w = case.weights(index)
            (case.check_grid if grid else case.check_min_max)(index, w)
            case.check_rounding(index, w)
        return case.tally

    def calibrated(source, method, search, reconstruct, selection, *args, **how):
        case = made(source, method, *calibration, *args, **how)
        run_calibrated(case, windows, search, reconstruct, selection)
        return case.tally

    def nf4(source):
        case = made(source, "nf4")
        check_nf4(case)
        return case.tally

    def int8():
        case = made("wide.gguf", "int8", bits=8, group=-1, zeros="symmetric")
        case.check_shapes()
        for index in range(len(case.out.linears)):
            case.check_min_max(index, case.weights(index))
            case.check_rounding(index, case.weights(index))
        return case.tally

    def reordered(head):
        """Offline reordering changes nothing but the order of sums."""
        tally, perplexity = Tally(), []
        files = []
        for order in ("offline", "online"):
            files.append(Model(toy.path(toy.quantize(
                "wide.gguf", f"{order}.gguf", "--method", "qeft", "--weak-columns", 8, "--group-size", 64, "--reorder", order,
                "--head-type", head, *calibration))))  # fmt: skip
            report = toy.run_json("eval", "ppl", "-m", f"{order}.gguf", "-f", "text.txt", "-c", 64, "--precision", "f32")
            perplexity.append(report["perplexity"])
        for index in range(len(files[0].linears)):
            tally.equal("weights", files[0].original(index), files[1].original(index))
        ids = windows[:4]
        mine = [f.logits(ids) for f in files]
        tally.near("logits, f64", np.array([True]), np.array([float((mine[0] - mine[1]).abs().max())]))
        # Of trimpot: f32 logits are off by 1e-6 or so, and the mean of their losses by less.
        tally.near("perplexity, f32", np.array([True]), np.array([abs(perplexity[0] / perplexity[1] - 1)]))
        scored = []
        for at in range(0, len(toy_tokens(text)) - LENGTH + 1, LENGTH):
            window = toy_tokens(text)[at : at + LENGTH]
            logits = files[0].logits(window[None])[0, LENGTH // 2 : -1]
            scored.append(torch.nn.functional.cross_entropy(logits, window[LENGTH // 2 + 1 :]).item())
        tally.near("perplexity, PyTorch", np.array([True]), np.array([abs(perplexity[0] / np.exp(np.mean(scored)) - 1)]))
        return tally

    for source in ("f16.gguf", "wide.gguf"):
        for bits in (3, 4, 8):
            for group in (-1, 32, 64, 128):
                for zeros in ("integer", "float", "symmetric"):
                    yield (f"rtn {source[:-5]} {bits} bits g{group} {zeros}",
                           lambda: rounding(source, False, bits=bits, group=group, zeros=zeros))  # fmt: skip
    for bits, group, zeros in ((4, 128, "integer"), (3, 64, "integer"), (3, -1, "integer"), (4, 32, "float"),
                               (3, 128, "symmetric"), (8, 64, "integer")):  # fmt: skip
        yield f"grid wide {bits} bits g{group} {zeros}", lambda: rounding("wide.gguf", True, bits=bits, group=group, zeros=zeros)
    yield "int8 wide", int8
    yield "nf4 f16", lambda: nf4("f16.gguf")
    yield "nf4 wide", lambda: nf4("wide.gguf")
    for bits, group, zeros in ((4, 128, "integer"), (3, -1, "integer"), (3, 64, "integer"), (4, 64, "float"),
                               (4, 32, "symmetric")):  # fmt: skip
        yield (f"optq wide {bits} bits g{group} {zeros}",
               lambda: calibrated("wide.gguf", "optq", "minmax", "optq", "none", bits=bits, group=group, zeros=zeros))  # fmt: skip
    yield ("optq wide act-order",
           lambda: calibrated("wide.gguf", "optq", "minmax", "optq", "none", group=64, act_order=True))  # fmt: skip
    for bits in (3, 4):
        yield (f"owq wide {bits} bits k 8",
               lambda: calibrated("wide.gguf", "owq", "grid", "optq", "layer", bits=bits, group=-1, weak=8))  # fmt: skip
        for group, weak in ((64, 8), (128, 13)):
            for order in ("offline", "online"):
                yield (f"qeft wide {bits} bits g{group} k {weak} {order}",
                       lambda: calibrated("wide.gguf", "qeft", "grid", "optq", "global", "--reorder", order,
                                          bits=bits, group=group, weak=weak))  # fmt: skip
    yield ("qeft wide minmax rtn",
           lambda: calibrated("wide.gguf", "qeft", "minmax", "rtn", "global", "--search", "minmax", "--reconstruct", "rtn",
                              group=64, weak=8))  # fmt: skip
    for head in ("keep", "f16"):
        yield f"reordering, head {head}", lambda: reordered(head)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trimpot")
    parser.add_argument("make_toy_model")
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", help="work in this folder and leave the files there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        toy = Toy(args.trimpot, args.make_toy_model, args.keep or temporary)
        for name, run in cases(toy):
            if args.only in name:
                good = run().report(name) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
