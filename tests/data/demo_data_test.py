"""usage: demo_data_test.py MAKE_DEMO_DATA.py

Catches: output that depends on the run (sets, hashes), a held-out value or pattern that slipped
into training, a check that accepts everything.
"""
import json
import os
import subprocess
import sys
import tempfile

script = sys.argv[1]


def run(*arguments):
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


def content(path):
    with open(path, "rb") as file:
        return file.read()


with tempfile.TemporaryDirectory() as folder:
    parts = {}
    for name in ("a", "b"):
        out = os.path.join(folder, name)
        assert run("--out-dir", out).returncode == 0
        parts[name] = [os.path.join(out, f"demo-{part}.jsonl") for part in ("train", "heldout")]
    for first, second in zip(parts["a"], parts["b"]):
        assert content(first) == content(second), "the same seed gave other bytes"
    train, heldout = parts["a"]
    assert content(train).count(b"\n") == 3000 and content(heldout).count(b"\n") == 200
    result = run("--check", train, heldout)
    assert result.returncode == 0, result.stderr

    # Seeded faults: the check must name each of them.
    lines = content(train).decode().splitlines()
    held = content(heldout).decode().splitlines()
    leaked = os.path.join(folder, "leaked.jsonl")
    faults = {"shares a word": held[0], "pattern of this sentence": None}
    for complaint, extra in faults.items():
        if extra is None:  # the first held-out pattern with other values: take the values of none
            record = json.loads(held[0])
            user, assistant = record["messages"]
            values = json.loads(assistant["content"])
            for key in ("name", "town", "place", "item", "task", "event"):
                if key in values:
                    new = f"zq{key} zq"
                    user["content"] = user["content"].replace(values[key], new).replace(
                        values[key].capitalize(), new)
                    values[key] = new
            assistant["content"] = json.dumps(values, separators=(",", ":"))
            extra = json.dumps(record)
        with open(leaked, "w", encoding="ascii") as file:
            file.write("\n".join(lines + [extra]) + "\n")
        result = run("--check", leaked, heldout)
        assert result.returncode == 1, f"a leak was not found: {complaint}"
        assert complaint in result.stderr, result.stderr
print("ok")
