#!/usr/bin/env python3
"""End to end on the default model: a short tuning run on the demo's task, through the command line.

usage: default_model_test.py TRIMPOT MAKE_DEMO_DATA     the model's path in TRIMPOT_MODEL; skipped without
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile


def main(trimpot, make_demo_data):
    model = os.environ.get("TRIMPOT_MODEL", "")
    if not os.path.exists(model):
        print("TRIMPOT_MODEL names no file: skipped")
        return 77

    def run(*args):
        done = subprocess.run([trimpot, *map(str, args)], capture_output=True, timeout=900)
        if done.returncode != 0:
            sys.exit(f"{args}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode()

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([sys.executable, make_demo_data, "--out-dir", folder, "--train", "240"], check=True,
                       stdout=subprocess.DEVNULL)
        train, heldout = folder / "demo-train.jsonl", folder / "demo-heldout.jsonl"
        tuned, adapter = folder / "tuned.gguf", folder / "tuned.safetensors"
        result = json.loads(run("tune", "-m", model, "--data", train, "-o", tuned, "--max-steps", "24", "--json"))
        print(result)
        # The file that is read back is what was trained, and it is much better at the task.
        assert result["eval_loss_reloaded"] < 0.5 * result["eval_loss_before"], "did not learn"
        assert abs(result["eval_loss_reloaded"] - result["eval_loss_after"]) < 2e-3, "the file differs"
        assert result["peak_rss_mb"] < 330, "memory"

        diff = json.loads(run("diff", model, tuned, "--json"))
        assert diff["same_header"] and diff["same_size"], diff
        assert diff["code_bytes"] == 0 and diff["dense_bytes"] == 0, diff
        assert diff["scale_bytes"] > 0 and diff["offset_bytes"] > 0, diff

        run("tune", "-m", model, "--data", train, "-o", adapter, "--max-steps", "2", "-q")
        run("merge", "-m", model, "--adapter", adapter, "-o", tuned)
        prompt = ("-p", "The capital of France is", "-n", "12", "--temp", "0", "-q")
        assert run("run", "-m", tuned, *prompt) == run("run", "-m", model, "--adapter", adapter, *prompt)
        match = json.loads(run("eval", "match", "-m", model, "--data", heldout, "--limit", "2", "-n", "8", "--json"))
        assert match["total"] == 2
        assert "Paris" in run("run", "-m", model, *prompt)

        # A text of the project's own: the default path stays within 0.5 % of the f32 path.
        text = folder / "text.txt"
        text.write_text("".join(json.loads(line)["messages"][0]["content"] + "\n" for line in open(train)))
        ppl = [json.loads(run("eval", "ppl", "-m", model, "-f", text, "-c", "128", "--chunks", "6", "--json",
                              "--precision", precision))["perplexity"] for precision in ("default", "f32")]
        print("perplexity, default and f32:", ppl)
        assert abs(ppl[0] / ppl[1] - 1) < 0.02, ppl  # 384 predictions: a loose bound; the figures are in docs/
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
