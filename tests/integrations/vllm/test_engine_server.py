"""``vtc serve``: questions over HTTP, on the loopback alone."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integrations.vllm.engines import in_transformers, path_of
from vtc.eval import scenes

SAMPLES = list(scenes.samples("test", 32))
OPTIONS = "--trust-request-mm-kwargs --dtype float32 --max-model-len 512 --enforce-eager --block-size 32"
OPTIONS += " --kv-cache-memory-bytes 67108864"


@pytest.fixture(scope="module")
def url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vtc.cli", "serve", "scenes", "--budget", "24", *OPTIONS.split()]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env={**os.environ})
    where = f"http://127.0.0.1:{port}"
    try:
        while True:  # three processes import vLLM, one after the other
            assert server.poll() is None, "the server ended before it listened"
            try:
                urllib.request.urlopen(f"{where}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield where
    finally:
        server.terminate()
        server.wait()


def picture(image) -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def ask(url: str, data_url: str, question: str, **more) -> dict:
    content = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6, **more}
    body["add_special_tokens"] = True  # the testbed's template has no <s> of its own
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def text(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"].strip()


def test_many_requests_at_once_and_broken_ones_among_them(url):
    """Each gets the answer of the patched model in transformers; a broken picture and an absurd budget are errors of
    their own request, and a request may have a budget of its own."""
    one, small = SAMPLES[0], {"mm_processor_kwargs": {"vtc_budget": 12}}
    with ThreadPoolExecutor(40) as pool:
        good = [pool.submit(ask, url, picture(s.image), s.question) for s in SAMPLES]
        fewer = pool.submit(ask, url, picture(one.image), one.question, **small)
        bad = [
            pool.submit(ask, url, "data:image/png;base64,AAAA", "how many digits ?"),
            pool.submit(ask, url, picture(one.image), "what ?", mm_processor_kwargs={"vtc_budget": -7}),
        ]
        answers = [future.result() for future in good]
    asked = [(s.prompt, [s.image]) for s in SAMPLES]
    assert list(map(text, answers)) == in_transformers(path_of("llava"), asked, "divprune+share", 24)
    used = answers[0]["usage"]["prompt_tokens"]
    assert used - fewer.result()["usage"]["prompt_tokens"] == 12
    for future in bad:
        with pytest.raises(urllib.error.HTTPError) as error:
            future.result()
        assert 400 <= error.value.code < 600
    assert text(ask(url, picture(SAMPLES[3].image), SAMPLES[3].question)) == text(answers[3])
