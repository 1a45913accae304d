"""The tuning methods in PyTorch, in f64, and the loop that trains them: what check_methods.py holds trimpot to."""
import numpy as np
import torch
from safetensors.numpy import load_file
from small import MODULES, Model, f64

ZERO_RATE = 6.0  # zero-points take this multiple of the learning rate (src/tune/scales.cc)


class Through(torch.autograd.Function):
    """f(x) forward, the gradient passes straight through."""

    @staticmethod
    def forward(ctx, x, f):
        return f(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def f16(x):
    return Through.apply(x, lambda v: v.float().half().double())  # the masters are f32


class Learned:
    """One tensor of parameters: [rows, columns] in the file's order; `rate` multiplies the learning rate."""

    def __init__(self, start, rate=1.0):
        self.start, self.rate = start, rate
        self.value = None


class Method:
    """What learns, as differentiable functions of Learned values; subclasses say how.

    weight(index) and apply(index, x): the linear layer. values(): the committed values, that is, what a file will hold;
    start_values(): the same before the first step; read(path): the same from trimpot's output.
    `learned` is in the order of trimpot's checkpoint; a start of None is random and read from the probe.
    """

    def __init__(self, model, targets):
        self.model, self.targets = model, [i for i in range(len(model.linears)) if MODULES[i % 7] in targets]
        self.learned, self.of = [], {}
        self.untouched = True  # until the first step

    def add(self, index, part, start, rate=1.0):
        self.of[index, part] = Learned(start, rate)
        self.learned.append(self.of[index, part])

    def value(self, index, part):
        return self.of[index, part].value

    def begin(self):
        """Before each forward pass: weights that do not depend on the input."""
        self.weights = {i: self.weight(i) for i in range(len(self.model.linears))}

    def weight(self, index):
        return self.model.linears[index].weight()

    def apply(self, index, x):
        return x @ self.weights[index].T


class Scales(Method):
    def __init__(self, model, targets, scales, zeros, per_row=False):
        super().__init__(model, targets)
        for index in self.targets:
            s = model.linears[index]
            shape = (s.rows, 1 if per_row else s.groups)
            assert not (s.scales == 0).any()
            if scales:
                self.add(index, "scale", torch.ones(shape, dtype=torch.float64))
            if zeros and (s.zeros is not None or s.offsets is not None):
                self.add(index, "zero", torch.zeros(shape, dtype=torch.float64), ZERO_RATE)

    def parts(self, index):
        """Committed scales and zeros or offsets."""
        s = self.model.linears[index]
        scales, zeros, offsets = s.scales, s.zeros, s.offsets
        if (index, "scale") in self.of:
            scales = f16(s.scales * self.value(index, "scale"))
            if offsets is not None:
                offsets = f16(scales * (s.offsets / s.scales))
        if (index, "zero") in self.of:
            start = s.zeros if s.zeros is not None else -s.offsets / s.scales
            moved = f16(start + self.value(index, "zero"))
            if s.zeros is not None:
                zeros = moved
            else:
                offsets = f16(-scales * moved)
        if self.untouched and offsets is not None:  # nothing is committed before the first step
            offsets = Through.apply(offsets, lambda _: s.offsets.clone())
        return scales, zeros, offsets

    def weight(self, index):
        if index not in self.targets:
            return super().weight(index)
        scales, zeros, offsets = self.parts(index)
        return self.model.linears[index].weight(
            self.model.linears[index].robust_weight(scales=scales, zeros=zeros, offsets=offsets)
        )

    def start_values(self):
        stored = [self.model.linears[i] for i in self.targets]
        return [p for s in stored for p in (s.scales, s.zeros, s.offsets) if p is not None]

    def values(self):
        return [p for i in self.targets for p in self.parts(i) if p is not None]

    def read(self, path):
        tuned = Model(path)
        return [p for i in self.targets for s in [tuned.linears[i]] for p in (s.scales, s.zeros, s.offsets) if p is not None]


class WeakColumns(Method):
    """Of the file (f16), or with `columns` differences beside the codes (f32)."""

    def __init__(self, model, targets, columns=None):
        super().__init__(model, targets)
        self.columns = columns
        for index in self.targets:
            s = model.linears[index]
            start = s.weak if columns is None else torch.zeros(s.rows, len(columns[index]), dtype=torch.float64)
            self.add(index, "weak", start)

    def committed(self, index):
        value = self.value(index, "weak")
        return f16(value) if self.columns is None else value

    def weight(self, index):
        s = self.model.linears[index]
        if index not in self.targets:
            return s.weight()
        if self.columns is None:
            return s.weight(weak=self.committed(index))
        return s.weight().index_add(1, torch.from_numpy(self.columns[index]), self.committed(index))

    def start_values(self):
        return [l.start for l in self.learned]

    def values(self):
        return [self.committed(i) for i in self.targets]

    def read(self, path):
        if path.endswith(".gguf"):
            tuned = Model(path)
            return [tuned.linears[i].weak for i in self.targets]
        tensors = load_file(path)
        return [f64(tensors[f"{self.model.linears[i].name}.weight.weak"]) for i in self.targets]


class LowRank(Method):
    def __init__(self, model, targets, rank, alpha, rslora=False, pooled=False):
        super().__init__(model, targets)
        self.pooled, self.rank = pooled, rank
        self.scale = alpha / (rank**0.5 if rslora else rank)
        for index in self.targets:
            s = model.linears[index]
            inputs = s.groups if pooled else s.columns
            self.add(index, "a", None)
            self.of[index, "a"].shape = (rank, inputs)
            self.add(index, "b", torch.zeros(s.rows, rank, dtype=torch.float64))

    def apply(self, index, x):
        y = super().apply(index, x)
        if index not in self.targets:
            return y
        if self.pooled:  # sums of the inputs of a group
            s = self.model.linears[index]
            x = torch.zeros(*x.shape[:-1], s.groups, dtype=torch.float64).index_add(-1, s.group, x)
        return y + self.scale * (x @ self.value(index, "a").T) @ self.value(index, "b").T

    def start_values(self):
        return [l.start for l in self.learned]

    def values(self):
        return [l.value for l in self.learned]

    def read(self, path):
        tensors, found = load_file(path), []
        for i in self.targets:
            rows, columns = self.model.axes(i)
            a, b = (tensors[f"{self.model.linears[i].name}.weight.lora_{p}"] for p in "ab")
            found += [f64(a if self.pooled else a[:, columns]), f64(b[rows])]  # adapters are in the original order
        return found


class Whole(Method):
    """All weights: `commit` rounds them to what the forward pass sees."""

    def __init__(self, model, targets, commit):
        super().__init__(model, targets)
        self.commit = commit
        for index in self.targets:
            self.add(index, "w", model.linears[index].weight().clone())

    def weight(self, index):
        return self.commit(self.value(index, "w")) if index in self.targets else super().weight(index)

    def start_values(self):
        return [self.commit(l.start) for l in self.learned]

    def values(self):
        return [self.weight(i) for i in self.targets]

    def read(self, path):
        tuned = Model(path)
        return [tuned.linears[i].weight() for i in self.targets]


def fake_quantize(bits, each):
    """Rounds to nearest in f32 as rtn.h defines it (integer zeros); the gradient passes straight through."""

    def rounded(w):
        w32, out = w.float(), torch.empty_like(w)
        top = float(2**bits - 1)
        for at in range(0, w.shape[1], each):
            g = w32[:, at : at + each]
            lo, hi = g.amin(1, keepdim=True).clamp(max=0), g.amax(1, keepdim=True).clamp(min=0)
            s = ((hi - lo) / top).half().float()
            z = torch.round(-lo / s).clamp(0, top)
            out[:, at : at + each] = s.double() * (torch.clamp(torch.round(g / s) + z, 0, top) - z).double()
        return out

    return lambda w: Through.apply(w, rounded)


def loss_of(method, windows, teacher, kd_weight):
    """Mean over the predictions of a step."""
    method.begin()
    logits = method.model.logits(windows, method.apply)[:, :-1].flatten(0, 1)
    loss = 0
    if teacher is None or kd_weight < 1:
        loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
    if teacher is None:
        return loss
    with torch.no_grad():
        wanted = teacher.logits(windows)[:, :-1].flatten(0, 1).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="batchmean")
    return (1 - kd_weight) * loss + kd_weight * divergence


def train(method, batches, rate, clip, teacher, kd_weight):
    """The loss and gradient norm of each batch, [rows, tokens], the values afterwards and the first gradient."""
    for l in method.learned:
        l.value = torch.nn.Parameter(l.start.clone())
    optimizer = torch.optim.AdamW(
        [{"params": [l.value], "lr": rate * l.rate} for l in method.learned], betas=(0.9, 0.999), eps=1e-8, weight_decay=0
    )
    losses, norms = [], []
    method.untouched = True
    values = [l.value for l in method.learned]
    for step, windows in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_of(method, windows, teacher, kd_weight)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(values, clip or float("inf")).item())
        if step == 0:
            gradients = [v.grad.clone() / (min(1, clip / (norms[0] + 1e-6)) if clip else 1) for v in values]
        optimizer.step()
        method.untouched = False
    method.begin()
    return np.array(losses), np.array(norms), [v.detach() for v in method.values()], gradients
