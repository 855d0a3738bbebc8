"""What is learned from: conversations with pictures, from JSON lines, a data set of the hub, or the testbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vtc.errors import DataError
from vtc.eval.asking.generate import MARK
from vtc.eval.benchmarks.base import hash_file
from vtc.eval.benchmarks.jsonl import MAX_IMAGES, lines, record
from vtc.eval.benchmarks.rows import brief
from vtc.eval.data.images import load_any, resolve
from vtc.eval.data.seen_texts import Seen
from vtc.eval.scenes import SPLITS, TYPES, ask, scene

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Turn:
    """What the user says, with ``<image>`` where pictures stand, and the answer that is learned."""

    user: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One sample. Pictures come in the order of the ``<image>`` marks; without any mark all open the first turn."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Any, ...] = ()
    system: str = ""
    where: str = ""


class Source(Protocol):
    """A sequence of conversations; ``name`` says which, and changes when they do."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Conversation: ...


class JSONLines:
    """A line a conversation: ``{"id": ..., "image" or "images": path or [paths], "messages": [{"role": "user",
    "content": "<image> what ?"}, {"role": "assistant", "content": "red"}]}``; LLaVA's ``"conversations": [{"from":
    "human", "value": ...}]`` goes, too.

    Paths are relative to ``folder`` (the file's own), and stay in. All lines are read at once and checked; a bad one
    raises ``DataError``.
    """

    def __init__(self, file: Path, folder: Path | None = None):
        self.folder, seen = folder or file.parent, Seen()
        self.rows: list[Conversation] = []
        for number, line in lines(file):
            where = f"{file.name}:{number}"
            row = conversation(record(line, where, "id, image and messages"), where)
            if not seen.add(row.id):
                raise DataError(f"{where}: id {row.id!r} was used before; give every conversation its own id")
            for image in row.images:
                resolve(str(image), self.folder, where)
            self.rows.append(row)
        if not self.rows:
            raise DataError(f"{file} holds no conversation; write one object a line")
        self.name = f"{file.name} {hash_file(file)}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        row = self.rows[index]
        pictures = tuple(load_any(image, self.folder, where=row.where) for image in row.images)
        return Conversation(row.id, row.turns, pictures, row.system, row.where)


class Hub:
    """The train split of a data set that the library ``datasets`` loads: an id of the hub, or a folder of it. The same
    columns as ``JSONLines``; rows without an id are numbered."""

    def __init__(self, name: str, folder: Path | None = None):
        try:
            import datasets
        except ImportError:
            raise DataError("data sets need the library datasets; pip install 'vtc-vlm[train]'") from None
        try:
            self.rows = datasets.load_dataset(name, split="train")
        except Exception as error:  # pyarrow, fsspec and the hub raise dozens of kinds
            raise DataError(f"{name} (split train) cannot be read ({brief(error)})") from None
        self.folder, self.title = folder, name
        self.name = f"{name} {self.rows._fingerprint}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        where = f"{self.title}[{index}]"
        try:
            columns = self.rows[index]
        except Exception as error:  # pictures are decoded here, and Pillow raises a dozen kinds
            raise DataError(f"{where} cannot be read ({brief(error)}); take the row out") from None
        row = conversation({"id": str(index), **columns}, where)
        pictures = tuple(load_any(image, self.folder, where=where) for image in row.images)
        return Conversation(row.id, row.turns, pictures, row.system, where)


class Scenes:
    """``count`` questions of the testbed's train split, drawn when they are asked for: scene n is asked a question of
    the n-th type, in turn, or of the next that it allows. ``first`` counts scenes from the split's first."""

    def __init__(self, count: int, first: int = 0):
        most = len(SPLITS["train"])
        if not 0 < count <= most - first:
            raise DataError(f"{count} scenes from {first} on leave the train split of {most:,}; ask for fewer")
        self.count, self.first = count, SPLITS["train"][first]
        self.name = f"scenes train {first}+{count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Conversation:
        import numpy as np

        number = self.first + index
        drawn = scene(number)
        types = TYPES[index % len(TYPES) :] + TYPES[: index % len(TYPES)]
        for kind in types:
            asked = ask(drawn, np.random.default_rng((number, TYPES.index(kind))), 1, [kind])
            if asked:
                turn = Turn(f"{MARK} {asked[0].text}", asked[0].answer)
                return Conversation(f"train-{number}-{kind}", (turn,), (drawn.image,))
        raise DataError(f"scene {number} allows no question")


class Answered:
    """The conversations of ``source`` with other answers: ``answers[id]``, one a turn."""

    def __init__(self, source: Source, answers: dict[str, Sequence[str]], name: str):
        self.source, self.answers = source, answers
        self.name = f"{source.name} answered by {name}"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Conversation:
        row = self.source[index]
        turns = tuple(Turn(t.user, a) for t, a in zip(row.turns, self.answers[row.id], strict=True))
        return Conversation(row.id, turns, row.images, row.system, row.where)


def source(data: str, samples: int, folder: Path | None = None) -> Source:
    """``scenes`` (``samples`` of them), a ``.jsonl`` file, or a data set that ``datasets`` knows."""
    if data == "scenes":
        return Scenes(samples)
    return JSONLines(Path(data), folder) if data.endswith(".jsonl") else Hub(data, folder)


def conversation(row: dict[str, Any], where: str) -> Conversation:
    """A row as a conversation, pictures not opened. Raises ``DataError`` with the place and the remedy."""
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == "":
        raise DataError(f"{where}: id is {identity!r:.80}; give every conversation a text or a whole number as id")
    images = row.get("images", row.get("image"))
    images = [] if images is None else images if isinstance(images, list) else [images]
    if len(images) > MAX_IMAGES:
        raise DataError(f"{where}: {len(images)} pictures, above {MAX_IMAGES}; show fewer at once")
    said = [_message(message, where) for message in _messages(row, where)]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    roles = [role for role, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        raise DataError(f"{where}: the turns are {roles}; expected user and assistant in turn, an answer last")
    turns = tuple(Turn(said[n][1], said[n + 1][1].strip()) for n in range(0, len(said), 2))
    if any(not turn.answer for turn in turns):
        raise DataError(f"{where}: an answer is empty; there is nothing to learn from it")
    marks = [turn.user.count(MARK) for turn in turns]
    if sum(marks) not in (0, len(images)):
        raise DataError(f"{where}: {sum(marks)} {MARK} and {len(images)} picture(s); write one for each, or none")
    return Conversation(str(identity), turns, tuple(images), system, where)


def _messages(row: dict[str, Any], where: str) -> list[Any]:
    messages = row.get("messages", row.get("conversations"))
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: no messages; give a list of {{role, content}} under messages")
    return messages


def _message(message: Any, where: str) -> tuple[str, str]:
    """(role, text with ``<image>`` marks) of one message; content may be a list of parts as chat templates take it."""
    if not isinstance(message, dict):
        raise DataError(f"{where}: a message is a {type(message).__name__}; expected an object with role and content")
    role, said = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(said, list) and all(isinstance(part, dict) for part in said):
        said = " ".join(MARK if p.get("type") == "image" else str(p.get("text") or "") for p in said).strip()
    if not isinstance(said, str):
        raise DataError(f"{where}: content is {said!r:.80}; expected a text, or a list of parts")
    role = role if role == "system" else ROLES.get(str(role))
    if role is None:
        raise DataError(f"{where}: role is {message.get('role', message.get('from'))!r:.80}; give user or assistant")
    if role == "assistant" and MARK in said:
        raise DataError(f"{where}: an answer holds {MARK}; pictures stand in what the user says")
    return role, said
