#!/usr/bin/env python3
"""The program on a toy model, as a user meets it: results, wrong inputs, messages, files left behind.

usage: cli_test.py TRIMPOT MAKE_TOY_MODEL
"""
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

TRIMPOT, MAKE_TOY_MODEL = map(os.path.abspath, sys.argv[1:3])


class Cli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder_holder = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.folder_holder.name)
        for name, kind in (("toy", ""), ("q4_0", "Q4_0"), ("f16", "F16"), ("other", "other-seed")):
            subprocess.run([MAKE_TOY_MODEL, cls.folder / f"{name}.gguf", kind], check=True)
        rows = [{"prompt": f"say {i % 7}", "completion": "yes" * (i % 3 + 1)} for i in range(40)]
        cls.write("data.jsonl", "\n".join(json.dumps(row) for row in rows))
        cls.write("text.txt", "a text of some length. " * 200)

    @classmethod
    def tearDownClass(cls):
        cls.folder_holder.cleanup()

    @classmethod
    def write(cls, name, text):
        path = cls.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def path(self, name):
        return str(self.folder / name)

    def trimpot(self, *args, code=0, **options):
        done = subprocess.run([TRIMPOT, *map(str, args)], capture_output=True, cwd=self.folder,
                              timeout=120, stdin=subprocess.DEVNULL, **options)
        text = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, code, f"{args}\n{text}")
        return done.stdout, text

    def fails(self, *args, says, code=1):
        before = set(os.listdir(self.folder))
        _, text = self.trimpot(*args, code=code)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, text)
        if code == 1:
            self.assertEqual(len([line for line in text.splitlines() if line.startswith("trimpot:")]), 1)
        self.assertEqual({name for name in set(os.listdir(self.folder)) - before
                          if not name.endswith(".run")}, set())

    def tune(self, output, *args, steps=4):
        return self.trimpot("tune", "-m", "toy.gguf", "--data", "data.jsonl", "-o", output,
                            "--max-steps", steps, "--batch-size", "4", "--json", *args)

    def test_tuned_file_differs_in_scales_only(self):
        self.tune("tuned.gguf")
        out, _ = self.trimpot("diff", "toy.gguf", "tuned.gguf", "--json")
        diff = json.loads(out)
        self.assertTrue(diff["same_header"] and diff["same_size"])
        self.assertEqual(diff["code_bytes"], 0)
        self.assertEqual(diff["dense_bytes"], 0)
        self.assertGreater(diff["scale_bytes"], 0)
        self.assertGreater(diff["offset_bytes"], 0)
        self.assertTrue((self.folder / "tuned.run" / "loss.svg").read_text().startswith("<svg"))
        lines = (self.folder / "tuned.run" / "metrics.jsonl").read_text().splitlines()
        self.assertEqual(sum("loss" in json.loads(line) and "eval_loss" not in json.loads(line)
                             for line in lines), 4)

    def test_adapter_equals_full_file(self):
        for method in ("peqa", "peqa-zero", "peqa-both"):
            self.tune("full.gguf", "--method", method)
            self.tune("part.safetensors", "--method", method)
            self.trimpot("merge", "-m", "toy.gguf", "--adapter", "part.safetensors", "-o", "merged.gguf")
            self.assertEqual((self.folder / "full.gguf").read_bytes(),
                             (self.folder / "merged.gguf").read_bytes(), method)
            full, _ = self.trimpot("eval", "ppl", "-m", "full.gguf", "-f", "text.txt", "-c", "64", "--json")
            part, _ = self.trimpot("eval", "ppl", "-m", "toy.gguf", "--adapter", "part.safetensors", "-f",
                                   "text.txt", "-c", "64", "--json")
            self.assertEqual(json.loads(full)["perplexity"], json.loads(part)["perplexity"])
        self.fails("run", "-m", "other.gguf", "--adapter", "part.safetensors", "-p", "x",
                   says="belongs to another base")

    def write_lora(self, name, tensor, rows, columns, **metadata):
        """A LoRA adapter of rank 1 for one layer: B A = 0.5 everywhere."""
        head = {"__metadata__": {"format": "trimpot-adapter", "version": "1", "scale": "0.25", "pool": "0",
                                 **metadata},
                f"{tensor}.lora_a": {"dtype": "F32", "shape": [1, columns], "data_offsets": [0, 4 * columns]},
                f"{tensor}.lora_b": {"dtype": "F32", "shape": [rows, 1],
                                     "data_offsets": [4 * columns, 4 * (columns + rows)]}}
        text = json.dumps(head).encode()
        return self.write(name, struct.pack("<Q", len(text)) + text +
                          struct.pack(f"<{columns + rows}f", *[2.0] * columns, *[0.25] * rows))

    def test_merge(self):
        self.write_lora("lora.safetensors", "blk.0.attn_q.weight", 64, 64)
        merge = ("merge", "-m", "f16.gguf", "--onto-other", "--adapter")
        self.trimpot(*merge, "lora.safetensors", "-o", "a.gguf", "--scale", "0.5")
        self.trimpot(*merge, "lora.safetensors=0.5", "-o", "b.gguf")
        self.trimpot(*merge, "lora.safetensors=0.75", "lora.safetensors=-0.25", "-o", "c.gguf")
        merged = (self.folder / "a.gguf").read_bytes()
        self.assertEqual(merged, (self.folder / "b.gguf").read_bytes())
        self.assertEqual(merged, (self.folder / "c.gguf").read_bytes())
        out, _ = self.trimpot("diff", "f16.gguf", "a.gguf", "--json")
        tensors = json.loads(out)["tensors"]
        self.assertEqual([tensor["name"] for tensor in tensors], ["blk.0.attn_q.weight"])
        # 0.5 x 0.25 x 2 x 0.25, and half a unit of an f16 below 1
        self.assertAlmostEqual(tensors[0]["values"]["largest_absolute"], 0.0625, delta=2.0 ** -12)
        self.fails("merge", "-m", "toy.gguf", "--onto-other", "--adapter", "lora.safetensors", "-o", "x.gguf",
                   says=["blk.0.attn_q.weight", "integer codes", "trimpot quantize"])
        self.fails("merge", "-m", "f16.gguf", "--adapter", "lora.safetensors", "-o", "x.gguf",
                   says="belongs to another base")
        self.fails("merge", "-m", "f16.gguf", "-o", "x.gguf", says="nothing to merge")
        self.fails("merge", "-m", "f16.gguf", "--tuned", "a.gguf", "-o", "x.gguf", says="--tuned-base")
        self.fails("merge", "-m", "f16.gguf", "--tuned", "a.gguf", "--tuned-base", "f16.gguf", "-o", "x.gguf",
                   says="nothing to add")
        self.tune("scales.safetensors")
        self.fails("merge", "-m", "toy.gguf", "--adapter", "scales.safetensors", "scales.safetensors", "-o",
                   "x.gguf", says=["both hold blk.0.attn_q.weight.scale", "use one of them"])
        self.fails("merge", "-m", "toy.gguf", "--adapter", "scales.safetensors=0.5", "-o", "x.gguf",
                   says="final values")

    def test_threads_do_not_change_the_result(self):
        files = []
        for threads in ("1", "2", "3"):
            self.tune(f"t{threads}.gguf", "-t", threads)
            files.append((self.folder / f"t{threads}.gguf").read_bytes())
        self.assertTrue(files[0] == files[1] == files[2])

    def test_interrupt_and_resume_give_the_same_file(self):
        start = time.time()
        self.tune("short.gguf", steps=8)
        # Some seconds: long enough to be stopped, however the program was compiled.
        steps = str(min(400, max(40, int(32 / (time.time() - start)))))
        self.tune("straight.gguf", steps=steps)
        args = [TRIMPOT, "tune", "-m", "toy.gguf", "--data", "data.jsonl", "-o", "stopped.gguf",
                "--max-steps", steps, "--batch-size", "4", "--logging-steps", "1"]
        process = subprocess.Popen(args, cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for line in process.stderr:  # a few steps in
            if line.startswith(b"step 5/"):
                break
        process.send_signal(signal.SIGINT)
        text = process.stderr.read().decode()
        process.stderr.close()
        self.assertEqual(process.wait(60), 0, text)
        self.assertIn("--resume", text)
        self.assertFalse((self.folder / "stopped.gguf").exists())
        self.fails("tune", "-m", "toy.gguf", "--data", "data.jsonl", "-o", "stopped.gguf", "--max-steps",
                   steps, "--batch-size", "4", "--lr", "1e-3", "--resume", says="belongs to another run")
        self.trimpot(*args[1:], "--resume", "-t", "1")
        self.assertEqual((self.folder / "straight.gguf").read_bytes(),
                         (self.folder / "stopped.gguf").read_bytes())

    def test_run_and_chat(self):
        first, _ = self.trimpot("run", "-m", "toy.gguf", "-p", "hello", "-n", "12", "-s", "3", "--ignore-eos")
        second, _ = self.trimpot("run", "-m", "toy.gguf", "-p", "hello", "-n", "12", "-s", "3", "--ignore-eos")
        self.assertEqual(first, second)
        self.trimpot("chat", "-m", "toy.gguf", "-p", "hello", "-n", "8")
        greedy, _ = self.trimpot("run", "-m", "toy.gguf", "-p", "hello", "-n", "12", "--temp", "0")
        narrow, _ = self.trimpot("run", "-m", "toy.gguf", "-p", "hello", "-n", "12", "--top-k", "1")
        self.assertEqual(greedy, narrow)

    def test_reports(self):
        out, _ = self.trimpot("inspect", "toy.gguf", "--json")
        json.loads(out)
        out, _ = self.trimpot("fit", "-m", "toy.gguf", "--json")
        json.loads(out)
        out, _ = self.trimpot("bench", "isa")
        self.assertIn(b"scalar", out)
        out, _ = self.trimpot("eval", "match", "-m", "toy.gguf", "--data", "data.jsonl", "--limit", "3",
                              "-n", "4", "--json")
        self.assertEqual(json.loads(out)["total"], 3)

    def test_forced_kernels(self):
        environment = {**os.environ, "TRIMPOT_ISA": "scalar"}
        self.trimpot("run", "-m", "toy.gguf", "-p", "x", "-n", "2", env=environment)
        _, text = self.trimpot("run", "-m", "toy.gguf", "-p", "x", "--precision", "bf16", code=1, env=environment)
        self.assertIn("AMX", text)
        environment["TRIMPOT_ISA"] = "nonsense"
        _, text = self.trimpot("run", "-m", "toy.gguf", "-p", "x", code=1, env=environment)
        self.assertIn("TRIMPOT_ISA", text)

    def test_wrong_usage_is_2(self):
        for args in ((), ("tune",), ("nonsense",), ("run", "-m"), ("tune", "-m", "toy.gguf", "--data",
                     "data.jsonl", "-o", "x.gguf", "--method", "magic"),
                     ("run", "-m", "toy.gguf", "--temp", "-1"),
                     ("serve", "-m", "toy.gguf", "--precision", "bf16")):
            self.trimpot(*args, code=2)
        self.trimpot("--help")
        self.trimpot("tune", "--help")

    def test_bad_models(self):
        self.fails("run", "-m", "missing.gguf", "-p", "x", says="missing.gguf")
        self.fails("run", "-m", self.write("text.gguf", "this is not a model at all"), "-p", "x", says="GGUF")
        self.fails("run", "-m", self.write("empty.gguf", ""), "-p", "x", says="empty")
        self.fails("run", "-m", ".", "-p", "x", says="regular file")
        whole = (self.folder / "toy.gguf").read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            self.fails("run", "-m", self.write("cut.gguf", whole[:int(len(whole) * share)]), "-p", "x",
                       says="cut.gguf")

    def test_types_that_are_only_carried(self):
        # IQ4_NL (id 20) has blocks of the size of Q4_0's (2): such a file can be looked at, not run.
        whole = (self.folder / "q4_0.gguf").read_bytes()
        name = b"blk.0.attn_q.weight"
        at = whole.index(name) + len(name) + 4 + 2 * 8
        self.assertEqual(whole[at:at + 4], bytes([2, 0, 0, 0]))
        path = self.write("iq4.gguf", whole[:at] + bytes([20]) + whole[at + 1:])
        out, _ = self.trimpot("inspect", path, "--json", "--tensors")
        model = json.loads(out)
        self.assertFalse(model["can_run"])
        self.assertIn("blk.0.attn_q.weight: type IQ4_NL", model["problem"])
        self.assertIn("IQ4_NL", {tensor["type"] for tensor in model["tensors"]})
        for command in (("run", "-p", "x"), ("fit",)):
            self.fails(command[0], "-m", path, *command[1:],
                       says=["iq4.gguf: tensor blk.0.attn_q.weight: type IQ4_NL", "use a file"])
        self.trimpot("diff", path, "q4_0.gguf")

    def test_fit_of_published_shapes(self):
        out, _ = self.trimpot("fit", "--shape", "llama-65b", "--method", "peqa", "--bits", "4", "--json")
        report = json.loads(out)
        self.assertEqual(report["learnable"], 6799360)
        self.assertEqual(report["base_bytes"], sum(item["bytes"] for item in report["storage"]))
        out, _ = self.trimpot("fit", "--shape", "llama-65b", "--method", "peqa", "--bits", "4")
        self.assertIn(b"33.45 GB", out)
        self.assertIn(b"6.80 million learnable", out)
        out, _ = self.trimpot("fit", "--shape", "llama-65b", "--table", "--json")
        self.assertEqual([row["method"] for row in json.loads(out)],
                         ["Full fine-tuning", "PEFT", "PEFT+PTQ", "PTQ+PEFT", "PEQA"])
        out, _ = self.trimpot("fit", "--shape", "llama2-7b", "--method", "lora", "--lora-r", "8",
                              "--target-modules", "q_proj,v_proj", "--json")
        self.assertEqual(json.loads(out)["learnable"], 32 * 2 * 8 * 2 * 4096)
        self.fails("fit", "--shape", "gpt-4", says="there are llama-7b")
        self.fails("fit", "--shape", "llama-7b", "--method", "qeft", "--weak-columns", "5000", says="4096 columns")
        self.fails("fit", "--shape", "llama-7b", "--group-size", "100", says="multiple of 32")
        for args in ((), ("-m", "toy.gguf", "--shape", "llama-7b"), ("-m", "toy.gguf", "--table"),
                     ("--shape", "llama-7b", "--teacher", "toy.gguf"),
                     ("--shape", "llama-7b", "--precision", "f32"),
                     ("--shape", "llama-7b", "--table", "--method", "qeft")):
            self.trimpot("fit", *args, code=2)

    def test_fit_of_every_method(self):
        def total(*args):
            out, _ = self.trimpot("fit", "-m", "toy.gguf", "--json", "-t", "1", "--method", *args)
            report = json.loads(out)
            self.assertEqual(report["total_bytes"], sum(item["bytes"] for item in report["items"]))
            return report["total_bytes"]

        self.assertGreater(total("peqa-both"), total("peqa"))
        self.assertGreater(total("lora", "--lora-r", "16"), total("lora", "--lora-r", "4"))
        self.assertGreater(total("lora", "--lora-r", "4"),
                           total("lora", "--lora-r", "4", "--target-modules", "q_proj,v_proj"))
        self.assertGreater(total("qeft", "--weak-columns", "8"), total("qeft", "--weak-columns", "4"))
        self.assertGreater(total("peqa", "--teacher", "f16.gguf"), total("peqa"))
        self.assertGreater(total("full"), total("peqa"))
        self.assertNotEqual(total("qat"), total("qat", "--bits", "8", "--group-size", "32"))
        self.fails("fit", "-m", "toy.gguf", "--method", "qeft", says=["toy.gguf", "--weak-columns 16"])
        self.fails("fit", "-m", "toy.gguf", "--method", "nonsense", says="peqa-both, qeft, lora")
        self.fails("fit", "-m", "f16.gguf", "--method", "qlora", says="is not quantized")

    def test_own_file_end_to_end(self):
        self.trimpot("quantize", "f16.gguf", "own.gguf", "--method", "qeft", "--group-size", "32",
                     "--weak-columns", "4", "--calib", "text.txt", "--calib-samples", "2",
                     "--calib-length", "64", "-q")
        self.fails("quantize", "f16.gguf", "wide.gguf", "--method", "rtn", "--group-size", "4096",
                   says=["--group-size 4096", "-1"])
        out, _ = self.trimpot("inspect", "own.gguf", "--json")
        model = json.loads(out)
        self.assertEqual((model["format"], model["architecture"], model["can_run"]), ("trimpot", "llama", True))
        out, _ = self.trimpot("inspect", "f16.gguf", "--json")
        self.assertEqual(model["parameters"], json.loads(out)["parameters"])
        own = model["quantization"]
        self.assertEqual([(kind["bits"], kind["group_size"], kind["zeros"], kind["layers"])
                          for kind in own["linear"]], [(4, 32, "zero-points", 14)])
        self.assertTrue(own["reordered"])
        self.assertEqual((own["weak_columns"]["least"], own["weak_columns"]["most"]), (4, 4))
        lists = {(entry["layer"], entry["tensor"]): entry["channels"]
                 for entry in model["linear_layers"]["weak_columns"]}
        self.assertEqual(len(lists), 8)
        # Original channels: what reads the residual stream shares them in a reordered model.
        self.assertEqual(len({tuple(lists[i, name]) for i in range(2) for name in ("attn_q", "ffn_gate")}), 1)
        self.assertEqual({len(set(channels)) for channels in lists.values()}, {4})
        self.assertEqual(sum(part["bytes"] for part in own["parts"]), model["tensor_bytes"])
        self.assertIn("qeft", model["tuning"])
        self.assertIn("weak columns", model["not_tunable"]["full"])
        text, _ = self.trimpot("inspect", "own.gguf")
        for part in (b"4-bit codes, groups of 32, zero-points (14 layers)", b"4 in every layer", b"weak columns"):
            self.assertIn(part, text)

        tuned = ("tune", "-m", "own.gguf", "--data", "data.jsonl", "--max-steps", "2", "--batch-size", "4", "-q")
        self.trimpot(*tuned, "-o", "own-tuned.gguf", "--method", "qeft")
        out, _ = self.trimpot("diff", "own.gguf", "own-tuned.gguf", "--json")
        diff = json.loads(out)
        self.assertTrue(diff["only_tuned"])
        self.assertIn("only weak columns differ", diff["summary"])
        self.trimpot(*tuned, "-o", "own.safetensors", "--method", "lora", "--lora-r", "2")
        out, _ = self.trimpot("inspect", "own.safetensors", "--json")
        self.assertEqual(json.loads(out)["kinds"], {"lora_a": 14, "lora_b": 14})

    def test_files_of_one_scheme(self):
        """Catches: layers that are left as they were under the bits of those that were trained anew, a
        head in groups whose channels are reordered with nothing to say what it was."""
        self.trimpot("quantize", "f16.gguf", "four.gguf", "--method", "rtn", "--group-size", "32")
        qat = ("tune", "-m", "four.gguf", "--data", "data.jsonl", "-o", "x.gguf", "--method", "qat",
               "--target-modules", "down_proj", "--max-steps", "1", "--lr", "1e-6", "--val-size", "0")
        self.fails(*qat, "--bits", "3", "--group-size", "32", says="--bits 4 --group-size 32")
        self.fails(*qat, "--group-size", "64", says="one scheme")
        self.trimpot(*qat, "--group-size", "32")
        self.trimpot("quantize", "f16.gguf", "moved.gguf", "--method", "qeft", "--weak-columns", "4",
                     "--group-size", "32", "--head-type", "q4", "--calib", "text.txt", "--calib-length", "64")
        self.fails("quantize", "moved.gguf", "y.gguf", "--method", "f32", says="--head-type")
        self.trimpot("quantize", "moved.gguf", "y.gguf", "--method", "f32", "--head-type", "f32")

    def test_bad_data(self):
        cases = {
            "first.jsonl": ('"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b"}\n', ":1"),
            "broken.jsonl": ('{"prompt": "a", "completion": "b"}\n{"prompt": oops}\n', ":2"),
            "fields.jsonl": ('{"prompt": "a"}\n', ":1"),
            "empty.jsonl": ("\n\n", "empty.jsonl"),
            "long.jsonl": (json.dumps({"prompt": "p" * 5000, "completion": "c"}), "long.jsonl"),
            "latin.jsonl": (b'{"prompt": "\xe9", "completion": "b"}\n', "latin.jsonl"),
        }
        for name, (text, says) in cases.items():
            self.write(name, text)
            self.fails("tune", "-m", "toy.gguf", "--data", name, "-o", "x.gguf", "--max-seq-length", "128",
                       says=says)
        self.fails("tune", "-m", "toy.gguf", "--data", "missing.jsonl", "-o", "x.gguf", says="missing.jsonl")
        self.fails("eval", "match", "-m", "toy.gguf", "--data", "text.txt", says="text.txt")
        self.fails("eval", "ppl", "-m", "toy.gguf", "-f", "broken.jsonl", says="tokens")

    def test_bad_outputs_and_options(self):
        tune = ("tune", "-m", "toy.gguf", "--data", "data.jsonl")
        self.fails(*tune, "-o", "x.bin", says=".gguf")
        self.fails(*tune, "-o", "toy.gguf", says="an input, toy.gguf")
        self.fails(*tune, "-o", "f16.gguf", "--teacher", "f16.gguf", says="an input, f16.gguf")
        self.fails("eval", "report", "-o", "data.jsonl", "a=data.jsonl", says=".html")
        self.fails("eval", "choice", "-m", "toy.gguf", "--task", "arc", "-f", "data.jsonl", "-o", "toy.gguf",
                   says="an input, toy.gguf")
        self.fails(*tune, "-o", "o" * 250 + ".gguf", says="cannot write")
        self.fails(*tune, "-o", "x.gguf", "--lora-r", "8", says="--lora-r: belongs to")
        self.fails("quantize", "f16.gguf", "x.gguf", "--method", "nf4", "--bits", "3", says="--bits")
        for option, value in (("--max-steps", "-1"), ("--save-steps", "1.5"), ("--lr", "nan")):
            self.fails(*tune, "-o", "x.gguf", option, value, says=value, code=2)
        self.fails("run", "-m", "toy.gguf", "-p", "a", "--temp", "nan", says="nan", code=2)
        self.fails("foo", says='no command "foo"', code=2)
        self.fails("eval", "foo", says="trimpot eval --help", code=2)
        self.fails(*tune, "-o", "no/such/folder/x.gguf", says="no/such/folder")
        self.fails(*tune, "-o", "x.gguf", "--lr", "0", says="learning rate")
        self.fails(*tune, "-o", "x.gguf", "--target-modules", "nose", says="nose")
        self.fails(*tune, "-o", "x.gguf", "--max-seq-length", "100000", says="context")
        self.fails(*tune, "-o", "x.gguf", "--max-steps", "3", "--lr", "1e30", says="learning rate")
        self.fails("tune", "-m", "q4_0.gguf", "--data", "data.jsonl", "-o", "x.gguf", "--method", "peqa-zero",
                   says="fixed")
        self.fails("tune", "-m", "f16.gguf", "--data", "data.jsonl", "-o", "x.gguf", says="quantized")
        self.fails("run", "-m", "toy.gguf", "-p", "x", "-n", "100000", says="context")
        self.fails("run", "-m", "toy.gguf", "--adapter", "toy.gguf", "-p", "x", says="toy.gguf")
        if os.path.exists("/dev/full"):
            with open("/dev/full", "wb") as full:
                done = subprocess.run([TRIMPOT, "inspect", "toy.gguf"], stdout=full, stderr=subprocess.PIPE,
                                      cwd=self.folder)
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"standard output", done.stderr)

    def test_closed_standard_files(self):
        """Catches: progress that is written into the model, whose file got standard error's number."""
        quantize = ("quantize", "f16.gguf")
        self.trimpot(*quantize, "whole.gguf", "--method", "rtn", "--group-size", "32")
        done = subprocess.run(["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", TRIMPOT, *quantize, "closed.gguf",
                               "--method", "rtn", "--group-size", "32"], cwd=self.folder,
                              stdout=subprocess.DEVNULL, timeout=120)
        self.assertEqual(done.returncode, 0)
        self.assertEqual((self.folder / "closed.gguf").read_bytes(), (self.folder / "whole.gguf").read_bytes())

    def test_names_of_any_bytes(self):
        name = b"bad\xff.gguf"
        args = ["tune", "-m", "toy.gguf", "--data", "data.jsonl", "--max-steps", "1", "--json", "-q", "-o"]
        done = subprocess.run([TRIMPOT.encode(), *map(str.encode, args), name], cwd=self.folder,
                              capture_output=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(json.loads(done.stdout.decode())["finished"])

    def test_a_terminated_quantize_leaves_nothing(self):
        process = subprocess.Popen([TRIMPOT, "quantize", "f16.gguf", "ended.gguf", "--method", "qeft",
                                    "--weak-columns", "4", "--group-size", "32", "--calib", "text.txt",
                                    "--calib-length", "64", "--calib-samples", "100000"],
                                   cwd=self.folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(self.folder.glob("ended.gguf*")):
            time.sleep(0.001)
        process.terminate()
        process.wait(60)
        self.assertEqual([path.name for path in self.folder.glob("ended.gguf.partial*")], [])

    def test_an_output_that_fails_keeps_what_was_learned(self):
        """The disk is full when the training is over: a checkpoint has it, and --resume writes it."""
        args = [TRIMPOT, "tune", "-m", "toy.gguf", "--data", "data.jsonl", "-o", "full.gguf", "--max-steps", "2",
                "--run-dir", "full.run", "-q"]
        limited = subprocess.run(["/bin/sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *args], cwd=self.folder,
                                 capture_output=True, timeout=120)
        self.assertEqual(limited.returncode, 1, limited.stderr)
        self.assertIn(b"--resume", limited.stderr)
        self.trimpot(*args[1:], "--resume")
        self.assertFalse(list(self.folder.glob("full.gguf.partial*")))

    def test_time_of_start(self):
        start = time.time()
        self.trimpot("--version")
        self.assertLess(time.time() - start, 5)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=2)
