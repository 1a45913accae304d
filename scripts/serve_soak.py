#!/usr/bin/env python3
"""A long mixed load on trimpot serve on this machine: answers of all kinds, clients that leave in the
middle, adapters that come and go. No answer may be lost or differ from the first of the same request,
and memory may not grow after the first minute.

  scripts/serve_soak.py http://127.0.0.1:8080 --pid PID --adapter FILE --minutes 20
"""
import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time
import urllib.parse


def post(address, path, body, read=True):
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    if not read:  # a few bytes of the answer, then gone
        reply.read(random.randrange(200))
        connection.close()
        return reply.status, None
    data = reply.read()
    connection.close()
    return reply.status, data


def request_of(number, model):
    """Always the same request for a number."""
    draw = random.Random(number)
    words = " ".join(draw.choice(("red", "stone", "river", "seven", "light", "of", "and", "the")) for _ in range(draw.randint(3, 80)))
    common = {"model": model, "seed": number, "max_tokens": draw.randint(1, 24), "temperature": draw.choice((0, 0.8))}
    kind = number % 4
    if kind == 0:
        return "/v1/chat/completions", {**common, "messages": [{"role": "user", "content": words}]}
    if kind == 1:
        return "/v1/completions", {**common, "prompt": words, "echo": True, "logprobs": 1}
    if kind == 2:
        return "/v1/completions", {**common, "prompt": [words, words[:40]], "n": 2}
    return "/v1/completions", {**common, "prompt": words, "stream": True}


def content(data):
    """What has to be the same every time."""
    if data.startswith(b"data:"):
        events = [json.loads(line[6:]) for line in data.split(b"\n\n") if line.startswith(b"data: {")]
        if not data.endswith(b"data: [DONE]\n\n"):
            raise RuntimeError("a stream was cut")
        return "".join(event["choices"][0]["text"] for event in events)
    return json.dumps(json.loads(data)["choices"])


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


def slope(points):
    """Least squares: adapters come and go, so single values differ by what a few of them take."""
    if len(points) < 2:
        return None
    middle, mean = (statistics.fmean(axis) for axis in zip(*points))
    return round(sum((x - middle) * (y - mean) for x, y in points) / sum((x - middle) ** 2 for x, _ in points), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--adapter", required=True, help="a file that the server may load")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--distinct", type=int, default=60, help="requests that differ")
    options = parser.parse_args()
    address = urllib.parse.urlparse(options.url).netloc
    if urllib.parse.urlparse(options.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        sys.exit("this puts load on a server; it only does so on this machine")
    until = time.monotonic() + 60 * options.minutes
    counts = {"answers": 0, "left": 0, "loads": 0, "refused": 0, "wrong": 0, "errors": 0}
    first, messages, lock = {}, [], threading.Lock()
    assert post(address, "/adapters", {"name": "kept", "path": options.adapter})[0] == 200

    def count(what, message=None):
        with lock:
            counts[what] += 1
            if message and len(messages) < 10:
                messages.append(message)

    def client(which):
        draw = random.Random(which)
        while time.monotonic() < until:
            number = draw.randrange(options.distinct)
            model = draw.choice(("", "kept", f"own{which}"))
            try:
                if model.startswith("own"):
                    post(address, "/v1/load_lora_adapter", {"lora_name": model, "lora_path": options.adapter})
                    count("loads")
                path, body = request_of(number, model)
                if draw.random() < 0.15:
                    post(address, path, body, read=False)
                    count("left")
                else:
                    status, data = post(address, path, body)
                    if status in (429, 503):
                        count("refused")
                        time.sleep(0.2)
                    elif status != 200:
                        count("errors", f"{status}: {data[:200]!r}")
                    else:
                        count("answers")
                        with lock:  # one file under several names: one function
                            same = first.setdefault((number, bool(model)), content(data)) == content(data)
                        if not same:
                            count("wrong", f"request {number} to {model!r}")
                if model.startswith("own") and draw.random() < 0.5:
                    post(address, "/v1/unload_lora_adapter", {"lora_name": model})
            except Exception as error:
                count("errors", f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=client, args=(i,)) for i in range(options.clients)]
    for thread in threads:
        thread.start()
    memory, begin = [], time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(5, max(0.1, until - time.monotonic())))
        memory.append((round(time.monotonic() - begin), round(resident(options.pid), 1)))
    settled = [(second / 60, megabytes) for second, megabytes in memory if second >= 60] or memory[-1:]
    values = [megabytes for _, megabytes in settled]
    report = {**counts, "minutes": options.minutes, "mb_after_a_minute": values[0], "mb_most_after": max(values),
              "mb_last": values[-1], "mb_per_minute": slope(settled)}
    for which in range(options.clients):
        post(address, "/v1/unload_lora_adapter", {"lora_name": f"own{which}"})
    report["mb_at_rest"] = round(resident(options.pid), 1)
    print(json.dumps(report))
    for message in messages:
        print(message, file=sys.stderr)
    sys.exit(1 if counts["wrong"] or counts["errors"] else 0)


if __name__ == "__main__":
    main()
