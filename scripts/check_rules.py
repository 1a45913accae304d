#!/usr/bin/env python3
"""Rules of this project that no compiler checks: the direction of includes, sizes, ASCII sources,
no printing or aborting in the library."""
import pathlib
import re
import subprocess
import sys

# A room may include itself and the rooms before it (DESIGN.md).
ROOMS = ["base", "sys", "tensor", "io", "text", "format", "kernels", "model", "quantize", "optim", "data",
         "tune", "eval", "serve", "cli"]
FORBIDDEN = re.compile(r"\b(abort|exit|printf|puts|std::cout|std::cerr)\s*(\(|<<)")


def main():
    problems = []
    files = subprocess.run(["git", "ls-files", "src"], capture_output=True, text=True, check=True)
    for name in files.stdout.split():
        path = pathlib.Path(name)
        if path.suffix not in (".h", ".cc"):
            continue
        room = path.parts[1]
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if not text.isascii():
            problems.append(f"{name}: not ASCII")
        if len(lines) > 500:
            problems.append(f"{name}: {len(lines)} lines; 500 at most")
        for number, line in enumerate(lines, 1):
            include = re.match(r'#include "(\w+)/', line)
            if include and include[1] in ROOMS and ROOMS.index(include[1]) > ROOMS.index(room):
                problems.append(f"{name}:{number}: {room} must not look into {include[1]}")
            code = line.split("//")[0]
            if room != "cli" and FORBIDDEN.search(code) and "snprintf" not in code:
                problems.append(f"{name}:{number}: the library neither prints nor ends the program")
    print("\n".join(problems) if problems else "rules: all kept")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
