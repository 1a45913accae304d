#!/usr/bin/env python3
"""trimpot compare on a toy model: plans, steps that run once, resuming, failures, the reports.

usage: compare_test.py TRIMPOT MAKE_TOY_MODEL
"""
import html.parser
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

TRIMPOT, MAKE_TOY_MODEL = map(os.path.abspath, sys.argv[1:3])

DEFAULTS = {"ppl": ["-c", "64", "--chunks", "4"], "tune": ["--max-steps", "3", "--max-seq-length", "64"],
            "quantize": ["--calib-samples", "4", "--calib-length", "64"], "decode": ["-n", "8"],
            "task": ["-n", "4", "--limit", "2"], "step": ["--max-seq-length", "32"]}
RTN = ["--method", "rtn", "--group-size", "32"]
QEFT = ["--method", "qeft", "--group-size", "32", "--weak-columns", "8"]


class TablesOf(html.parser.HTMLParser):
    """Cells of all tables; checks that tags nest, and that nothing is fetched from elsewhere."""
    VOID = {"meta"}

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.captions = [], [], 0
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            assert name not in ("src", "href") and "url(" not in (value or ""), (name, value)
        assert tag not in ("script", "link"), tag
        if tag not in self.VOID:
            self.open.append(tag)
        self.captions += tag == "caption"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (self.open, tag)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


class Compare(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = pathlib.Path(holder.name)
        subprocess.run([MAKE_TOY_MODEL, self.folder / "toy.gguf", ""], check=True)
        rows = [{"prompt": f"say {i % 7}", "completion": "yes" * (i % 3 + 1)} for i in range(40)]
        (self.folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.folder / "text.txt").write_text("a text of some length. " * 200)

    def plan(self, rows, **more):
        plan = {"title": "toy", "defaults": DEFAULTS, "measure": ["ppl"], "rows": rows, **more}
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def command(self, *args):
        return [TRIMPOT, "compare", "-m", "toy.gguf", "--data", "data.jsonl", "--calib", "text.txt",
                "--text", "text.txt", "--plan", "plan.json", "-o", "out", *map(str, args)]

    def compare(self, *args, code=0):
        done = subprocess.run(self.command(*args), cwd=self.folder, capture_output=True, text=True,
                              timeout=120, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout, done.stderr

    def results(self):
        return json.loads((self.folder / "out" / "results.json").read_text())

    def values(self):
        return {row["name"]: row["values"] for row in self.results()["plans"][0]["rows"]}

    @staticmethod
    def executed(stderr):
        """Kinds of the steps that ran: the progress lines "3/7 row: kind"."""
        return [line.rsplit(": ", 1)[1] for line in stderr.splitlines() if line[:1].isdigit()]

    def test_wrong_plans(self):
        def refused(text, *says):
            (self.folder / "plan.json").write_text(text if isinstance(text, str) else json.dumps(text))
            _, error = self.compare(code=1)
            self.assertEqual(len(error.splitlines()), 1, error)
            for part in says:
                self.assertIn(part, error)
            self.assertFalse((self.folder / "out").exists())

        row = {"name": "a", "quantize": RTN}
        refused("{", "plan.json", "not JSON")
        refused([], "plan.json", "object")
        refused({"rows": []}, "at least one row")
        refused({"rows": [row], "colour": 1}, '"colour"', "columns")
        refused({"rows": [{"quantize": RTN}]}, "row 1", '"name"')
        refused({"rows": [row, row]}, 'two rows are called "a"')
        refused({"rows": [{"name": "a", "quantise": []}]}, '"quantise"')
        refused({"rows": [{"name": "a", "quantize": ["--bits", 3]}]}, '"3"')
        refused({"rows": [{"name": "a", "then": [["eval"]]}]}, "quantize, tune, merge")
        refused({"rows": [row], "columns": ["speed"]}, '"speed"', "decode_tps")
        refused({"rows": [row], "measure": ["luck"]}, '"luck"')
        refused({"rows": [{"name": "a", "from": "@result:b"}, {"name": "b"}]}, "@result:b", "before it")
        refused({"rows": [{"name": "a", "from": "toy.gguf"}]}, '"from"')
        refused({"rows": [{"name": "a", "then": [["merge", "--adapter", "@tuned:b"]]}]}, "@tuned:b")
        refused({"rows": [{"name": "a", "tune": ["--method", "lora"], "then": [["quantize", *RTN]]}]},
                "needs a [\"merge\"]")
        refused({"rows": [{"name": "a", "then": [["merge"]]}]}, "no adapter to merge")
        refused({"rows": [{"name": "a", "tune": ["--data", "@other-data"]}]}, "--other-data is not given")

    def test_missing_files_and_options(self):
        self.plan([{"name": "a"}])
        done = subprocess.run([TRIMPOT, "compare", "-m", "toy.gguf", "--data", "data.jsonl", "-o", "out"],
                              cwd=self.folder, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("needs --text", done.stderr)
        (self.folder / "text.txt").unlink()
        _, error = self.compare(code=1)
        self.assertIn("text.txt: there is no such file", error)

    def idle_peak_mb(self):
        process = subprocess.Popen([TRIMPOT, "--version"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        return usage.ru_maxrss * 1024 / 1e6

    def test_table_and_steps_that_are_shared(self):
        self.plan([{"name": "base"},
                   {"name": "scales <&> | 1", "quantize": RTN, "tune": ["--method", "peqa"]},
                   {"name": "zero-points", "quantize": RTN, "tune": ["--method", "peqa-zero"]},
                   {"name": "weak columns", "quantize": QEFT, "tune": ["--method", "qeft"]}],
                  base=[["quantize", "--method", "f32"]], measure=["ppl", "decode", "inspect", "switch", "step"],
                  plots=["speed", "time", "loss", "memory", "weak-columns"])
        text, error = self.compare()
        executed = self.executed(error)
        # f32, the RTN model of both rows, QEFT; perplexity of the base, before (once for both rows) and after
        self.assertEqual({kind: executed.count(kind) for kind in executed},
                         {"quantize": 3, "tune": 3, "ppl": 6, "decode": 4, "inspect": 3, "switch": 3, "step": 3})
        self.assertIn("| scales <&> \\| 1 |", text)
        values = self.values()
        self.assertNotIn("ppl_after", values["base"])
        self.assertEqual(values["base"]["bits"], 32)
        # a group of 32 codes of 4 bits, an f16 scale and an f16 zero
        self.assertEqual(values["zero-points"]["bits"], 5)
        for name in ("scales <&> | 1", "zero-points", "weak columns"):
            row = values[name]
            for key in ("trainable", "tune_seconds", "tune_peak_mb", "quantize_seconds", "quantize_peak_mb",
                        "base_bytes", "storage_bytes", "decode_tps", "ppl_before", "ppl_after", "forward_ms",
                        "step_ms", "switch_bytes", "switch_ms"):
                self.assertGreater(row[key], 0, (name, key))
            self.assertEqual(row["storage_bytes"], row["base_bytes"] + row["switch_bytes"])
            # A toy's step is shorter than a turn of the scheduler: the difference may be of either sign.
            self.assertAlmostEqual(row["forward_ms"] + row["backward_ms"], row["step_ms"], places=6)
        self.assertEqual(values["scales <&> | 1"]["ppl_before"], values["zero-points"]["ppl_before"])
        # The peak is the system's, and a process with a model in it takes more than its file.
        tune = [step for step in self.results()["plans"][0]["rows"][1]["steps"] if step["kind"] == "tune"][0]
        self.assertGreaterEqual(tune["peak_rss_mb"], tune["result"]["peak_rss_mb"] * 0.99)
        # A toy adds little to what the program takes by itself, which is 200 MB under a sanitizer.
        self.assertLess(tune["peak_rss_mb"], self.idle_peak_mb() + 100)

        page = (self.folder / "out" / "report.html").read_text()
        table = TablesOf(page)
        self.assertEqual(table.captions, 1)
        self.assertEqual([row[0] for row in table.rows],
                         ["method", "base", "scales <&> | 1", "zero-points", "weak columns"])
        self.assertEqual(len({len(row) for row in table.rows}), 1)
        self.assertIn("prefers-color-scheme", page)
        pictures = sorted(path.name for path in (self.folder / "out").glob("plot-*.svg"))
        self.assertEqual(pictures, ["plot-1-loss.svg", "plot-1-memory.svg", "plot-1-speed.svg",
                                    "plot-1-time.svg", "plot-1-weak-columns-4.svg"])
        for name in pictures:
            root = xml.etree.ElementTree.parse(self.folder / "out" / name).getroot()
            for part in ("title", "desc"):
                self.assertTrue(root.find(f"{{http://www.w3.org/2000/svg}}{part}").text)

        # Nothing is left to do, and the result is the same.
        before = self.results()
        _, error = self.compare("--json")
        self.assertEqual(self.executed(error), [])
        self.assertEqual(self.results(), before)

    def test_changed_input_or_option_runs_what_depends_on_it(self):
        rows = [{"name": "a", "quantize": RTN, "tune": ["--method", "peqa"]}]
        self.plan(rows)
        self.compare()
        rows[0]["tune"] += ["--lr", "0.01"]
        self.plan(rows)
        _, error = self.compare()
        # The quantized model was deleted when nothing needed it; it is made again for the new tuning.
        self.assertEqual(self.executed(error), ["quantize", "tune", "ppl"])
        (self.folder / "text.txt").write_text("another text of some length. " * 200)
        _, error = self.compare()
        # The tuned state is an adapter, which stayed; its base did not.
        self.assertEqual(self.executed(error), ["quantize", "ppl", "ppl"])

    def test_merging(self):
        self.plan([{"name": "tuned", "quantize": QEFT, "tune": ["--method", "qeft"]},
                   {"name": "target", "tune": ["--method", "full", "--data", "text.txt"]},
                   {"name": "both", "from": "@result:target",
                    "quantize": QEFT + ["--weak-columns-from", "@quantized:tuned"],
                    "then": [["merge", "--onto-other", "--adapter", "@adapter:tuned"]]},
                   {"name": "LoRA, then RTN", "tune": ["--method", "lora", "--lora-r", "4"],
                    "then": [["merge"], ["quantize", *RTN]]}],
                  base=[["quantize", "--method", "f32"]])
        self.compare()
        values = self.values()
        self.assertNotEqual(values["both"]["ppl_before"], values["both"]["ppl_after"])
        self.assertLess(values["LoRA, then RTN"]["storage_bytes"], values["LoRA, then RTN"]["base_bytes"])
        self.assertFalse(list((self.folder / "out" / "files").glob("*.gguf")))

    def test_failed_step_is_told_and_the_rest_goes_on(self):
        self.plan([{"name": "wide", "quantize": ["--method", "owq", "--weak-columns", "1000"],
                    "tune": ["--method", "qeft"]},
                   {"name": "good", "quantize": RTN}])
        text, error = self.compare(code=1)
        self.assertIn("1 of 2 rows failed", error)
        self.assertIn("wide failed: quantize: --weak-columns 1000", text)
        self.assertEqual(self.executed(error), ["quantize", "quantize", "ppl"])
        self.assertGreater(self.values()["good"]["ppl_before"], 0)
        rows = self.results()["plans"][0]["rows"]
        self.assertIn("--weak-columns 1000", rows[0]["problem"])
        self.assertNotIn("problem", rows[1])
        TablesOf((self.folder / "out" / "report.html").read_text())
        # A failure is no result: it is tried again, what succeeded is not.
        _, error = self.compare(code=1)
        self.assertEqual(self.executed(error), ["quantize"])

    def wait_for_child(self, process, kind):
        """The process id of the command that runs now, when it is `trimpot kind`."""
        for _ in range(1000):
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                try:
                    words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if len(words) > 1 and words[1] == kind.encode():
                    return int(child)
            time.sleep(0.01)
        self.fail(f"{kind} did not start")

    def stopped(self, how, command=None):
        """Starts a comparison whose tuning is long, and sends a signal while it tunes."""
        process = subprocess.Popen(command or self.command("--max-steps", 1000000), cwd=self.folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        child = self.wait_for_child(process, "tune")
        process.send_signal(how)
        error = process.communicate(timeout=60)[1]
        for _ in range(500):
            try:
                state = pathlib.Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                break
            if state == "Z":
                break
            time.sleep(0.01)
        else:
            os.kill(child, signal.SIGKILL)
            self.fail("the child lives on")
        return process.returncode, error

    def test_interrupted_and_killed_runs_go_on(self):
        rows = [{"name": "first", "quantize": RTN}, {"name": "long", "quantize": QEFT, "tune": ["--method", "qeft"]}]
        self.plan(rows)
        code, error = self.stopped(signal.SIGINT)
        self.assertEqual(code, 1)
        self.assertIn("the same command goes on", error)
        self.assertEqual(self.executed(error), ["quantize", "ppl", "quantize", "ppl", "tune"])
        code, error = self.stopped(signal.SIGKILL)
        self.assertEqual(code, -signal.SIGKILL)
        self.assertEqual(self.executed(error), ["tune"])
        # a half-written file of a killed step
        (self.folder / "out" / "files" / "quantize-0.gguf.partial-1").write_text("half")
        _, error = self.compare()
        self.assertEqual(self.executed(error), ["tune", "ppl"])
        self.assertFalse(list((self.folder / "out").rglob("*.partial-*")))

    def test_sensitivity_and_gradient_of_columns(self):
        self.plan([{"name": "plain"}, {"name": "codes", "quantize": RTN}], base=[["quantize", "--method", "f32"]],
                  measure=["columns"], plots=["sensitivity"],
                  defaults={"columns": ["--layer", "1", "--module", "down_proj", "-c", "64", "--chunks", "2"]})
        text, _ = self.compare(code=1)
        self.assertIn("codes failed: columns: blk.1.ffn_down is quantized", text)
        study = self.results()["plans"][0]["rows"][0]["steps"][-1]["result"]
        self.assertEqual(study["tensor"], "blk.1.ffn_down")
        for key in ("sensitivity", "gradient"):
            self.assertEqual(len(study[key]), 96)
            self.assertGreater(min(study[key]), 0)
        self.assertTrue((self.folder / "out" / "plot-1-sensitivity-1.svg").exists())

    def test_one_run_per_folder(self):
        self.plan([{"name": "long", "quantize": QEFT, "tune": ["--method", "qeft"]}])
        process = subprocess.Popen(self.command("--max-steps", 1000000), cwd=self.folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.wait_for_child(process, "tune")
            _, error = self.compare(code=1)
            self.assertIn("another trimpot compare works in this folder", error)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)

    def test_damaged_result_is_measured_again(self):
        self.plan([{"name": "a"}])
        self.compare()
        step = next((self.folder / "out" / "steps").iterdir())
        for damage in ("", "{", "[]", '{"result": 3}', '{"result": {}, "program": 7}'):
            step.write_text(damage)
            self.compare()
        self.assertGreater(self.values()["a"]["ppl_before"], 0)

    def test_builtin_plans(self):
        out = subprocess.run([TRIMPOT, "compare", "--list"], capture_output=True, text=True, check=True).stdout
        names = [line.split()[0] for line in out.splitlines()[1:]]
        for name in ["quick", "A", "B", "D", "1", "2", "3", "5", "6", "7", "8", "9", "10", "11", "fig3a", "fig5", "papers"]:
            self.assertIn(name, names)
        self.plan([{"name": "unused"}])
        steps = {}
        for name in names:
            done = subprocess.run([TRIMPOT, "compare", "-m", "toy.gguf", "--data", "data.jsonl", "--text", "text.txt",
                                   "--other-data", "text.txt", "--plan", name, "-o", "out", "--dry-run"],
                                  cwd=self.folder, capture_output=True, text=True, check=True)
            steps[name] = set(done.stdout.splitlines())
            self.assertTrue(all(line.startswith("trimpot ") for line in steps[name]))
        # all tables at once share what they have in common
        self.assertEqual(steps["papers"], set().union(*(steps[name] for name in names if name not in
                                                        ("quick", "papers"))))
        self.assertFalse((self.folder / "out").exists())
        plan = subprocess.run([TRIMPOT, "compare", "--print-plan", "7"], capture_output=True, check=True).stdout
        self.assertEqual(len(json.loads(plan)["rows"]), 5)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
