"""``vtc serve`` under what it will meet: odd requests among others, a kill, thousands of requests. Run by
``make test-vllm-all``."""

from __future__ import annotations

import os
import signal
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from tests.integrations.vllm.engines import answers, path_of
from tests.integrations.vllm.server import ask, ask_all, picture, serving, text
from vtc.eval import scenes

pytestmark = pytest.mark.slow
SAMPLES = list(scenes.samples("test", 2000))
MANY = SAMPLES[100:164]  # 64 pictures
ABSURD = (0, -7, 1.5, "many", None, True, [3], {"a": 1}, 1e308)
BROKEN = (
    "data:image/png;base64,AAAA",
    "data:image/png;base64,",
    "data:text/plain;base64,aGVsbG8=",
    "data:image/png;base64,?",
)
# Of the cache of pictures the other kind forgets those of a request that is refused for its length, once (vLLM 43941).
OPTIONS = ("--limit-mm-per-prompt", '{"image": 64}', "--mm-processor-cache-type", "shm")


class Transformers:
    """The judge."""

    def __init__(self, kind):
        path = path_of(kind)
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)

    def __call__(self, asked, budget):
        vtc.patch(self.model.eval(), "divprune+share", budget)
        return answers(self.model, self.processor, asked)

    def one(self, image, question, budget, **sizes):
        """A picture that the processor makes of another size."""
        vtc.patch(self.model.eval(), "divprune+share", budget)
        prompt = scenes.PROMPT.format(question=question)
        inputs = self.processor(images=[image], text=[prompt], return_tensors="pt", **sizes)
        found = self.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return self.processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def several(self, images, question, budget):
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self([(prompt, images)], budget)[0]


def refused(future):
    with pytest.raises(urllib.error.HTTPError) as error:
        future.result()
    return 400 <= error.value.code < 500 and len(error.value.read()) > 0


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_odd_requests_change_no_other(kind):
    """All in flight at once; afterwards the pictures of a request that was refused are answered alone."""
    one, judge = SAMPLES[0], Transformers(kind)
    large = one.image.resize((4000, 3000), Image.Resampling.NEAREST)
    many = [picture(s.image) for s in MANY]
    with serving(path_of(kind), "--budget", "24", *OPTIONS) as server, ThreadPoolExecutor(80) as pool:

        def send(*asked, **kwargs):
            said = {"mm_processor_kwargs": kwargs} if kwargs else {}
            return pool.submit(ask, server.url, *asked, **said)

        good = [send(picture(s.image), s.question) for s in SAMPLES[:32]]
        fits, too_many = send(many, "how many digits ?", vtc_budget=4), send(many, "how many digits ?")
        wide = send(picture(large), one.question)
        wrong = [send(broken, "what ?") for broken in BROKEN]
        wrong += [send(picture(one.image), "what ?", vtc_budget=budget) for budget in ABSURD]
        generous = send(picture(one.image), one.question, vtc_budget=10**9)
        if kind == "qwen":  # 3,136 tokens before its reduction, where 196 were profiled
            size = {"longest_edge": 448 * 448, "shortest_edge": 448 * 448}
            larger = send(picture(large), one.question, size=size)
            assert text(larger.result()) == judge.one(large, one.question, 24, size=size)
        got = [text(future.result()) for future in good]
        assert all(map(refused, wrong)) and refused(too_many)
        if kind == "llava":  # transformers takes no Qwen pictures that touch each other
            assert text(fits.result()) == judge.several([s.image for s in MANY], "how many digits ?", 4)
        assert fits.result()["usage"]["prompt_tokens"] > 64 * 4
        assert text(wide.result()) == judge([(one.prompt, [large])], 24)[0]
        assert text(generous.result()) == judge([(one.prompt, [one.image])], 1.0)[0]
        alone = ask_all(server.url, MANY[:8])
    want = judge([(s.prompt, [s.image]) for s in SAMPLES[:32] + MANY[:8]], 24)
    assert got + alone == want


def test_killed_and_started_again():
    """With all its processes, as a container is; the next one answers as it did."""
    found = []
    for _ in range(2):
        with serving("scenes", "--budget", "24") as server:
            found.append(ask_all(server.url, SAMPLES[:64]))
            family = psutil.Process(server.process.pid).children(recursive=True)
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
            assert psutil.wait_procs(family, timeout=60)[1] == []
            with pytest.raises(OSError):
                ask(server.url, picture(SAMPLES[0].image), "what ?")
    assert found[0] == found[1]
    assert found[0] == Transformers("llava")([(s.prompt, [s.image]) for s in SAMPLES[:64]], 24)


def test_memory_does_not_grow():
    """Over 2,000 requests, of a server that has answered 6,000: until then vLLM's own caches fill, as much with models
    of its own. The bound is a fifth of what the pixels of each request would be, 301 MB; the allocator moves 20."""
    with serving("scenes", "--budget", "24", "--mm-processor-cache-gb", "0.02", MALLOC_ARENA_MAX="1") as server:
        for _ in range(3):
            ask_all(server.url, SAMPLES)
        before = resident(server)
        ask_all(server.url, SAMPLES)
        after = resident(server)
    print(f"resident after 6,000 and 8,000 requests: {before:.0f} and {after:.0f} MB")
    assert after - before < 60


def resident(server):
    """MB of the server and all its processes."""
    root = psutil.Process(server.process.pid)
    return sum(one.memory_info().rss for one in [root, *root.children(recursive=True)]) / 1e6
