#!/usr/bin/env python3
"""Load on a server of OpenAI's API on this machine: N clients, each asking one request after the
other, with the adapters in turn; tokens per second and time to first token. Works with trimpot serve
and llama-server alike.

  scripts/serve_load.py http://127.0.0.1:8080 --clients 8 --adapters a,b,c --requests 4
  scripts/serve_load.py URL --clients 64 --seconds 60 --verify   # every answer against the same alone
"""
import argparse
import http.client
import json
import random
import sys
import threading
import time
import urllib.parse

WORDS = ("time year people way day man thing woman life child world school state family student group "
         "country problem hand part place case week company system program question work number night "
         "point home water room mother area money story fact month lot right study book eye job word "
         "business issue side kind head house service friend father power hour game line end").split()


def prompt_of(number, characters):
    """Always the same text for a number; all begin differently."""
    draw = random.Random(number)
    text = f"Story {number}:"
    while len(text) < characters:
        text += " " + draw.choice(WORDS)
    return text[:characters]


class Client:
    def __init__(self, options, address):
        self.options = options
        self.address = address
        self.connection = None

    def post(self, body, headers):
        """Once more on a new connection if the server closed the old one after its last answer, as llama-server does."""
        for last in (False, True):
            try:
                self.connection.request("POST", "/v1/completions", body, headers)
                return self.connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError):
                if last:
                    raise
                self.connection.close()

    def ask(self, number, model):
        """(text, tokens, seconds to first token, seconds) of a streamed completion."""
        options = self.options
        body = {"prompt": prompt_of(number, options.characters), "max_tokens": options.tokens, "stream": True,
                "stream_options": {"include_usage": True}, "seed": number, "temperature": options.temperature}
        if model:
            body["model"] = model
        if options.ignore_eos:
            body["ignore_eos"] = True
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.address, timeout=300)
        headers = {"Content-Type": "application/json"}
        if options.api_key:
            headers["Authorization"] = "Bearer " + options.api_key
        begin = time.monotonic()
        reply = self.post(json.dumps(body), headers)
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.read()[:300]!r}")
        text, tokens, first = "", 0, None
        for line in reply:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event.get("choices"):
                if first is None:
                    first = time.monotonic() - begin
                text += event["choices"][0].get("text") or ""
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
        return text, tokens, first, time.monotonic() - begin


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--adapters", default="", help="names, comma-separated; client i asks the i-th; empty: base")
    parser.add_argument("--requests", type=int, default=4, help="per client")
    parser.add_argument("--seconds", type=float, default=0, help="instead of --requests: as many as this long allows")
    parser.add_argument("--characters", type=int, default=300, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--ignore-eos", action="store_true", help="for servers that know it (llama-server)")
    parser.add_argument("--distinct", type=int, default=0, help="prompts that differ; 0: all do")
    parser.add_argument("--verify", action="store_true", help="ask everything again, alone: it has to be the same")
    parser.add_argument("--api-key", default="")
    options = parser.parse_args()
    url = urllib.parse.urlparse(options.url)
    if url.hostname not in ("127.0.0.1", "localhost", "::1"):
        sys.exit("this puts load on a server; it only does so on this machine")
    models = options.adapters.split(",")
    results, errors, lock = [], [], threading.Lock()
    start = threading.Barrier(options.clients + 1)

    def work(client_number):
        client = Client(options, url.netloc)
        start.wait()
        until = time.monotonic() + options.seconds
        for turn in range(1 << 30 if options.seconds else options.requests):
            if options.seconds and time.monotonic() >= until:
                return
            number = turn * options.clients + client_number
            if options.distinct:
                number %= options.distinct
            model = models[client_number % len(models)]
            try:
                result = (number, model, *client.ask(number, model))
            except Exception as error:  # counted and shown
                with lock:
                    errors.append(f"{type(error).__name__}: {error}")
                client = Client(options, url.netloc)
                continue
            with lock:
                results.append(result)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(options.clients)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.monotonic()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    tokens = sum(result[3] for result in results)
    first = [result[4] for result in results if result[4] is not None]
    report = {"clients": options.clients, "requests": len(results), "errors": len(errors), "seconds": round(seconds, 2),
              "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1),
              "ttft_p50": round(percentile(first, 0.5), 3), "ttft_p95": round(percentile(first, 0.95), 3),
              "latency_p50": round(percentile([r[5] for r in results], 0.5), 3)}
    if options.verify:
        client, seen, wrong = Client(options, url.netloc), {}, 0
        for number, model, text, *_ in results:
            if (number, model) not in seen:
                seen[number, model] = client.ask(number, model)[0]
            wrong += seen[number, model] != text
        report.update(distinct=len(seen), different_from_alone=wrong)
    print(json.dumps(report))
    for error in errors[:5]:
        print(error, file=sys.stderr)
    sys.exit(1 if errors or report.get("different_from_alone") else 0)


if __name__ == "__main__":
    main()
