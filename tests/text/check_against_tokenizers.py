#!/usr/bin/env python3
"""Compares text_check with PyPI's `tokenizers` and Jinja2.

  check_against_tokenizers.py --program build/.../text_check --text wikitext2-test.txt MODEL.gguf...

Every MODEL is compared on the whole text file and on 10,000 generated strings, with and without
control tokens recognised; on MODEL.gguf.inp and .out where they lie beside it (llama.cpp's
vocabularies have them: models/ggml-vocab-*.gguf in the source package of llama-cpp-python); and on
conversations where it has a chat template. Needs gguf, tokenizers, jinja2."""

import argparse
import json
import os
import subprocess
import sys

import oracle

CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")],
    [("user", "\n\nleading lines"), ("assistant", "  two spaces"), ("user", "trailing \n")],
    [("user", ""), ("assistant", ""), ("tool", "{\"a\": 1}")],
    [("assistant", "It's 2024\u0301.\n"), ("system", "late"), ("user", "e\u0301 \uac00\u11a8")],
    [("system", "\tx"), ("assistant", "\n"), ("assistant", "\r\n\r\n a")],
    [],
]


def run(arguments, requests):
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(arguments, input=lines, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(label, tokenizer, program, path, cases, covered):
    answers = run([program, "encode", path],
                  [{"text": text, "parse_special": parse} for text, parse in cases])
    wrong = len(cases) - len(answers)
    for (text, parse), answer in zip(cases, answers):
        tokenizer.encode_special_tokens = not parse
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        normalizer = tokenizer.normalizer
        # Special tokens are cut out before normalizing, so look at the text as a whole only where
        # there is none.
        want = normalizer.normalize_str(text) if normalizer else text
        back = answer["decoded"] == want or (normalizer and "<|" in text) or not covered(text)
        if answer["ids"] != expected or not back:
            wrong += 1
            if wrong <= 3:
                pairs = enumerate(zip(answer["ids"], expected))
                at = next((i for i, (a, b) in pairs if a != b), -1)
                print(f"  {text[:200]!a} parse={parse}: differs at token {at}:",
                      answer["ids"][max(at - 2, 0):at + 6], expected[max(at - 2, 0):at + 6],
                      "decoded back" if back else f"decoded as {answer['decoded'][:200]!a}")
    print(f"  {label}: {len(cases)} texts, {wrong} wrong")
    return wrong


def chat(tokenizer, program, path, template):
    import jinja2.sandbox
    rendered = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True).from_string(template)
    wrong = count = 0
    tokenizer.encode_special_tokens = False
    end = tokenizer.token_to_id("<|im_end|>")
    for prompt in (False, True):
        requests = [{"messages": [{"role": r, "content": c} for r, c in conversation],
                     "prompt": prompt} for conversation in CONVERSATIONS]
        for request, answer in zip(requests, run([program, "chat", path], requests)):
            text = rendered.render(messages=request["messages"], add_generation_prompt=prompt)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            learned = [i for i, flag in zip(answer["ids"], answer["learned"]) if flag]
            ends = sum(m["role"] == "assistant" for m in request["messages"])
            good = answer["text"] == text and answer["ids"] == ids and learned.count(end) == ends
            count += 1
            if not good:
                wrong += 1
                print(f"  {request}: {answer} instead of {text!r} {ids}")
    print(f"  chat template: {count} conversations, {wrong} wrong")
    return wrong


def check(path, arguments):
    pre, tokens, types, merges, template = oracle.read(path)
    print(f"{os.path.basename(path)} ({pre})")
    tokenizer = oracle.build(pre, tokens, types, merges)
    special = [token for token, kind in zip(tokens, types) if kind != oracle.NORMAL]
    stand_ins = {character: byte for byte, character in oracle.stand_ins()}
    have = {stand_ins[t] for t in tokens if t in stand_ins}
    covered = lambda text: all(byte in have for byte in text.encode())
    wrong = 0
    if arguments.text:
        text = open(arguments.text, encoding="utf-8", newline="").read()
        wrong += compare("text file", tokenizer, arguments.program, path,
                         [(text, True), (text, False)], covered)
    cases = [(text, index % 2 == 0) for index, text in
             enumerate(oracle.strings(arguments.count, special, arguments.seed))]
    cases += [(text, True) for text in oracle.long_words(arguments.seed)]
    wrong += compare("generated", tokenizer, arguments.program, path, cases, covered)
    if os.path.exists(path + ".inp"):
        texts = open(path + ".inp", encoding="utf-8", newline="").read()
        texts = texts.split("\n__ggml_vocab_test__\n")
        lines = open(path + ".out", encoding="utf-8").read().split("\n")
        answers = run([arguments.program, "encode", path],
                      [{"text": text, "parse_special": False} for text in texts])
        bad = [text for text, line, answer in zip(texts, lines, answers)
               if answer["ids"] != [int(word) for word in line.split()]]
        print(f"  llama.cpp's expected ids: {len(texts)} texts, {len(bad)} wrong", bad[:2] or "")
        wrong += len(bad)
    if template:
        wrong += chat(tokenizer, arguments.program, path, template)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True, help="the built text_check")
    parser.add_argument("--text", help="a UTF-8 text file to compare as a whole")
    parser.add_argument("--count", type=int, default=10000, help="generated strings per model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("models", nargs="+", help="GGUF files")
    arguments = parser.parse_args()
    sys.exit(1 if sum(check(path, arguments) for path in arguments.models) else 0)


if __name__ == "__main__":
    main()
