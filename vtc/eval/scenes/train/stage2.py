"""Stage 2: projector and language model on packed questions; the tower is frozen and its features are kept.

Losses on positions inside the language model make relations learnable: where the named thing is (after layer 4),
where the thing asked about is (layer 4, or 6 where it is found beside another), how two named things lie to each
other (layer 6). Their heads are thrown away.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from vtc.eval.scenes.ask import TYPES
from vtc.eval.scenes.sample import samples
from vtc.eval.scenes.train.export import export
from vtc.eval.scenes.train.measure import accuracy
from vtc.eval.scenes.train.model import START, TOKENS, WIDTH, Architecture, autocast, parameter_count
from vtc.eval.scenes.train.optimise import Clock, Optimisers, rate_factor, save
from vtc.eval.scenes.train.pack import PIXELS, Batch, pack
from vtc.eval.scenes.train.pictures import Pictures

BATCH = 16
QUESTIONS = 16
HOLD = 0.5
EASY = 0.35
"""Share of easy pictures at the start; it shrinks to a seventh of that."""
LAYER_SEEN, LAYER_RELATED = 4, 6
EVERY = 240
"""Seconds between two evaluations."""
FIRST_WEIGHTS = {"exist": 1.7, "relation": 2.6, "word": 0.8, "digit_beside": 0.4, "color_beside": 0.3}
"""How often a type is asked about until colours and shapes are answered; the others once."""


class DecoderHeads(nn.Module):
    """Reads positions off the language model's hidden states; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.mention = nn.Linear(WIDTH, 3)
        self.target = nn.Linear(WIDTH, 2)
        self.beside = nn.Linear(WIDTH, 2)
        self.offset = nn.Linear(WIDTH, 2)


class FeatureStore:
    """The frozen tower's features, computed when first needed."""

    def __init__(self, kind: Architecture, model: PreTrainedModel, pictures: Pictures) -> None:
        self.kind, self.model, self.pictures = kind, model, pictures
        with torch.no_grad():
            width = kind.features(model, torch.from_numpy(pictures.pixels[:1])).shape[-1]
        self.features = torch.empty(len(pictures), TOKENS, width, dtype=torch.bfloat16)
        self.known = np.zeros(len(pictures), bool)

    def __getitem__(self, index: np.ndarray) -> Tensor:
        if len(missing := index[~self.known[index]]):
            with torch.no_grad(), autocast():
                found = self.kind.features(self.model, torch.from_numpy(self.pictures.pixels[missing]))
            self.features[missing] = found.bfloat16()
            self.known[missing] = True
        return self.features[index]


def _weights(seen: dict[str, float]) -> list[float]:
    """How often to ask about each type: what comes first at first, then what is answered least well."""
    if min(seen.get("color", 0), seen.get("shape", 0)) < 0.75:
        return [FIRST_WEIGHTS.get(t, 1.0) for t in TYPES]
    return [0.4 + 2.5 * (1 - seen[t]) for t in TYPES]


def _position_losses(heads: DecoderHeads, hidden: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
    """Mean absolute errors of positions (the whole picture is 2), and whether a named thing is there."""

    def states(layer: int, at: Tensor) -> Tensor:
        return hidden[layer][at[:, 0].long(), at[:, 1].long()].float()

    mention, there = heads.mention(states(LAYER_SEEN, batch.mentions)), batch.mentions[:, 4]
    one, two = (batch.targets[batch.targets[:, 4] == hops] for hops in (1, 2))
    losses = {
        "mention": (mention[:, :2] - batch.mentions[:, 2:4])[there > 0].abs().mean(),
        "there": F.binary_cross_entropy_with_logits(mention[:, 2], there),
        "target": (heads.target(states(LAYER_SEEN, one)) - one[:, 2:4]).abs().mean(),
        "beside": (heads.beside(states(LAYER_RELATED, two)) - two[:, 2:4]).abs().mean(),
        "offset": (heads.offset(states(LAYER_RELATED, batch.offsets)) - batch.offsets[:, 2:4]).abs().mean(),
    }
    return {name: loss for name, loss in losses.items() if torch.isfinite(loss)}


SCALE = {"mention": 2.0, "there": 0.2, "target": 0.5, "beside": 1.0, "offset": 1.0}


class Decoder:
    """Everything that stage 2 trains, and one step of it."""

    def __init__(self, kind: Architecture, model: PreTrainedModel) -> None:
        self.kind, self.model, self.heads = kind, model, DecoderHeads()
        kind.tower(model).requires_grad_(False)
        kind.projector(model).requires_grad_(True)
        body = [kind.projector(model), model.model.language_model]
        self.optimisers = Optimisers(body, [model.lm_head, self.heads])
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=False)

    def losses(self, batch: Batch, features: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss of the answers, losses of positions, and the logits where answers begin or end."""
        inner = self.model.model
        with autocast():
            words = self.model.get_input_embeddings()(batch.ids)
            seen = self.kind.project(self.model, features).to(words.dtype)
            rows = torch.cat([words[:, :START], seen, words[:, START + TOKENS :]], 1)
            out = inner.language_model(
                inputs_embeds=rows,
                attention_mask=batch.mask,
                position_ids=self.kind.positions(batch.positions),
                use_cache=False,
                output_hidden_states=True,
            )
            logits = self.model.lm_head(out.last_hidden_state[batch.answers[:, 0], batch.answers[:, 1]]).float()
        word, end = batch.answers[:, 3] >= 0, batch.answers[:, 3] < 0
        gold = batch.answers[:, 2]
        answer = F.cross_entropy(logits[word], gold[word]) + 0.1 * F.cross_entropy(logits[end], gold[end])
        return answer, _position_losses(self.heads, out.hidden_states, batch), logits

    def state(self) -> dict:
        parts = {"model": self.model.state_dict(), "heads": self.heads.state_dict()}
        return parts | {"optimisers": self.optimisers.state()}

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimisers.restore(state["optimisers"])


class Tally:
    """Share of right answers by type since the last report."""

    def __init__(self) -> None:
        self.hits: dict[str, list[float]] = {}

    def add(self, batch: Batch, logits: Tensor) -> None:
        hit = logits.argmax(-1) == batch.answers[:, 2]
        for number, name in enumerate(TYPES):
            if (mine := batch.answers[:, 3] == number).any():
                self.hits.setdefault(name, []).append(hit[mine].float().mean().item())

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(self.hits[name])) for name in TYPES if name in self.hits}


def _choose(easy: int, count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """How many of a batch are easy, then which."""
    few = int(rng.binomial(BATCH, share))
    plain = easy + rng.choice(count - easy, BATCH - few, replace=False, shuffle=False)
    return np.sort(np.concatenate([rng.choice(easy, few, replace=False, shuffle=False), plain]))


def _evaluate(out: Path, spent: float, count: int) -> None:
    """Accuracy of the exported folder on the dev seeds, by type, each question asked alone."""
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32, trust_remote_code=False).eval()
    with autocast():
        right = accuracy(
            model, AutoProcessor.from_pretrained(out, trust_remote_code=False), list(samples("dev", count))
        )
    print(f"EVAL dev {spent:.0f}s n {count} " + " ".join(f"{n} {v:.3f}" for n, v in right.items()))


def train_decoder(
    kind: Architecture,
    model: PreTrainedModel,
    pictures: Pictures,
    minutes: float,
    path: Path,
    resume: bool,
    out: Path,
    questions: int,
) -> None:
    """Trains projector and language model for so many minutes; exports a checkpoint at every evaluation, which asks so
    many questions of the dev seeds."""
    decoder, step, spent, seen = Decoder(kind, model), 0, 0.0, {}
    if resume and path.exists():
        state = torch.load(path, weights_only=True)
        decoder.restore(state)
        step, spent, seen = state["step"], state["spent"], state["seen"]
    print(f"decoder from step {step}: {parameter_count(model.model.language_model):.3f}M parameters")
    clock, store, rng = Clock(minutes, spent), FeatureStore(kind, model, pictures), np.random.default_rng((1, step))
    tally, saved = Tally(), spent

    def keep() -> None:
        save(path, decoder.state() | {"step": step, "spent": clock.spent, "seen": seen})
        export(kind, model, out)
        _evaluate(out, clock.spent, questions)

    while clock.fraction < 1:
        share = EASY * max(1 / 7, 1 - clock.fraction / 0.6)
        index = _choose(pictures.easy, len(pictures), share, rng)
        batch = pack([pictures.objects[i] for i in index], rng, QUESTIONS, _weights(seen))
        answer, places, logits = decoder.losses(batch, store[index])
        help_ = 2 * (1 - 0.8 * min(1, clock.fraction / 0.7))
        (answer + help_ * sum(SCALE[n] * v for n, v in places.items())).backward()
        decoder.optimisers.step(rate_factor(step, clock.fraction, HOLD))
        tally.add(batch, logits)
        step += 1
        if step % 100 == 0 or step in (5, 20):
            pixels = " ".join(f"{n} {v.item() * (1 if n == 'there' else PIXELS):.2f}" for n, v in places.items())
            seen, tally = tally.means(), Tally()
            right = " ".join(f"{n} {v:.2f}" for n, v in seen.items())
            print(f"decoder step {step} {clock.spent:.0f}s loss {answer.item():.3f} {pixels} | {right}")
        if clock.spent > saved + EVERY:
            keep()
            saved = clock.spent
    keep()
    print(f"decoder done: {step} steps, {clock.spent:.0f}s")
