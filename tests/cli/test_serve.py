from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request

from waiting import PATIENCE_S


def test_serve_serves_until_it_is_interrupted():
    command = [sys.executable, "-m", "smartpool", "serve", "dataframe-mix", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as running:
        try:
            line = running.stderr.readline()
            url = line.split(": ")[1].split()[0]
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
                assert b"SmartPool" in page.read()
            running.send_signal(signal.SIGINT)
            assert running.wait(PATIENCE_S) == 130
        except BaseException:
            running.kill()  # or leaving the block waits for it
            raise
        assert running.stderr.read() == "smartpool: interrupted\n"
