#!/usr/bin/env python3
"""Prints one held-out answer before and after tuning, and draws it as an SVG.

usage: demo_picture.py BEFORE.json AFTER.json OUT.svg     (results of `trimpot eval match --json --show N`)
"""
import json
import sys
import textwrap
from xml.sax.saxutils import escape

WIDTH, LINE, MARGIN = 880, 19, 24


def wrapped(text, columns=98, most=4):
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, columns)] or ["(nothing)"]
    return lines[:most] + (["..."] if len(lines) > most else [])


def bar(y, label, share, colour):
    filled = 640 * share / 100
    return [
        f'<text x="{MARGIN}" y="{y + 14}">{label}</text>',
        f'<rect x="110" y="{y}" width="640" height="18" rx="4" fill="#e8e8e8"/>',
        f'<rect x="110" y="{y}" width="{filled:.0f}" height="18" rx="4" fill="{colour}"/>',
        f'<text x="762" y="{y + 14}">{share:.0f} %</text>',
    ]


def main(before_path, after_path, svg_path):
    with open(before_path) as file:
        before = json.load(file)
    with open(after_path) as file:
        after = json.load(file)
    pairs = list(zip(before["samples"], after["samples"]))
    first, second = next(((b, a) for b, a in pairs if a["exact"]), pairs[0])

    print("question:", first["question"])
    print("before:  ", " ".join(first["answer"].split())[:300])
    print("after:   ", second["answer"])

    parts, y = [], 34
    parts.append(f'<text x="{MARGIN}" y="{y}" font-weight="bold">The same 98 MB file before and after '
                 "trimpot tune, on sentences it has never seen</text>")
    y += 16
    for label, result, colour in (("before", before, "#c44"), ("after", after, "#2a7")):
        parts += bar(y, label, result["exact_match"], colour)
        y += 26
    y += 24
    for title, text, colour in (("question", first["question"], "#333"),
                                ("answer before", first["answer"], "#a22"),
                                ("answer after", second["answer"], "#175")):
        parts.append(f'<text x="{MARGIN}" y="{y}" fill="#777">{title}</text>')
        for line in wrapped(text):
            y += LINE
            parts.append(f'<text x="{MARGIN + 12}" y="{y}" fill="{colour}" '
                         f'font-family="monospace" font-size="13">{escape(line)}</text>')
        y += LINE + 12
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
           f'font-family="sans-serif" font-size="14"><title>Exact match before and after tuning</title>'
           f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n')
    with open(svg_path, "w") as file:
        file.write(svg)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
