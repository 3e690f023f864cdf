"""A page in headless Chromium, driven through the DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. `requests` lists the address of everything that it loaded, `problems` what its console complained of."""

    def __init__(self, address: str, profile: Path):
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen([EXECUTABLE, *options, "about:blank"], stderr=subprocess.PIPE, text=True)
        endpoint = next(filter(None, (re.search(r"ws://([^/]+)", line) for line in self.process.stderr)))[1]
        with urllib.request.urlopen(f"http://{endpoint}/json/list") as answer:
            target = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        self.numbers = itertools.count()
        self.requests: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=address)

    def send(self, method: str, **params: Any) -> dict:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(message["params"]["exceptionDetails"]["text"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"]["text"])
            if message.get("id") == number:
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, of a promise what it promised."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.send("Runtime.evaluate", **asked)["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Until a JavaScript expression is true."""
        until = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.02)

    def visit(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.wait_for(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def prefer(self, scheme: str) -> None:
        """`scheme`: light or dark."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def barriers(self, axe: str) -> list[str]:
        """What axe, whose script is handed in, finds serious or worse: its rule and the first element."""
        self.evaluate(axe + "; null")
        found = json.loads(self.evaluate("axe.run().then((found) => JSON.stringify(found.violations))"))
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in serious]

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Moves the pressed mouse over an element, between points given as shares of its sides."""
        found = f"JSON.stringify(document.querySelector('{selector}').getBoundingClientRect())"
        box = json.loads(self.evaluate(found))
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
        moves = (("mousePressed", points[0]), ("mouseMoved", points[1]), ("mouseReleased", points[1]))
        for kind, (x, y) in moves:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path: Path) -> None:
        whole = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(whole["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
