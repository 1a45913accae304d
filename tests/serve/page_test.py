#!/usr/bin/env python3
"""The web page in a real headless Chromium, by WebDriver: keyboard only, base and adapter side by side.

usage: page_test.py TRIMPOT MAKE_TOY_MODEL     skipped without chromedriver (Debian: chromium-driver).
TRIMPOT_MODEL with TRIMPOT_ADAPTER: instead of a toy. TRIMPOT_ARTEFACTS: a folder for a screenshot.
"""
import base64
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ENTER, TAB, SPACE, DOWN = "\ue007", "\ue004", " ", "\ue015"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    def __init__(self, folder):
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        for line in self.driver.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                break
        self.base = f"http://127.0.0.1:{found[1]}"
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,900",
                            f"--user-data-dir={folder}/profile"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}}
        self.session = "/session/" + self.call("POST", "/session", wanted)["sessionId"]

    def call(self, method, path, body=None):
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)["value"]

    def post(self, path, **body):
        return self.call("POST", self.session + path, body)

    def script(self, code, *arguments):
        return self.post("/execute/sync", script=code, args=list(arguments))

    def keys(self, text):
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def wait(self, code, what, seconds=60):
        until = time.monotonic() + seconds
        while not self.script("return " + code):
            assert time.monotonic() < until, "waited in vain for " + what
            time.sleep(0.05)

    def close(self):
        try:
            self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(10)


def make_toy_adapter(trimpot, model, folder):
    data, adapter = folder / "train.jsonl", folder / "toy.safetensors"
    data.write_text("".join(json.dumps({"messages": [{"role": "user", "content": "a"},
                                                     {"role": "assistant", "content": "b" * 8}]}) + "\n" for _ in range(16)))
    subprocess.run([trimpot, "tune", "-m", model, "--data", data, "-o", adapter, "--max-steps", "4", "-q"], check=True)
    return adapter


def check(browser, url):
    browser.post("/url", url=url + "/")
    browser.wait("document.getElementById('model').options.length == 2", "the list of models")
    # Everything that can be used has a name that a screen reader can say.
    unnamed = browser.script("""
      return [...document.querySelectorAll('button, input, select, textarea')].filter(
        e => !(e.textContent.trim() || e.labels?.length && e.labels[0].textContent.trim())).map(e => e.id)""")
    # A select's and textarea's own text is no name.
    unnamed += browser.script("""
      return [...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels?.length).map(e => e.id)""")
    assert not unnamed, unnamed
    assert browser.script("return document.documentElement.lang") == "en"
    assert browser.script("return document.activeElement.id") == "text", "the message is what one types into at first"

    browser.script("document.getElementById('model').focus()")
    browser.keys(DOWN + TAB + SPACE)
    assert browser.script("return document.getElementById('both').checked"), "the box by the keyboard"
    browser.script("document.getElementById('tokens').value = 40")
    browser.script("document.getElementById('text').focus()")
    browser.keys("Hello there." + ENTER)
    browser.wait("document.querySelectorAll('.card').length == 2", "two answers")
    browser.wait("document.querySelector('[aria-busy]') === null && !document.getElementById('send').disabled", "the end")
    names = browser.script("return [...document.querySelectorAll('.card h2')].map(e => e.textContent)")
    assert names[1] == "tuned" and names[0] != "tuned", names
    rates = browser.script("return [...document.querySelectorAll('.card .rate')].map(e => e.textContent)")
    print(names, rates)
    assert all(re.match(r"[\d.]+ tokens/s", rate) or rate == "" for rate in rates), rates
    assert browser.script("return document.getElementById('status').textContent") == "Both answers are there."
    assert browser.script("return document.activeElement.id") == "text", "ready for the next message"
    assert not browser.script("return document.querySelectorAll('.error').length")

    # A second turn, stopped. The page itself presses the button at the first piece of an answer: a toy's whole
    # answer may be there before another command of WebDriver is.
    browser.script("""
      document.getElementById('tokens').value = 2000;
      new MutationObserver((_, observer) => {
        if (!document.querySelectorAll('.card')[3]?.querySelector('.answer').childNodes.length) return;
        observer.disconnect();
        document.getElementById('stop').click();
      }).observe(document.getElementById('log'), {childList: true, subtree: true})""")
    browser.keys("Tell me more." + ENTER)
    browser.wait("!document.getElementById('send').disabled", "the stop")
    assert browser.script("return document.querySelectorAll('.card').length") == 4
    assert browser.script("return document.getElementById('status').textContent") == "Stopped."
    loud = [entry for entry in browser.post("/se/log", type="browser") if "favicon" not in entry["message"]]
    assert not loud, loud


def main(trimpot, make_toy_model):
    if not shutil.which("chromedriver"):
        print("needs chromedriver: skipped")
        return 77
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        model, adapter = os.environ.get("TRIMPOT_MODEL", ""), os.environ.get("TRIMPOT_ADAPTER", "")
        if not (os.path.exists(model) and os.path.exists(adapter)):
            model = folder / "toy.gguf"
            subprocess.run([make_toy_model, model], check=True)
            adapter = make_toy_adapter(trimpot, model, folder)
        server = subprocess.Popen([trimpot, "serve", "-m", model, "--adapter", f"tuned={adapter}", "--port", "0"],
                                  stderr=subprocess.PIPE, text=True)
        browser = None
        try:
            for line in server.stderr:
                if found := re.search(r"http://\S+", line):
                    break
            browser = Browser(folder)
            try:
                check(browser, found[0])
            finally:
                if artefacts := os.environ.get("TRIMPOT_ARTEFACTS"):
                    image = base64.b64decode(browser.call("GET", browser.session + "/screenshot"))
                    (pathlib.Path(artefacts) / "page.png").write_bytes(image)
        finally:
            if browser:
                browser.close()
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)
    print("page ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
