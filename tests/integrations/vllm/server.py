"""``vtc serve`` in a process of its own, on the loopback alone, and questions to it over HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

OPTIONS = "--trust-request-mm-kwargs --dtype float32 --max-model-len 512 --enforce-eager --block-size 32"
OPTIONS += " --kv-cache-memory-bytes 67108864"


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen


@contextlib.contextmanager
def serving(model: str, *options: str, **environment: str) -> Iterator[Server]:
    """In a session of its own, to end with all its processes: vLLM's engine outlives its server that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vtc.cli", "serve", model, *OPTIONS.split(), *options]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:  # three processes import vLLM, one after the other
            assert process.poll() is None, "the server ended before it listened"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def picture(image: Any) -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def ask(url: str, pictures: str | list[str], question: str, **more: Any) -> dict:
    urls = [pictures] if isinstance(pictures, str) else pictures
    content: list[dict] = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    content.append({"type": "text", "text": question})
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6, **more}
    body["add_special_tokens"] = True  # the testbed's template has no <s> of its own
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def ask_all(url: str, samples: list[Any]) -> list[str]:
    """All in flight at once."""
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(lambda one: text(ask(url, picture(one.image), one.question)), samples))


def text(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"].strip()
