"""Makes golden.inc: AdamW and schedule values from torch and transformers.

usage: python make_golden.py > golden.inc        (needs torch and transformers)
"""
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

STEPS, SIZE = 6, 5


def start(i):
    return 0.5 - 0.25 * i


def gradient(step, i):
    """An exact f32 number, so that C++ can make the same one."""
    return ((step * 7 + i * 3) % 11 - 5) / 64.0


print("// Made by make_golden.py; do not edit.")
print("struct AdamWGolden {\n  double beta1, beta2, epsilon, weight_decay;")
print(f"  float values[{STEPS}][{SIZE}];  // after each step\n}};")
print("constexpr AdamWGolden kAdamWGolden[] = {")
for beta1, beta2, eps, decay in ((0.9, 0.999, 1e-8, 0.0), (0.8, 0.95, 1e-6, 0.1)):
    parameter = torch.nn.Parameter(torch.tensor([start(i) for i in range(SIZE)]))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(beta1, beta2), eps=eps,
                                  weight_decay=decay, foreach=False, fused=False)
    print(f"    {{{beta1}, {beta2}, {eps}, {decay},\n     {{")
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / step  # the C++ test changes the rate the same way
        parameter.grad = torch.tensor([gradient(step, i) for i in range(SIZE)])
        optimizer.step()
        print("         {" + ", ".join(f"{float(x):.9g}f" for x in parameter.detach()) + "},")
    print("     }},")
print("};")

print("struct ScheduleGolden {\n  const char* kind;\n  unsigned warmup, total, step;\n  double factor;\n};")
print("constexpr ScheduleGolden kScheduleGolden[] = {")
for kind, make in (("linear", get_linear_schedule_with_warmup),
                   ("cosine", get_cosine_schedule_with_warmup)):
    for warmup, total in ((0, 10), (4, 20), (5, 5)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        function = make(optimizer, warmup, total).lr_lambdas[0]
        for step in sorted({0, 1, warmup, total // 2, total - 1, total}):
            print(f'    {{"{kind}", {warmup}, {total}, {step}, {function(step)!r}}},')
print("};")
