#!/usr/bin/env python3
"""The real openai client against the real model, over a socket of this machine.

usage: client_test.py TRIMPOT     the model's path in TRIMPOT_MODEL; skipped without, and without `openai`.
TRIMPOT_ADAPTER: an adapter of that model (else one is made by tuning two steps).
"""
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

try:
    import openai
except ImportError:
    openai = None

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def make_adapter(trimpot, model, folder):
    data, adapter = folder / "train.jsonl", folder / "adapter.safetensors"
    data.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"Say {i}."},
                                                     {"role": "assistant", "content": f"{i}!"}]}) + "\n"
                            for i in range(16)))
    subprocess.run([trimpot, "tune", "-m", model, "--data", data, "-o", adapter, "--max-steps", "2", "-q"], check=True)
    return adapter


def check_basics(client, base):
    models = client.models.list().data
    assert [model.id for model in models] == [base, "tuned"], models
    assert models[1].parent == base
    whole = client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_tokens=24)
    text = whole.choices[0].message.content
    assert len(text) > 20, text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    pieces, usage = [], None
    for chunk in client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_tokens=24, stream=True,
                                                stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        pieces += [choice.delta.content for choice in chunk.choices]
    assert "".join(pieces) == text and len(pieces) > 5
    assert usage.completion_tokens == whole.usage.completion_tokens

    done = client.completions.create(model=base, prompt=["The capital of France is", "Two and two is"], max_tokens=4,
                                     temperature=0, logprobs=2, echo=True)
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.choices[0].text.startswith("The capital of France is Paris")
    logprobs = done.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert "".join(logprobs.tokens) == done.choices[0].text
    assert all(done.choices[0].text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens))

    scored = client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_tokens=3, logprobs=True,
                                            top_logprobs=3).choices[0].logprobs.content
    assert len(scored) == 3 and scored[0].logprob == scored[0].top_logprobs[0].logprob
    stopped = client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_tokens=24,
                                             stop=[text[10:15]])
    assert stopped.choices[0].message.content == text[:text.index(text[10:15])]
    several = client.chat.completions.create(model=base, messages=QUESTION, seed=1, n=3, max_tokens=12, temperature=1.5)
    again = client.chat.completions.create(model=base, messages=QUESTION, seed=1, n=3, max_tokens=12, temperature=1.5)
    assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]
    assert len({c.message.content for c in several.choices}) > 1
    for wrong, error in (({"model": "nobody"}, openai.NotFoundError), ({"temperature": -1}, openai.BadRequestError)):
        try:
            client.chat.completions.create(**{"model": base, "messages": QUESTION, **wrong})
        except error as refused:
            assert refused.body["message"], refused.body
        else:
            raise AssertionError(f"{wrong} was accepted")


def check_load(client, names, clients=64):
    """Every answer under load is that of the same request alone."""
    def ask(i):
        done = client.completions.create(model=names[i % len(names)], prompt=f"Story {i % 16}: once upon a time",
                                         max_tokens=16, temperature=0.8, seed=i % 16)
        return done.choices[0].text
    alone = {(i % len(names), i % 16): ask(i) for i in range(16 * len(names))}
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for i, text in enumerate(pool.map(ask, range(2 * clients))):
            assert text == alone[i % len(names), i % 16], i


def main(trimpot):
    model = os.environ.get("TRIMPOT_MODEL", "")
    if openai is None or not os.path.exists(model):
        print("needs the package openai and TRIMPOT_MODEL: skipped")
        return 77
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        adapter = os.environ.get("TRIMPOT_ADAPTER") or make_adapter(trimpot, model, folder)
        server = subprocess.Popen([trimpot, "serve", "-m", model, "--adapter", f"tuned={adapter}", "--port", "0",
                                   "--api-key", "secret", "--metrics"], stderr=subprocess.PIPE, text=True)
        try:
            for line in server.stderr:
                print(line, end="")
                if found := re.search(r"http://\S+", line):
                    break
            base = pathlib.Path(model).stem
            client = openai.OpenAI(base_url=found[0] + "/v1", api_key="secret", max_retries=0)
            check_basics(client, base)
            check_load(client, [base, "tuned"])
            try:
                openai.OpenAI(base_url=found[0] + "/v1", api_key="wrong", max_retries=0).models.list()
            except openai.AuthenticationError:
                pass
            else:
                raise AssertionError("a wrong key was accepted")
        finally:
            server.send_signal(signal.SIGINT)
            rest = server.communicate(timeout=60)[1]
        assert server.returncode == 0, (server.returncode, rest)
    print("openai", openai.__version__, "ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
