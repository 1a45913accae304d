#!/usr/bin/env python3
"""Instructions per multiply-add of the AVX2 kernels, against instructions.json: slower code fails, whatever the machine.

usage: instructions.py KERNEL_ONCE [--update] [--only SUBSTRING]
Counted with valgrind (callgrind), which knows no AVX-512. A kernel fails if it needs over 5 % more than was recorded;
--update records what it needs now. The difference of two runs leaves out the start of the program.
"""
import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMITS = Path(__file__).with_name("instructions.json")
ALLOWED = 1.05


def count(program, case, times):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, "avx2", case, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"Collected : (\d+)", done.stderr).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    listed = subprocess.run([options.program, "--list"], capture_output=True, text=True, check=True).stdout
    cases = [line.split("\t") for line in listed.splitlines()]
    avx512 = ("_int16/", "_bytes/")  # cases that AVX2 has no kernels for
    cases = [(name, float(macs)) for macs, name in cases
             if options.only in name and not any(part in name for part in avx512)]
    recorded = json.loads(LIMITS.read_text()) if LIMITS.exists() else {}

    def per_mac(case):
        name, macs = case
        return (count(options.program, name, 3) - count(options.program, name, 1)) / 2 / macs

    with ThreadPoolExecutor(2) as pool:
        measured = dict(zip([name for name, _ in cases], pool.map(per_mac, cases)))
    failed = False
    for name, value in measured.items():
        before = recorded.get(name)
        bad = not options.update and (before is None or value > before * ALLOWED)
        failed |= bad
        print(f"{name:45} {value:.4f} instructions per multiply-add, recorded {before}{'  TOO MANY' if bad else ''}")
    if options.update:
        recorded.update({name: round(value, 5) for name, value in measured.items()})
        LIMITS.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        return
    if failed:
        sys.exit("Kernels got slower. If that is wanted, run this again with --update and commit instructions.json.")


if __name__ == "__main__":
    main()
