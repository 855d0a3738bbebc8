r"""Trains a tiny LLaVA on easy-VQA's train split, for `vtc eval --benchmarks easy_vqa`; the test split is never read.

OMP_NUM_THREADS=1 python scripts/train_easy_vqa.py --minutes 16 \
    --data-dir ../shared/data/easy_vqa --output runs/easy_vqa_model

First the tower learns each picture's shape and colour, as far as its questions tell them; then projector and decoder
learn the answers, many questions about a picture in one row. OUTPUT holds the state that answered best on the last
tenth of the train pictures, which are not trained on. Started again, it goes on where it was stopped.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtc.eval.scenes.train.architectures.llava import Llava
from vtc.eval.scenes.train.export import export, tokenizer
from vtc.eval.scenes.train.model import WIDTH, autocast, parameter_count
from vtc.eval.scenes.train.optimise import Clock, Optimisers, rate_factor, save
from vtc.eval.scenes.train.stage1 import shuffled
from vtc.eval.scenes.vocabulary import BOS, EOS, IMAGE, PAD, SPECIAL

KIND = Llava()
SIZE, TOKENS = 64, 64
PREFIX = [BOS, SPECIAL.index("USER:"), *[IMAGE] * TOKENS]
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
BATCH, ROOM, EVERY = {"tower": 32, "decoder": 8}, 176, 60  # pictures a step, longest row, seconds between evaluations
TOWER_SHARE, HOLD, LAYER = 0.3, 0.5, 4  # of the time; at the full rate, of each part's time; told shape and colour


def traits(question: str, answer: str) -> dict[int, int]:
    """What a question and its answer tell: {0: shape} and {1: colour}."""
    words, known = question.rstrip("?").split(), {answer}
    if words[0] == "what" or (answer == "yes") != ("not" in words or "no" in words):
        known.update(words)
    return {n: names.index(x) for n, names in enumerate((SHAPES, COLORS)) for x in names if x in known}


def make_processor(words: list[str]) -> LlavaProcessor:
    """That of the scenes for pictures of 64 x 64, which become 64 placeholders, and for these words."""
    processor = KIND.processor(tokenizer())
    processor.image_processor.size = processor.image_processor.crop_size = {"height": SIZE, "width": SIZE}
    tokens = processor.tokenizer.backend_tokenizer
    tokens.model = models.WordLevel({w: n for n, w in enumerate((*SPECIAL, *words))}, unk_token="<unk>")
    parts = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated")
    tokens.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    return processor


def load(folder: Path) -> tuple[np.ndarray, Tensor, list[list[tuple[list[int], int]]], LlavaProcessor]:
    """The train split: pictures, shapes and colours as far as known, questions as token ids with their answer's."""
    rows = json.loads((folder / "train" / "questions.json").read_text())
    processor = make_processor(sorted({w for q, a, _ in rows for w in f"{q} {a}".replace("?", " ? ").split()}))
    count = 1 + max(row[2] for row in rows)
    pixels = [np.asarray(Image.open(folder / "train" / "images" / f"{n}.png").convert("RGB")) for n in range(count)]
    known, questions = torch.full((count, 2), -100), [[] for _ in range(count)]
    for question, answer, n in rows:
        for group, value in traits(question, answer).items():
            known[n, group] = value
        *prompt, last = processor.tokenizer.encode(f"{question} ASSISTANT: {answer}", add_special_tokens=False)
        questions[n].append((prompt, last))
    return np.stack(pixels), known, questions, processor


def pack(questions: list[list[tuple[list[int], int]]], room: int) -> tuple[Tensor, ...]:
    """One row a picture -> ids, mask, positions, answers [A, 3]: row, column before the word, the word."""
    rows, answers = [], []
    for number, asked in enumerate(questions):
        row = [(token, 0, n) for n, token in enumerate(PREFIX)]
        for segment, (prompt, answer) in enumerate(asked, 1):
            if (end := len(row) + len(prompt)) < room:
                row += [(token, segment, len(PREFIX) + n) for n, token in enumerate((*prompt, answer))]
                answers += [(number, end - 1, answer), (number, end, EOS)]
        rows.append(row)
    length = max(map(len, rows))
    ids, segments, positions = torch.tensor([r + [(PAD, -1, 0)] * (length - len(r)) for r in rows]).unbind(-1)
    visible = ((segments[:, None] == 0) | (segments[:, :, None] == segments[:, None])).tril()
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(~visible, torch.finfo(torch.bfloat16).min)
    return ids, mask[:, None], positions, torch.tensor(answers)


def shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each picture moved by up to four pixels, every other one mirrored."""
    wide = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    cut = [p[y : y + SIZE, x : x + SIZE] for p, (y, x) in zip(wide, rng.integers(0, 9, (len(pixels), 2)), strict=True)]
    return np.stack([p[:, ::-1] if rng.random() < 0.5 else p for p in cut])


class Student(nn.Module):
    """The model, and heads for shape and colour that only training sees: on CLS, mean patch, decoder layer 4."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.pixels, self.traits, self.questions, self.processor = load(folder)
        config = KIND.build().config
        config.image_seq_length, config.vision_config.image_size, config.vision_config.num_hidden_layers = TOKENS, 64, 4
        config.text_config.vocab_size = len(self.processor.tokenizer)
        self.model = LlavaForConditionalGeneration(config)
        self.model.set_attn_implementation("eager")  # the fastest for short rows
        self.heads = nn.ModuleList([nn.Linear(WIDTH, len(SHAPES) + len(COLORS)) for _ in range(3)])

    def told(self, head: int, states: Tensor, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Loss and hits of the shape and colour of these pictures, read off these states."""
        both = self.heads[head](states.float()).split([len(SHAPES), len(COLORS)], 1)
        pairs = list(zip(both, self.traits[index].T, strict=True))
        hits = [(scores.argmax(1) == gold)[gold >= 0].float() for scores, gold in pairs]
        return torch.stack([F.cross_entropy(scores, gold) for scores, gold in pairs]).sum(), torch.cat(hits)

    def tower(self, index: np.ndarray, pixels: np.ndarray, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Loss and hits of shape and colour, read off the CLS token and off the mean patch."""
        with autocast():
            hidden, pooled = KIND.states(self.model, torch.from_numpy(pixels))
        (loss, hits), (more, _) = self.told(0, pooled, index), self.told(1, hidden[:, 1:].mean(1), index)
        return loss + more, hits

    def decoder(self, index: np.ndarray, pixels: np.ndarray, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Loss and hits of the answers; the tower stays as it is. Without a generator, of every question."""
        asked = [self.questions[n] for n in index]
        asked = [[q[n] for n in rng.permutation(len(q))] for q in asked] if rng else asked
        ids, mask, positions, answers = pack(asked, 10**6 if rng is None else ROOM)
        with autocast():
            with torch.no_grad():
                features = KIND.features(self.model, torch.from_numpy(pixels))
            words, seen = self.model.get_input_embeddings()(ids), self.model.model.multi_modal_projector(features)
            rows = torch.cat([words[:, :2], seen.to(words.dtype), words[:, len(PREFIX) :]], 1)
            inputs = {"inputs_embeds": rows, "attention_mask": mask, "position_ids": positions}
            out = self.model.model.language_model(**inputs, use_cache=False, output_hidden_states=True)
            last, middle = (x[answers[:, 0], answers[:, 1]] for x in (out.last_hidden_state, out.hidden_states[LAYER]))
            logits = self.model.lm_head(last).float()
        gold, word = answers[:, 2], answers[:, 2] != EOS
        loss = F.cross_entropy(logits[word], gold[word]) + 0.1 * F.cross_entropy(logits[~word], gold[~word])
        loss = loss + 0.3 * self.told(2, middle[word], index[answers[word, 0].numpy()])[0]
        return loss, (logits.argmax(1) == gold)[word].float()


def train(student: Student, minutes: float, out: Path) -> None:
    """For so many minutes; `OUT.state.pt` holds the state between runs."""
    path, at = out.with_name(out.name + ".state.pt"), {"tower": 0, "decoder": 0, "spent": 0.0, "best": 0.0}
    body = [getattr(student.model.model, n) for n in ("vision_tower", "multi_modal_projector", "language_model")]
    optimisers = Optimisers(body, [student.model.lm_head, student.heads])
    if path.exists():
        at, weights, moments = torch.load(path, weights_only=True)
        student.load_state_dict(weights)
        optimisers.restore(moments)
    count = len(student.questions)
    trained, held = np.split(np.arange(count), [count - max(1, count // 10)])
    print(f"{parameter_count(student.model):.2f}M parameters; {len(trained)} pictures, {len(held)} held out")
    clock, rng, hits = Clock(minutes, at["spent"]), np.random.default_rng((0, at["tower"] + at["decoder"])), []
    batches = {part: shuffled(len(trained), min(size, len(trained)), at[part]) for part, size in BATCH.items()}
    bar = tqdm(total=round(clock.budget), initial=round(clock.spent), unit="s", mininterval=5)
    while clock.fraction < 1:
        part = "tower" if clock.fraction < TOWER_SHARE else "decoder"
        begun, share = (0, TOWER_SHARE) if part == "tower" else (TOWER_SHARE, 1 - TOWER_SHARE)
        index = next(batches[part])
        loss, hit = getattr(student, part)(index, shifted(student.pixels[index], rng), rng)
        loss.backward()
        optimisers.step(rate_factor(at[part], (clock.fraction - begun) / share, HOLD))
        at[part] += 1
        hits.append(hit)
        bar.update(round(min(clock.spent, clock.budget)) - bar.n)
        if clock.spent < at["spent"] + EVERY and clock.fraction < 1:
            continue
        pieces = np.array_split(held, len(held) // 50 + 1)
        with torch.no_grad():
            right = torch.cat([getattr(student, part)(n, student.pixels[n], None)[1] for n in pieces]).mean().item()
        at["spent"], seen = clock.spent, torch.cat(hits).mean().item()
        tqdm.write(f"{part} step {at[part]} {clock.spent:.0f}s train {seen:.4f} held out {right:.4f}", file=sys.stdout)
        hits.clear()
        if part == "decoder" and right >= at["best"]:
            at["best"], fresh = right, out.with_name(out.name + ".best")
            export(KIND, student.model, fresh)
            student.processor.save_pretrained(fresh)
            shutil.rmtree(out, ignore_errors=True)
            fresh.replace(out)
        save(path, (at, student.state_dict(), optimisers.state()))
    bar.close()
    print(f"done: {at['tower']} + {at['decoder']} steps, {clock.spent:.0f}s, best held out {at['best']:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds train/questions.json and train/images/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model and its processor")
    parser.add_argument("--minutes", type=float, default=12, help="wall-clock budget (default 12)")
    args = parser.parse_args()
    torch.manual_seed(0)
    train(Student(args.data_dir), args.minutes, args.output)


if __name__ == "__main__":
    main()
