"""The built-in testbed: pictures, questions, fixed samples, and the checkpoint that answers them."""

import subprocess
import sys

import numpy as np
import pytest

from vtc.eval.scenes import (
    CROWD,
    ONE_HOP,
    PATCH,
    SIZE,
    SPLITS,
    TWO_HOP,
    TYPES,
    ask,
    checkpoint_path,
    samples,
    scene,
)
from vtc.eval.scenes.glyphs import SHAPES

PLURALS = {plural: name for name, plural in SHAPES.items()}


def objects_of(sample):
    """The objects behind a sample, drawn again from its id."""
    return scene(int(sample.id.split("-")[-2]), crowded="crowded" in sample.id).objects


def only(items):
    """The one item of a list that must hold exactly one."""
    items = list(items)
    assert len(items) == 1
    return items[0]


# Pictures


@pytest.mark.parametrize("options", [{}, {"crowded": True}, {"easy": True}])
def test_a_seed_fixes_the_picture(options):
    first, again, other = scene(7, **options), scene(7, **options), scene(8, **options)
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert first.objects == again.objects
    assert first.image.mode == "RGB" and first.image.size == (SIZE, SIZE)


def test_objects_do_not_touch_and_lie_inside():
    for seed in range(60):
        boxes = [o.box for o in scene(seed, crowded=seed % 2 == 0).objects]
        taken = np.zeros((SIZE, SIZE), int)
        for y0, x0, y1, x1 in boxes:
            assert 0 < y0 < y1 < SIZE and 0 < x0 < x1 < SIZE
            taken[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] += 1
        assert taken.max() == 1


def test_crowded_scenes_hold_many_objects_and_easy_ones_few():
    assert min(len(scene(seed, crowded=True).objects) for seed in range(100)) >= CROWD
    assert all(2 <= sum(o.kind == "shape" for o in scene(seed, easy=True).objects) <= 3 for seed in range(100))


def test_every_scene_has_bright_decoys():
    for seed in range(30):
        drawn = scene(seed)
        y0, x0, y1, x1 = drawn.decoys[0]
        block = np.asarray(drawn.image)[y0:y1, x0:x1]
        assert block.std() > 80


@pytest.mark.parametrize(("seed", "options"), [(-1, {}), (1, {"crowded": True, "easy": True})])
def test_bad_scenes_are_refused(seed, options):
    with pytest.raises(ValueError, match="must|exclude"):
        scene(seed, **options)


def test_works_without_torch():
    code = "import sys; sys.modules['torch'] = None; from vtc.eval.scenes import samples; "
    code += "print(next(samples('dev', 1)).id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "vtc/__init__" in done.stderr:
        pytest.skip("the package itself needs torch")
    assert done.stdout.startswith("dev-20000000-"), done.stderr


# Questions


def test_questions_follow_types_and_weights():
    drawn = scene(3, crowded=True)
    rng = np.random.default_rng(0)
    assert {q.type for q in ask(drawn, rng, 40, ["digit", "word"])} == {"digit", "word"}
    assert {q.type for q in ask(drawn, rng, 40, ["digit", "word"], [1, 0])} == {"digit"}
    assert {q.type for q in ask(drawn, rng, 200)} == set(TYPES)


@pytest.mark.parametrize(
    ("count", "types", "weights"), [(0, None, None), (1, ["smell"], None), (1, [], None), (1, ["word"], [1, 2])]
)
def test_bad_questions_are_refused(count, types, weights):
    with pytest.raises(ValueError, match="count|unknown|empty|weights"):
        ask(scene(1), np.random.default_rng(0), count, types, weights)


def test_existence_is_balanced_with_hard_negatives():
    items = list(samples("test", 600, types=["exist"]))
    assert 0.45 < np.mean([s.answer == "yes" for s in items]) < 0.55
    hard = []
    for s in items:
        _, _, _, color, name, _ = s.question.split()
        shapes = [o for o in objects_of(s) if o.kind == "shape"]
        assert (s.answer == "yes") == any((o.color, o.name) == (color, name) for o in shapes)
        if s.answer == "no":
            hard.append(any(o.color == color for o in shapes) and any(o.name == name for o in shapes))
    assert np.mean(hard) > 0.8


def truth(question, objects):
    """The answer to a one-hop question, worked out from its words alone."""
    words = question.split()
    shapes = [o for o in objects if o.kind == "shape"]
    if question.startswith("is there"):
        return "yes" if any((o.color, o.name) == (words[3], words[4]) for o in shapes) else "no"
    if question.startswith("what color"):
        return only(o for o in shapes if o.name == words[4]).color
    if question.startswith("what shape"):
        return only(o for o in shapes if o.color == words[3]).name
    if question.startswith("how many"):
        items = [o for o in objects if o.kind == "digit"] if words[2] == "digits" else shapes
        return str(sum(words[2] == "digits" or o.name == PLURALS[words[2]] for o in items))
    if question.startswith("is the"):
        first, second = (only(o for o in shapes if o.name == w) for w in (words[2], words[-2]))
        axis = 0 if "above" in words else 1
        assert abs(first.center[axis] - second.center[axis]) >= 10
        return (("above", "left"), ("below", "right"))[first.center[axis] > second.center[axis]][axis]
    known = [o for o in objects if o.kind == words[1] and words[3] in (o.color, "written")]
    return only(o for o in objects if o in known or (words[3] == "written" and o.kind == "word")).name


@pytest.mark.parametrize("crowded", [False, True])
def test_one_hop_answers_follow_from_the_objects(crowded):
    for s in samples("test", 350, crowded=crowded, types=ONE_HOP):
        assert truth(s.question, objects_of(s)) == s.answer
        assert s.hops == 1


@pytest.mark.parametrize("crowded", [False, True])
def test_two_hop_answers_are_unique(crowded):
    for s in samples("test", 150, crowded=crowded, types=TWO_HOP):
        words, objects = s.question.split(), objects_of(s)
        hub = only(
            o for o in objects if o.name == words[-2] and words[-3] == (o.color if s.type == "digit_beside" else o.kind)
        )
        place = next(w for w in words if w in ("above", "below", "left", "right"))
        axis, sign = {"above": (0, -1), "below": (0, 1), "left": (1, -1), "right": (1, 1)}[place]
        distances = []
        for o in objects:
            along = sign * (o.center[axis] - hub.center[axis])
            across = abs(o.center[1 - axis] - hub.center[1 - axis])
            if o is not hub and o.kind == ("digit" if s.type == "digit_beside" else "shape") and along >= across:
                distances.append((along, o.name if s.type == "digit_beside" else o.color, o.box))
        distances.sort()
        assert distances[0][1] == s.answer
        assert len(distances) == 1 or distances[1][0] - distances[0][0] >= 10
        assert s.evidence == (hub.box, distances[0][2])
        assert s.hops == 2


def test_evidence_is_small():
    def patches(boxes):
        return {(y // PATCH, x // PATCH) for y0, x0, y1, x1 in boxes for y in range(y0, y1) for x in range(x0, x1)}

    for kind in ("color", "shape", "digit", "word"):
        assert 2 <= np.mean([len(patches(s.evidence)) for s in samples("test", 100, types=[kind])]) <= 6


# Samples


def test_splits_are_fenced_apart():
    ranges = list(SPLITS.values())
    assert all(not range(max(a.start, b.start), min(a.stop, b.stop)) for a in ranges for b in ranges if a is not b)
    for split, seeds in SPLITS.items():
        assert all(int(s.id.split("-")[1]) in seeds for s in samples(split, 30))


def test_samples_are_balanced_and_repeatable():
    items = list(samples("test", 91))
    assert [(s.id, s.question, s.answer) for s in items] == [(s.id, s.question, s.answer) for s in samples("test", 91)]
    assert len({s.id for s in items}) == len(items) == 91
    counts = [sum(s.type == t for s in items) for t in TYPES]
    assert max(counts) - min(counts) <= 1


def test_an_id_fixes_the_question():
    one = {s.id: (s.question, s.answer) for s in samples("test", 300)}
    two = {s.id: (s.question, s.answer) for s in samples("test", 60, types=["digit", "exist"])}
    common = one.keys() & two.keys()
    assert common and all(one[i] == two[i] for i in common)


def test_two_seeds_share_no_picture():
    first, second = ({s.id.split("-")[1] for s in samples("test", 50, seed=seed)} for seed in (0, 1))
    assert not first & second


@pytest.mark.parametrize(
    ("split", "count", "seed"), [("exam", 5, 0), ("test", 0, 0), ("test", True, 0), ("test", 5, -1), ("test", 5, 10**6)]
)
def test_bad_samples_are_refused(split, count, seed):
    with pytest.raises(ValueError, match="choose|must be"):
        samples(split, count, seed)


# The checkpoint


@pytest.fixture(scope="module", params=["llava", "qwen"])
def answerer(request):
    """Questions to answers, as a user gets them; left-padded batches."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint_path(request.param)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    def answer(items):
        inputs = processor(
            images=[s.image for s in items], text=[s.prompt for s in items], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(ids, skip_special_tokens=True), ids

    return answer


def test_the_checkpoint_answers(answerer):
    items = list(samples("test", 63, types=ONE_HOP))
    answers, _ = answerer(items)
    assert np.mean([a.strip() == s.answer for a, s in zip(answers, items, strict=True)]) > 0.93


def test_answers_are_one_word_and_padding_changes_none(answerer):
    items = list(samples("dev", 9))
    batched, ids = answerer(items)
    assert ids.shape[1] == 2
    assert [answerer([s])[0][0] for s in items] == batched


def test_the_checkpoint_is_genuine_and_small():
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(checkpoint_path(), local_files_only=True)
    assert config.architectures == ["LlavaForConditionalGeneration"]
    assert config.text_config.num_hidden_layers >= 8
    assert config.vision_feature_layer == -2
    files = list(checkpoint_path().iterdir())
    assert sum(f.stat().st_size for f in files) <= 12 * 2**20
    assert [f.name for f in files if f.suffix in (".safetensors", ".bin", ".pt")] == ["model.safetensors"]


def test_the_chat_template_gives_the_prompt():
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(checkpoint_path(), local_files_only=True)
    item = next(samples("dev", 1))
    content = [{"type": "image"}, {"type": "text", "text": item.question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == item.prompt
