#!/usr/bin/env python3
"""The evaluations on a toy model, as a user meets them: results, files, the report page, wrong inputs.

usage: eval_test.py TRIMPOT MAKE_TOY_MODEL
"""
import html.parser
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

TRIMPOT, MAKE_TOY_MODEL = map(os.path.abspath, sys.argv[1:3])


class Page(html.parser.HTMLParser):
    """Collects what a test asks of the report, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.texts.append(data)


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.holder = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.holder.name)
        for name, kind in (("toy", ""), ("other", "other-seed")):
            subprocess.run([MAKE_TOY_MODEL, cls.folder / f"{name}.gguf", kind], check=True)
        questions = [{"question": {"stem": f"stem {i} <b>", "choices": [{"text": f"one {i}", "label": "A"},
                                                                     {"text": f"other {i % 3} \u00e9", "label": "B"}]},
                      "answerKey": "AB"[i % 2]} for i in range(9)]
        cls.write("arc.jsonl", "\n".join(map(json.dumps, questions)))
        cls.write("hellaswag.txt", "".join(f"A man {i}\n{i % 4}\nsits\nstands up\nruns {i}\ntalks\n" for i in range(8)))
        cls.write("math.jsonl", "\n".join(json.dumps({"question": f"{i}?", "answer": f"so\n#### {i}"}) for i in range(4)))
        cls.write("text.txt", "a text of some length. " * 40)
        cls.write("heldout.jsonl", "\n".join(json.dumps({"question": f"{i}?", "answer": "a"}) for i in range(3)))

    @classmethod
    def tearDownClass(cls):
        cls.holder.cleanup()

    @classmethod
    def write(cls, name, text):
        (cls.folder / name).write_text(text)

    def trimpot(self, *args, code=0):
        done = subprocess.run([TRIMPOT, *map(str, args)], capture_output=True, cwd=self.folder, timeout=120,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, code, f"{args}\n{done.stderr.decode()}")
        return done.stdout.decode(), done.stderr.decode()

    def json(self, *args):
        out, text = self.trimpot("eval", *args, "--json")
        self.assertEqual(text, "")
        return json.loads(out)

    def items(self, name):
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def choice(self, *args, model="toy.gguf", task="arc", file="arc.jsonl"):
        return self.json("choice", "-m", model, "--task", task, "-f", file, *args)

    def test_choice_counts_what_the_items_say(self):
        result = self.choice("-o", "items.jsonl")
        items = self.items("items.jsonl")
        self.assertEqual((result["items"], len(items)), (9, 9))
        for item in items:
            best = max(range(2), key=lambda i: item["log_likelihoods"][i])
            self.assertEqual(item["picked"], best)
            self.assertEqual(item["score"], float(best in item["right"]))
            for value, choice, norm in zip(item["log_likelihoods"], item["choices"], item["normalized"]):
                self.assertAlmostEqual(norm, value / len(choice), places=12)
        mean = sum(item["score"] for item in items) / 9
        self.assertAlmostEqual(result["acc"], mean)
        self.assertAlmostEqual(result["acc_stderr"], (mean * (1 - mean) / 8) ** 0.5)

    def test_choice_does_not_depend_on_threads_limit_or_mates(self):
        self.choice("-o", "all.jsonl", "-t", 2)
        self.choice("-o", "some.jsonl", "-t", 1, "--limit", 2)
        self.assertEqual(self.items("all.jsonl")[:2], self.items("some.jsonl"))

    def test_choice_with_examples(self):
        self.choice("-o", "own.jsonl", "--num-fewshot", 1, "--limit", 2)
        (self.folder / "shots.jsonl").write_text((self.folder / "arc.jsonl").read_text().splitlines()[0])
        self.choice("-o", "file.jsonl", "--num-fewshot", 1, "--limit", 2, "--fewshot-file", "shots.jsonl")
        own, file = self.items("own.jsonl"), self.items("file.jsonl")
        self.assertEqual(own[1], file[1])  # the first row is the example
        self.assertNotEqual(own[0], file[0])  # and not its own
        _, text = self.trimpot("eval", "choice", "-m", "toy.gguf", "--task", "arc", "-f", "arc.jsonl", "--num-fewshot", 9,
                               code=1)
        self.assertIn("smaller --num-fewshot", text)

    def test_text_and_tokens(self):
        out, _ = self.trimpot("eval", "choice", "-m", "toy.gguf", "--task", "hellaswag", "-f", "hellaswag.txt", "--norm",
                              "tokens")
        self.assertRegex(out, r"^hellaswag: 8 items, acc \d+\.\d\d % \+/- \d+\.\d\d, acc_norm ")

    def test_generate(self):
        result = self.json("generate", "-m", "toy.gguf", "--task", "gsm8k", "-f", "math.jsonl", "--num-fewshot", 2, "-n", 6,
                           "-o", "answers.jsonl")
        answers = self.items("answers.jsonl")
        self.assertEqual((result["items"], result["num_fewshot"], len(answers)), (4, 2, 4))
        self.json("generate", "-m", "toy.gguf", "--task", "gsm8k", "-f", "math.jsonl", "--num-fewshot", 2, "-n", 6, "--np", 1,
                  "-o", "alone.jsonl")
        self.assertEqual(answers, self.items("alone.jsonl"))
        _, text = self.trimpot("eval", "generate", "-m", "toy.gguf", "--task", "gsm8k", "-f", "math.jsonl", code=1)
        self.assertIn("there are only 3 examples", text)

    def test_kl(self):
        result = self.json("kl", "-m", "toy.gguf", "--teacher", "toy.gguf", "-f", "text.txt", "-c", 64)
        self.assertEqual((result["kl"], result["kl_max"], result["same_top"]), (0, 0, 1))
        result = self.json("kl", "-m", "toy.gguf", "--teacher", "other.gguf", "-f", "text.txt", "-c", 64, "--chunks", 3)
        self.assertGreater(result["kl"], 0)
        ppl = self.json("ppl", "-m", "toy.gguf", "-f", "text.txt", "-c", 64, "--chunks", 3)
        self.assertAlmostEqual(result["perplexity"] / ppl["perplexity"], 1, places=5)
        out, _ = self.trimpot("eval", "kl", "-m", "toy.gguf", "--teacher", "other.gguf", "-f", "text.txt", "-c", 64)
        self.assertIn("median KL", out)
        # The same number of tokens, but one of them is another.
        data = (self.folder / "toy.gguf").read_bytes()
        start = data.index(b"tokenizer.ggml.tokens")
        place = data.index(b"\x01\0\0\0\0\0\0\0a", start) + 8
        (self.folder / "renamed.gguf").write_bytes(data[:place] + b"\x7f" + data[place + 1:])
        _, text = self.trimpot("eval", "kl", "-m", "toy.gguf", "--teacher", "renamed.gguf", "-f", "text.txt", code=1)
        self.assertIn("same tokenizer", text)

    def test_report(self):
        for name in ("toy", "other"):
            result = self.choice("-o", f"{name}.jsonl", model=f"{name}.gguf")
            self.write(f"{name}.json", json.dumps(result))
            ppl = self.json("ppl", "-m", f"{name}.gguf", "-f", "text.txt", "-c", 64)
            self.write(f"{name}.ppl.json", json.dumps(ppl))
        match = self.json("match", "-m", "toy.gguf", "--data", "heldout.jsonl", "-n", 2, "--show", 3)
        self.write("match.json", json.dumps(match))
        out, text = self.trimpot("eval", "report", "-o", "report.html", "--title", "A & B", "--samples", 4,
                                 "base=toy.json", "base=toy.jsonl", "base=toy.ppl.json", "base=match.json",
                                 "tuned <1>=other.json", "tuned <1>=other.jsonl", "tuned <1>=other.ppl.json")
        self.assertEqual((out, text), ("", ""))
        source = (self.folder / "report.html").read_text()
        page = Page(source)
        words = "".join(page.texts)
        self.assertIn("A & B", words)
        self.assertIn("tuned <1>", words)
        self.assertIn("stem 0 <b>", words)
        accuracy = json.loads((self.folder / "toy.json").read_text())["acc"]
        self.assertIn(f"{100 * accuracy:.2f} +/- ", words)
        self.assertIn("not measured", words)  # match of the other model
        self.assertIn("4 of 9 questions", words)
        self.assertEqual(words.count("Expected:"), 4 + 3)
        self.assertEqual(len([tag for tag, _ in page.tags if tag == "svg"]), 3 + (match["exact"] > 0))
        for tag, attributes in page.tags:
            self.assertFalse({"src", "href", "onload"} & set(attributes), f"{tag} {attributes}")
            if tag == "svg":
                self.assertEqual(attributes["role"], "img")
            if tag == "th":
                self.assertIn(attributes["scope"], ("col", "row"))
        self.assertNotIn("http", source.replace("http://www.w3.org/2000/svg", ""))

    def test_report_of_wrong_files(self):
        self.write("empty.json", "")
        self.write("odd.json", '{"a": 1}')
        self.write("broken.jsonl", '{"question": "a", "choices": ["b"], "picked": 0}\n{"quest')
        self.write("picked.jsonl", '{"question": "a", "choices": ["b"], "picked": 1}')
        for argument, says in (("toy.json", "NAME=FILE"), ("a=none.json", "none.json"), ("a=empty.json", "empty"),
                               ("a=odd.json", "no results"), ("a=broken.jsonl", "broken.jsonl:2"),
                               ("a=picked.jsonl", "picked")):
            _, text = self.trimpot("eval", "report", "-o", "no.html", argument, code=1)
            self.assertIn(says, text)
            self.assertEqual(len(text.splitlines()), 1)
            self.assertFalse((self.folder / "no.html").exists())

    def test_wrong_inputs(self):
        self.trimpot("eval", "choice", "-m", "toy.gguf", "--task", "nothing", "-f", "arc.jsonl", code=2)
        for task, file, says in (("winogrande", "arc.jsonl", "arc.jsonl:1"), ("arc", "text.txt", "text.txt:1"),
                                 ("arc", "none.jsonl", "none.jsonl")):
            _, text = self.trimpot("eval", "choice", "-m", "toy.gguf", "--task", task, "-f", file, "-o", "no.jsonl", code=1)
            self.assertIn(says, text)
            self.assertFalse((self.folder / "no.jsonl").exists())
        _, text = self.trimpot("eval", "kl", "-m", "toy.gguf", "--teacher", "other.gguf", "-f", "text.txt", "-c", 256,
                               "--chunks", 1, "--precision", "f32", code=0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
