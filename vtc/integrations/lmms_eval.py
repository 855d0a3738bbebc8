"""The model ``vtc`` of lmms-eval (0.7): any model that ``vtc eval`` takes, with one method at one budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from loguru import logger
from PIL import Image
from tqdm import tqdm

import vtc
from vtc.errors import BudgetError, DataError, VTCError
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.asking.load import load
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.data.images import to_rgb
from vtc.methods._spelling import build
from vtc.tokens import Budget

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass
class Counts(TokenCounts):
    """What one answer cost. Vision tokens are a picture's, as in ``vtc eval``; ``input_tokens`` is the prompt's length
    averaged over the decoder layers, so it counts what the method left."""

    visual_tokens: float = 0.0
    visual_tokens_unpatched: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """What lmms-eval writes beside each sample."""
        seen = {"visual_tokens": self.visual_tokens, "visual_tokens_unpatched": self.visual_tokens_unpatched}
        return super().to_dict() | seen


class VTC(lmms):
    """``method`` and ``budget`` as on the command line of ``vtc eval``; with no method, or ``none``, the model stays
    unpatched. ``max_new_tokens``: the longest answer where a task does not say."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = "none",
        budget: int | float | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str = "auto",
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise VTCError(f"batch size {batch_size!r} is not a whole number of at least 1; give one, like 1")
        patch = wanted(method, budget)
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self.device = self.accelerator.device  # where lmms-eval gathers over ranks
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        own = str(self.device) if self._world_size > 1 and device in ("auto", "cuda") else device
        model, processor = load(str(pretrained), dtype, own, attn_implementation)
        if getattr(processor, "chat_template", None) is None:
            raise VTCError(f"{pretrained} has no chat template; put a chat_template.jinja beside its config.json")
        if patch:
            vtc.patch(model, *patch)
        self.answerer = Answerer(model, processor, Benchmark.frame, max_new_tokens=max_new_tokens)
        self.spent: list[Counts] = []

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """An answer a request, in order. What goes wrong is raised: no answer is made up."""
        order = Collator(requests, sort_fn=lambda _: 0, group_fn=lambda r: r.args[2], grouping=True)
        answers: list[GenerationResult] = []
        with tqdm(total=len(requests), desc="Model Responding", disable=self.rank != 0) as bar:
            for batch in order.get_batched(n=self.batch_size):
                answers += self.answer(batch)
                bar.update(len(batch))
        return order.get_original(answers)

    def answer(self, batch: list[Instance]) -> list[GenerationResult]:
        """The answers to requests with equal generation settings."""
        asked = [self.ready(request) for request in batch]
        options, until = settings(batch[0].args[2], self.answerer.model.generation_config)
        try:
            inputs = self.answerer.inputs(asked)
            start = time.perf_counter()
            new = self.answerer.generate(inputs, **options).cpu()
            seconds = time.perf_counter() - start
        except Exception as error:
            error.add_note(f"while vtc answered {', '.join(a.sample.where for a in asked)}")
            raise
        counts = self.counts(asked, inputs, new, options.get("num_beams") or 1, seconds)
        # lmms-eval repeats a rank's last request until all ranks have as many; those are not counted.
        self.spent += [c for c, r in zip(counts, batch, strict=True) if not r.metadata.get("__padding_only__")]
        texts = [cut(text, until).strip() for text in self.answerer.decode(new)]
        return [GenerationResult(text, count) for text, count in zip(texts, counts, strict=True)]

    def ready(self, request: Instance) -> Asked:
        """A request's pictures and prompt. Raises ``DataError``."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        where = f"{task}:{split}:{doc_id}"
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images, videos, audios = chat.extract_media()
        if videos or audios or not all(isinstance(image, Image.Image) for image in images):
            raise DataError(f"{where}: only PIL pictures can be asked about here; choose tasks of pictures and text")
        prompt = self.answerer.chat(chat.to_hf_messages(), len(images), where)
        return Asked(Sample(str(doc_id), where=where), [to_rgb(image) for image in images], prompt)

    def counts(self, asked: list[Asked], inputs: Any, new: torch.Tensor, beams: int, seconds: float) -> list[Counts]:
        """What each answer of a batch cost."""
        before, after = self.answerer.vision_rows(inputs), self.answerer.spent(asked, inputs, beams)
        prompts = inputs["attention_mask"].sum(1).tolist()
        answers = (new != self.answerer.pad).sum(1).tolist()
        return [
            Counts(
                input_tokens=round(prompt - full + left),
                output_tokens=answer,
                visual_tokens=left / max(len(a.pictures), 1),
                visual_tokens_unpatched=full / max(len(a.pictures), 1),
                seconds=seconds / len(asked),
            )
            for a, prompt, full, left, answer in zip(asked, prompts, before, after, answers, strict=True)
        ]

    def clean(self) -> None:
        """Called once on every rank when all answers are there: log what they cost, and let the model go."""
        ranks = gather_object([self.spent])
        spent = [count for rank in ranks for count in rank]
        if spent and self.rank == 0:
            tokens = sum(count.output_tokens for count in spent)
            seconds = max(sum(count.seconds for count in rank) for rank in ranks)
            means = {key: fmean(getattr(c, key) for c in spent) for key in ("visual_tokens", "visual_tokens_unpatched")}
            log_metrics(seconds, tokens, tokens / seconds, means | {"total_requests": len(spent)})
        self.spent = []
        del self.answerer
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "vtc answers in words and rates no given text; choose tasks of output_type generate_until"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("vtc answers one turn; choose tasks of output_type generate_until")


def wanted(method: str, budget: int | float | str | None) -> tuple[Any, int | float] | None:
    """The method and the budget, both or neither."""
    named, limited = str(method).lower() not in ("", "none"), str(budget).lower() not in ("", "none")
    if not named and not limited:
        return None
    if not named:
        raise VTCError(f"budget {budget!r} without a method; give method=NAME as well (see vtc methods)")
    if not limited:
        raise BudgetError(f"method {method!r} without a budget; give budget=64, or a share like budget=0.25")
    return build(str(method)), Budget.of(str(budget)).value


def settings(task: Mapping[str, Any], known: Any) -> tuple[dict[str, Any], Sequence[str]]:
    """(arguments of transformers' ``generate``, texts that end an answer) from a task's ``generation_kwargs``.

    Sampling needs a temperature above 0 or ``do_sample``. Keys that only other models read are named in a warning.
    """
    options = dict(task)
    until = options.pop("until", None) or []
    foreign = sorted(key for key in options if not hasattr(known, key))
    if foreign:
        logger.warning(f"vtc does not know these generation_kwargs and leaves them out: {', '.join(foreign)}")
    options = {key: value for key, value in options.items() if key not in foreign and value is not None}
    heat = options.get("temperature")
    samples = options.get("do_sample", bool(heat)) and heat != 0
    options |= {"do_sample": True} if samples else GREEDY
    return options, [until] if isinstance(until, str) else until


def cut(text: str, until: Sequence[str]) -> str:
    """``text`` up to the first of the texts that end it."""
    for end in filter(None, until):
        text = text.split(end)[0]
    return text
