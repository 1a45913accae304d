#!/usr/bin/env python3
"""trimpot and its peers in turns, in one run, on the same file and the same number of tokens: a table with ratios.

usage: run.py TRIMPOT MODEL.gguf [options]
  --llama DIR         folder with llama.cpp's llama-bench (build_llama_cpp.sh)
  --ik DIR            folder with ik_llama.cpp's llama-bench (build_ik_llama_cpp.sh)
  --peer-file F.gguf  more files for the peers (the same model in another 4-bit format); the fastest one counts too
  --own-file F.gguf   more files for trimpot's decode (made by trimpot quantize)
  --hf DIR            the model as a Hugging Face folder: tuning steps of torch + peft (torch_step.py)
  --openvino FILE.xml OpenVINO's prefill of that folder's model; converted to int4 first if FILE is not there
  --finetune F32.gguf the model in f32, for full fine-tuning by llama-finetune of --llama's folder: a minute a round
  --tune METHOD=FILE  trimpot's tuning steps, several; default: peqa and peqa-both on MODEL
  --threads 2  --rounds 5  --compile (torch.compile too: minutes)  --only decode,prefill,tune  -o REPORT.md

A machine that others use changes from minute to minute: each round runs every program once, and ratios are medians over
rounds of ratios within a round, and every other round runs backwards. ik_llama.cpp runs with -rtr 1 (its repacked
formats) and without; the better one counts.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def output(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{' '.join(map(str, command))}\n  {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return done.stdout


class Runs:
    """Named measurements; each gives one number per round, higher is better, or None."""

    def __init__(self):
        self.programs = []  # (name, ours, function)

    def add(self, name, ours, function):
        self.programs.append((name, ours, function))

    def measure(self, rounds, progress):
        results = {name: [] for name, _, _ in self.programs}
        for index in range(rounds):
            # Back and forth: what runs after a pause runs some 2 % faster than what follows it.
            for name, _, function in self.programs[:: 1 if index % 2 == 0 else -1]:
                progress(f"round {index + 1}/{rounds}: {name}")
                results[name].append(function())
        return results


def trimpot_rate(options, what, model, *extra):
    def run():
        text = output([options.trimpot, "bench", what, "-m", model, "-t", options.threads, "--json", *extra])
        if text is None:
            return None
        result = json.loads(text)
        options.details[(what, str(model), extra)] = result
        return result["tokens_per_second"]

    return run


def llama_rate(options, folder, model, prompt, predict, *extra):
    def run():
        command = [Path(folder) / "llama-bench", "-m", model, "-p", prompt, "-n", predict, "-t", options.threads, "-r", 3, "-o", "json", *extra]
        text = output(command)
        if text is None:
            return None
        return max((row["avg_ts"] for row in json.loads(text[text.index("["):])), default=None)

    return run


def python_rate(options, script, *arguments):
    """A script of this folder, run by the Python that runs this one; its last line is a JSON object."""
    def run():
        text = output([sys.executable, Path(__file__).with_name(script), options.hf, *arguments, "--threads", options.threads])
        return None if text is None else json.loads(text.strip().splitlines()[-1])["tokens_per_second"]

    return run


def cpu_has(*features):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return re.search(rf"\b({'|'.join(features)})\b", flags) is not None


def fastest_dtype():
    """Torch's bf16 without instructions for it is slower than f32: over a minute a step on AVX2, where f32 takes seconds."""
    return "bf16" if cpu_has("avx512_bf16", "amx_bf16") else "f32"


FINETUNE_SECONDS = 300


def finetune_rate(options):
    """llama.cpp's own training example, on steps of one sequence of 512 tokens; it reads the time off its progress line."""
    def run():
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "text.txt")
            text.write_text("The quick brown fox jumps over the lazy dog near the river bank. " * 600)  # some 9,000 tokens
            command = [Path(options.llama) / "llama-finetune", "-m", options.finetune, "-f", text, "-c", 512, "-b", 512, "-ub", 512,
                       "-t", options.threads, "-tb", options.threads, "--epochs", 1, "-o", Path(folder, "tuned.gguf")]
            with Path(folder, "log").open("w+") as log:
                try:
                    done = subprocess.run([str(part) for part in command], stdout=log, stderr=log, timeout=FINETUNE_SECONDS, check=False).returncode
                except subprocess.TimeoutExpired:
                    done = 0  # the steps so far give the rate
                log.seek(0)
                lines = log.read().replace("\r", "\n")
        steps = re.findall(r"train: .*data=(\d+)/\d+ .*t=(\d+):(\d+):(\d+)", lines)
        if done != 0 or not steps:
            print(f"{' '.join(map(str, command))}\n  {lines.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        count, hours, minutes, seconds = map(int, steps[-1])
        return count * 512 / (hours * 3600 + minutes * 60 + seconds)

    return run


def generation(options, what):
    runs = Runs()
    size = ["-n", "128"] if what == "decode" else ["-p", "512"]
    counts = (0, 128) if what == "decode" else (512, 0)
    for model in [options.model, *(options.own_file if what == "decode" else [])]:
        runs.add(f"trimpot, {model.name}", True, trimpot_rate(options, what, model, *size))
    if what == "prefill" and cpu_has("amx_bf16") and os.environ.get("TRIMPOT_ISA", "amx") == "amx":
        runs.add(f"trimpot --precision bf16, {options.model.name}", True, trimpot_rate(options, what, options.model, *size, "--precision", "bf16"))
    for model in [options.model, *options.peer_file]:
        if options.llama:
            runs.add(f"llama.cpp, {model.name}", False, llama_rate(options, options.llama, model, *counts))
        if options.ik:
            runs.add(f"ik_llama.cpp, {model.name}", False, llama_rate(options, options.ik, model, *counts))
            runs.add(f"ik_llama.cpp -rtr 1, {model.name}", False, llama_rate(options, options.ik, model, *counts, "-rtr", 1))
    if options.openvino and what == "prefill":
        runs.add("OpenVINO, int4 g64", False, python_rate(options, "openvino_prefill.py", "--ir", options.openvino))
    return runs


def tuning(options):
    runs = Runs()
    for choice in options.tune or [f"peqa={options.model}", f"peqa-both={options.model}"]:
        method, _, model = choice.partition("=")
        runs.add(f"trimpot {method}, {Path(model).name}", True,
                 trimpot_rate(options, "tune", model, "--method", method, "--max-seq-length", "512"))
    if options.finetune:
        runs.add("llama.cpp finetune, f32", False, finetune_rate(options))
    if options.hf:
        dtype = fastest_dtype()
        runs.add(f"torch + peft, LoRA r=64, {dtype}", False, python_rate(options, "torch_step.py", "lora", "--dtype", dtype))
        if options.compile:
            runs.add("the same, compiled", False, python_rate(options, "torch_step.py", "lora", "--dtype", dtype, "--compile"))
        runs.add(f"bitsandbytes QLoRA r=64, {dtype}, checkpointing", False,
                 python_rate(options, "torch_step.py", "qlora", "--dtype", dtype, "--checkpointing"))
    return runs


def table(title, runs, results, threads):
    """Rates, and every program of ours over every peer."""
    ours = [name for name, own, _ in runs.programs if own]
    lines = [f"## {title}, {threads} threads", "",
             "| | tokens/s | least | most |" + "".join(f" {name} is x times |" for name in ours),
             "|---|---|---|---|" + "---|" * len(ours)]
    for name, own, _ in runs.programs:
        rates = [rate for rate in results[name] if rate]
        if not rates:
            lines.append(f"| {name} | failed | | |" + " |" * len(ours))
            continue
        cells = ""
        for our in ours:
            pairs = [a / b for a, b in zip(results[our], results[name]) if a and b]
            cells += f" {statistics.median(pairs):.2f} |" if pairs and our != name else " |"
        lines.append(f"| {name} | {statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} |{cells}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trimpot", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--ik", type=Path)
    parser.add_argument("--peer-file", type=Path, action="append", default=[])
    parser.add_argument("--own-file", type=Path, action="append", default=[])
    parser.add_argument("--hf", type=Path)
    parser.add_argument("--openvino", type=Path)
    parser.add_argument("--finetune", type=Path)
    parser.add_argument("--tune", action="append", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", default="decode,prefill,tune")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.openvino and not options.hf:
        parser.error("--openvino needs --hf")
    if options.finetune and not options.llama:
        parser.error("--finetune needs --llama")
    options.trimpot = options.trimpot.resolve()  # a bare name would be looked for in PATH
    options.details = {}
    wanted = options.only.split(",")
    text = ""
    for what, title in (("decode", "Decode of 128 tokens"), ("prefill", "Prefill of 512 tokens"), ("tune", "Tuning step of 512 tokens")):
        if what not in wanted:
            continue
        runs = tuning(options) if what == "tune" else generation(options, what)
        results = runs.measure(options.rounds, lambda line: print(line, file=sys.stderr))
        text += table(title, runs, results, options.threads) + "\n"
    roof = [f"{what} {Path(model).name} {' '.join(extra)}: {result['roof_fraction'] * 100:.0f} % of the roof, {result['peak_rss_mb']:.0f} MB"
            for (what, model, extra), result in options.details.items()]
    text += "\n".join(roof) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
