"""A real headless Chromium, driven over its debugging pipe: one start for many pages, every request recorded."""

import base64
import json
import os
import select
import shlex
import shutil
import subprocess
import time

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def find_chromium():
    """Its path: installed where root and apt can; skips without it, fails where CI must have it."""
    if not any(map(shutil.which, _NAMES)) and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in ("apt-get -qq update", "apt-get -qq install -y --no-install-recommends chromium"):
            # one at a time, as in tests/slurm/cluster.sh: two of them fail over apt's lists
            subprocess.run(
                ["flock", "/run/lock/labelgrid-apt", *command.split()],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
            )
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        text = "Chromium is not installed, and only root with apt can install it"
        pytest.fail(text) if os.environ.get("LABELGRID_REQUIRE_BROWSER") else pytest.skip(text)
    return found


class Browser:
    """One Chromium process."""

    def __init__(self, profile):
        to_us, from_it = os.pipe()
        to_it, from_us = os.pipe()
        command = [find_chromium(), *_QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {shlex.join(command)} 3<&{to_it} 4>&{from_it}"],
            pass_fds=(to_it, from_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_it)
        os.close(from_it)
        self._in, self._out = to_us, from_us
        self._rest, self._number, self.events = b"", 0, []

    def call(self, method, session=None, **params):
        """The result of a method of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(400)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium is gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def page(self, url, **settings):
        """A page that has loaded `url`."""
        return Page(self, url, **settings)

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self._in)
        os.close(self._out)


class Page:
    """One tab. `width`, `dark`, `script` are set before the page loads."""

    def __init__(self, browser, url, *, width=1300, height=900, dark=False, script=True):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        browser.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_event("Page.loadEventFired")

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def wait_event(self, name, seconds=400):
        while not any(event.get("method") == name for event in self.browser.events):
            self.browser.events.append(self.browser._receive(seconds))

    @property
    def requests(self):
        """Addresses the page asked for."""
        self.call("Runtime.evaluate", expression="1")  # brings in what happened so far
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self):
        """Errors of scripts and of the console."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.browser.events if event.get("method") in kinds]

    def value(self, expression):
        """What a JavaScript expression comes to."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self):
        """All that can be read on the page, inside custom elements too."""
        return self.value(_ALL_TEXT)

    def wait_for(self, words, seconds=400):
        """Until every one of `words` can be read."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = self.text()
            missing = [word for word in words if word not in text]
            if not missing:
                return text
            time.sleep(0.5)
        raise AssertionError(f"not on the page: {missing}; it says {text[:2000]}")

    def screenshot(self, path, *, whole=False):
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"captureBeyondViewport": True, "clip": size | {"x": 0, "y": 0, "scale": 1}}
        body = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        path.write_bytes(base64.b64decode(body))

    def pdf(self):
        """The page as it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)


_ALL_TEXT = """
(() => { const parts = []; const walk = node => {
  if (node.nodeType === 3) parts.push(node.textContent);
  if (node.nodeType === 1 && (node.tagName === 'STYLE' || node.tagName === 'SCRIPT')) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk); };
  walk(document.body); return parts.join(' ').replace(/\\s+/g, ' '); })()
"""
