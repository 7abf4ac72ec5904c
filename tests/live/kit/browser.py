"""A real browser, spoken to through its debugging pipe: no driver program, no socket, no package.

Chromium's ``--remote-debugging-pipe`` reads commands on file descriptor 3 and writes answers on 4, as JSON
ended by a zero byte: the Chrome DevTools Protocol.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

from waiting import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


_BEGIN = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One Chromium with one page."""

    def __init__(self, folder, *, width=1400, height=1200, dark=False):
        command_read, self._write = (_high(end) for end in os.pipe())
        self._read, answer_write = (_high(end) for end in os.pipe())
        arguments = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, str(command_read), str(answer_write), *arguments],
            pass_fds=(command_read, answer_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_read)
        os.close(answer_write)
        self._numbers = itertools.count(1)
        self._pending = b""
        self._session = None
        self._loaded = True
        self.said = []  # what the page wrote to its console, and what it failed with
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def ask(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _next(self):
        while b"\0" not in self._pending:
            if not select.select([self._read], [], [], PATIENCE_S)[0]:
                raise AssertionError(
                    f"the browser said nothing for {PATIENCE_S} s; the page said {self.said}"
                )
            part = os.read(self._read, 1 << 16)
            if not part:
                raise AssertionError("the browser went away")
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.said.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.said.append(str(params["args"]))

    def open(self, url):
        """Go to a page and wait until it is loaded: a script in between would be lost with the old one."""
        self._loaded = False
        self.ask("Page.navigate", url=url)
        while not self._loaded:
            self._note(self._next())

    def run(self, script):
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, script):
        """Wait until a JavaScript expression is true, and return its value."""
        end = time.monotonic() + PATIENCE_S
        while True:
            value = self.run(script)
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not true within {PATIENCE_S} s: {script}; the page said {self.said}")
            time.sleep(0.05)

    def mouse(self, kind, x, y, **more):
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path):
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        Path(path).write_bytes(base64.b64decode(data))


def _high(descriptor):
    """Move a descriptor out of the way of 3 and 4, which the child's shell is about to set."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
