#!/usr/bin/env python3
"""Makes golden.json: a small byte-level vocabulary and the ids that PyPI's `tokenizers` gives for
it under every supported pre-tokenizer, so that the unit tests need neither Python nor a download.

  make_golden.py golden.json [--gguf FOLDER]

--gguf also writes the vocabulary as one GGUF file per pre-tokenizer, for
check_against_tokenizers.py: the only way to try "default" there, which no real vocabulary uses.
Needs gguf and tokenizers (made with 0.23.3)."""

import argparse
import json
import os

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import oracle

TEXT = """The scale of a group is one number for thirty-two weights. It isn't much, but there are
millions of groups, and they're enough: we've seen a model learn a new task from its scales alone.
I'll show how: read the file, keep the codes, learn the scales, write the same bytes back. It's the
file that you'd had before, with 20 percent of 98 megabytes changed. Don't trust it, measure it!
    for (int row = 0; row < rows; ++row) {
        float sum = 0.0f;
        for (int column = 0; column < columns; ++column) sum += weight[row][column] * input[column];
        output[row] = sum;
    }
Der Ma\u00dfstab einer Gruppe ist eine Zahl f\u00fcr zweiunddrei\u00dfig Gewichte.
\u00c7a va \u00eatre long.
\u041c\u0430\u0441\u0448\u0442\u0430\u0431 \u0433\u0440\u0443\u043f\u043f\u044b.
\u041c\u0430\u0441\u0448\u0442\u0430\u0431 \u0441\u043b\u043e\u044f.
\u5c3a\u5ea6\u5f88\u5c0f\uff0c\u6a21\u578b\u5f88\u5927\u3002\u5c3a\u5ea6\u5f88\u5c0f\u3002
1 22 333 4444 55555 2024 2025 2026 1000000 3.14 100% $5 == != -> // ... --- ''' \"\"\" (()) [[]]
"""
# Single bytes that the vocabulary lacks: encoding drops them.
MISSING = (0x07, 0x1b, 0xf9)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "<tool>>", "naming"]
PRE = ["gpt-2", "smollm", "llama-bpe", "qwen2", "default"]


def vocabulary():
    spelled = dict(oracle.stand_ins())
    alphabet = [spelled[byte] for byte in range(256) if byte not in MISSING]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(oracle.Regex(oracle.LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=len(alphabet) + 320, initial_alphabet=alphabet, show_progress=False))
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = CONTROL + alphabet + [merge.replace(" ", "") for merge in merges]
    # A token that no merge makes: only ignore_merges (llama-bpe) ever yields it.
    tokens += ["zq"] + USER_DEFINED
    types = ([oracle.CONTROL] * len(CONTROL) +
             [oracle.NORMAL] * (len(tokens) - len(CONTROL) - len(USER_DEFINED)) +
             [oracle.USER_DEFINED] * len(USER_DEFINED))
    return tokens, types, merges


def texts():
    yield from ["", " ", "a", "zq", " zq zqzq", "the scale's", "'S'T'RE'VE'M'LL'D 're'x",
                "x'\u017f'\u017ft",
                "12 1234567 \u0661\u0662\u0663\u0664", "a  b   c\n\n\nd \n e\r\n\r\n",
                "  ", "\n \n",
                "\t\tx",
                "<|im_start|>user\nHi<|im_end|>\n", "<tool>><tool><tool", "naming names",
                "\x07bell\x1b\x07the",
                "e\u0301a\u0300\u0323 \u1100\u1161\u11a8 \u212b \uac00\u11a8",
                "\u7121\u8a00 \u0301x", "x\u0085y\u00a0z\u200bw", "\U00011de0\U00011de1 \U00016d70",
                "!!!\n\n??\r\nx", " !x", "$a+b<c=d>e^f~g|h", "the" * 40, "ab1" * 40]
    yield from oracle.strings(40, CONTROL + USER_DEFINED, 7)


def write_gguf(path, pre, tokens, types, merges):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("--gguf", metavar="FOLDER")
    arguments = parser.parse_args()
    tokens, types, merges = vocabulary()
    cases = []
    tokenizers = {pre: oracle.build(pre, tokens, types, merges) for pre in PRE}
    for index, text in enumerate(texts()):
        parse = index % 2 == 1
        ids = {}
        for pre, tokenizer in tokenizers.items():
            tokenizer.encode_special_tokens = not parse
            ids[pre] = tokenizer.encode(text, add_special_tokens=False).ids
        # Only what differs from gpt-2's ids is written down.
        ids = {pre: value for pre, value in ids.items() if pre == "gpt-2" or value != ids["gpt-2"]}
        cases.append({"text": text, "parse_special": parse, "ids": ids})
    with open(arguments.output, "w", encoding="ascii") as out:
        vocabulary_lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in
                                      (("tokens", tokens), ("token_type", types),
                                       ("merges", merges), ("pre", PRE)))
        out.write("{" + vocabulary_lines + ',\n"cases": [\n' +
                  ",\n".join(json.dumps(case) for case in cases) + "\n]}\n")
    if arguments.gguf:
        for pre in PRE:
            write_gguf(os.path.join(arguments.gguf, f"golden-{pre}.gguf"), pre, tokens, types,
                       merges)


if __name__ == "__main__":
    main()
