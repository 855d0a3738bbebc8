"""``vtc serve``: questions over HTTP."""

from __future__ import annotations

import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integrations.vllm.engines import in_transformers, path_of
from tests.integrations.vllm.server import ask, picture, serving, text
from vtc.eval import scenes

SAMPLES = list(scenes.samples("test", 32))


@pytest.fixture(scope="module")
def url():
    with serving("scenes", "--budget", "24") as server:
        yield server.url


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
