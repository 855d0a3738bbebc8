"""Conversations to a batch: prompts as ``vtc eval`` asks them, labels on answers only, pictures never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.errors import DataError, UnsupportedModel
from vtc.eval.asking.generate import MARK, Answerer, content, marks, split_marks
from vtc.eval.benchmarks.base import Benchmark
from vtc.training.conversations import Conversation
from vtc.training.losses import IGNORE

SAMPLES = "sample_ids"  # the key of a batch that names its samples; the trainer takes it out
HERE = "vtc answer {}"  # stands for an answer while a chat template is applied
TAIL = 16  # characters of a prompt that decide how the answer after it is tokenized


@dataclass(frozen=True)
class Text:
    """A conversation as text: ``before[n]`` is what the model has read when answer n begins, since the answer before;
    ``answers[n]`` is what it must write, the end of its turn included."""

    before: tuple[str, ...]
    answers: tuple[str, ...]


class Collator:
    """Makes a batch of conversations, padded on the right.

    max_length: most tokens of a row, picture tokens included (None: no bound). What exceeds it loses whole turns from
    the end; a row that would lose a picture, or its only answer, raises ``DataError`` with the sample's id.
    """

    def __init__(self, processor: Any, max_length: int | None = None, frame: str = Benchmark.frame):
        if "PaliGemma" in type(processor).__name__:
            raise UnsupportedModel("PaliGemma learns under a mask of its own, by its processor's suffix=; not here")
        self.processor, self.max_length = processor, max_length
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token_id is None or self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer needs a padding token and an end token; set processor.tokenizer.pad_token")
        self.asks = Answerer(None, processor, frame)

    def __call__(self, rows: Sequence[Conversation]) -> dict[str, Any]:
        """``input_ids``, ``labels`` (-100 but on answers), masks, pixels; ``sample_ids``: the rows' ids."""
        texts = [self.text(row) for row in rows]
        mark = self._free_token([part for text in texts for part in text.before])
        prompts = ["".join(part + mark for part in text.before) for text in texts]
        batch = self._processed(prompts, [list(row.images) for row in rows if row.images])
        wide = [k for k, v in batch.items() if isinstance(v, Tensor) and v.shape == batch["input_ids"].shape]
        made = []
        for n, (row, text) in enumerate(zip(rows, texts, strict=True)):
            real = batch["attention_mask"][n].bool()
            columns = {name: batch[name][n][real] for name in wide}
            made.append(self._row(row, columns, self.tokenizer.convert_tokens_to_ids(mark), text))
        return {**batch, **self._padded(made), SAMPLES: [row.id for row in rows]}

    def text(self, row: Conversation) -> Text:
        """The conversation as the model reads and writes it. Raises ``DataError``."""
        templated = bool(getattr(self.processor, "chat_template", None))
        pieces, lead = self._templated(row) if templated else self._framed(row)
        before, answers = [pieces[0]], []
        for turn, after in zip(row.turns, pieces[1:], strict=True):
            end, after = self._end(after)
            answers.append(lead + turn.answer + end)
            before.append(after)
        return Text(tuple(before[:-1]), tuple(answers))

    def _framed(self, row: Conversation) -> tuple[list[str], str]:
        """What stands before, between and after the answers, and what parts an answer from its question."""
        asked = zip(row.turns, counts(row), strict=True)
        frames = [self.asks.prompt(turn.user, n, row.where or row.id) for turn, n in asked]
        return [f"{row.system} {frames[0]}".strip(), *frames[1:], ""], " "

    def _templated(self, row: Conversation) -> tuple[list[str], str]:
        """The same by the chat template: before each answer as the model is asked, with the answers before it."""
        said: list[dict[str, Any]] = [{"role": "system", "content": content([row.system])}] if row.system else []
        pieces: list[str] = []
        for n, (turn, shown) in enumerate(zip(row.turns, counts(row), strict=True)):
            parts = split_marks(turn.user, shown, self.processor, row.where or row.id)
            said.append({"role": "user", "content": content(parts)})
            asked = self.asks.chat(said, sum(counts(row)[: n + 1]), f"sample {row.id}")
            pieces.append(asked.rpartition(HERE.format(n - 1))[2])
            if n and HERE.format(n - 1) not in asked:
                raise DataError(
                    f"sample {row.id}: the processor's chat template leaves out earlier answers, so turn {n + 1} "
                    "cannot be learned; give one question a conversation, or another template"
                )
            said.append({"role": "assistant", "content": content([HERE.format(n)])})
        whole = self.processor.apply_chat_template(said, tokenize=False)
        pieces.append(whole.rpartition(HERE.format(n))[2] if HERE.format(n) in whole else "")
        first, here, _ = whole.partition(HERE.format(0))
        lead = first.removeprefix(pieces[0]) if here and first.startswith(pieces[0]) else ""
        return pieces, "" if lead.strip() else lead

    def _end(self, after: str) -> tuple[str, str]:
        """How the answer before ``after`` ends, and the rest: the special token that the template writes next, or else
        the end of text."""
        bare = after.lstrip()
        known = [t for t in self.tokenizer.all_special_tokens if bare.startswith(t) and t not in marks(self.processor)]
        if not known:
            return self.tokenizer.eos_token, after
        end = max(known, key=len)
        return end, bare.removeprefix(end)

    def _free_token(self, texts: list[str]) -> str:
        """A special token that no prompt holds: it parts them where answers go, and is taken out again."""
        names = ("pad_token", "unk_token", "eos_token")
        tokens = [getattr(self.tokenizer, name, None) for name in names]
        for token in tokens:
            if token and token not in marks(self.processor) and not any(token in text for text in texts):
                return token
        raise DataError(f"every one of {', '.join(filter(None, tokens))} stands in a prompt; take one out of the text")

    def _processed(self, prompts: list[str], pictures: list[list[Any]]) -> dict[str, Any]:
        bos = getattr(self.tokenizer, "bos_token", None)
        return dict(
            self.processor(
                text=prompts,
                images=pictures or None,
                padding=True,
                padding_side="right",
                add_special_tokens=not (bos and prompts[0].startswith(bos)),
                return_tensors="pt",
            )
        )

    def _row(self, row: Conversation, columns: dict[str, Tensor], mark: int, text: Text) -> dict[str, Tensor]:
        """A row with its answers in place of the marks, and its labels."""
        ends = (columns["input_ids"] == mark).nonzero()[:, 0].tolist()
        if len(ends) < len(text.before):
            raise DataError(f"sample {row.id}: the processor cut the prompt; load it without a model_max_length")
        parts: list[dict[str, Tensor]] = []
        start, lengths = 0, []
        for end, before, answer in zip(ends, text.before, text.answers, strict=False):
            asked = {name: column[start:end] for name, column in columns.items()}
            told = torch.tensor(self._after(before, answer))
            written = {name: torch.zeros_like(told) for name in columns}
            written |= {"input_ids": told, "attention_mask": torch.ones_like(told), "labels": told}
            parts += [{**asked, "labels": torch.full_like(asked["input_ids"], IGNORE)}, written]
            lengths.append(sum(len(part["labels"]) for part in parts))
            start = end + 1
        fits = self._fitting(row, lengths)
        return {name: torch.cat([part[name] for part in parts[: 2 * fits]]) for name in parts[0]}

    def _fitting(self, row: Conversation, lengths: list[int]) -> int:
        """How many turns fit. Turns are dropped whole, from the end, never a picture."""
        if self.max_length is None or lengths[-1] <= self.max_length:
            return len(lengths)
        fits = sum(length <= self.max_length for length in lengths)
        if not fits or any(counts(row)[fits:]):
            raise DataError(
                f"sample {row.id}: {lengths[-1]} tokens, above max_length {self.max_length}, and cutting would take "
                f"{'a picture' if fits else 'its only answer that fits'}; raise max_length, shrink the picture, or "
                "leave the sample out"
            )
        return fits

    def _after(self, before: str, answer: str) -> list[int]:
        """The tokens of ``answer`` where it follows ``before``."""

        def ids(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        tail = before[-TAIL:]
        alone, both = ids(tail), ids(tail + answer)
        return both[len(alone) :] if both[: len(alone)] == alone else ids(answer)

    def _padded(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        fill = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORE}
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in rows], batch_first=True, padding_value=fill.get(name, 0)
            )
            for name in rows[0]
        }


def counts(row: Conversation) -> list[int]:
    """How many pictures each turn shows. Raises ``DataError``."""
    marked = [turn.user.count(MARK) for turn in row.turns]
    if sum(marked) not in (0, len(row.images)):
        raise DataError(
            f"sample {row.id}: {sum(marked)} {MARK} and {len(row.images)} picture(s); write one for each, or none"
        )
    return marked if sum(marked) else [len(row.images)] + [0] * (len(marked) - 1)
