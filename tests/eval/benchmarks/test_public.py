"""The public benchmarks: prompts to the letter, figures worked out by hand, and rows that cannot be used."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from tests.eval import public
from tests.eval.public import FILES, WHOLE, benchmark_of, png, write
from tests.eval.tiny import picture
from vtc.errors import DataError
from vtc.eval.benchmarks import forms, registry
from vtc.eval.data.images import load_any

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
PROMPTS = {
    "vqav2": "What color is it?" + SHORT,
    "gqa": "Is it red?" + SHORT,
    "textvqa": "What is written here?" + SHORT,
    "textvqa_ocr": "What is written here?\nReference OCR token: STOP, now" + SHORT,
    "vizwiz": "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
    "scienceqa": "Which one?\nA. a cat\nB. a dog" + LETTER,
    "pope": "Is there a cat in the image?" + SHORT,
    "mme": "Is it Python?" + SHORT,
    "mmbench": "Which one? There are several options:\nA. one\nB. two\nC. three\n" + LETTER,
    "seedbench": "Which?\nA. option a\nB. option b\nC. option c\nD. option d" + LETTER,
    "chartqa": "How many?\nAnswer the question with a single word.",
    "docvqa": "What is the date?" + SHORT,
    "ocrbench": "what is written in the image?",
    "mmmu": "What is in <image> ?\nA. a cat\nB. a dog's tail\nC. <image>\n" + LETTER,
    "refcoco": "Please provide the bounding box coordinate of the region this sentence describes: left one",
    "parquet": "Look.\nWhich?\nA. cat\nB. dog" + LETTER,
}


@pytest.mark.parametrize("name", FILES)
def test_prompts(name, tmp_path):
    assert next(iter(benchmark_of(name, tmp_path).samples())).question == PROMPTS[name]


def test_more_prompts(tmp_path):
    science, bench, mmmu = (list(benchmark_of(n, tmp_path).samples()) for n in ("scienceqa", "mmbench", "mmmu"))
    assert science[1].question.startswith("Context: Look at it.\nWhich one?\nA.")
    assert bench[1].question.startswith("Look. Which one? There")
    assert mmmu[1].question == "How many in <image> ?\n" + SHORT and mmmu[1].answers == ("42", "forty-two")
    assert [len(s.images) for s in mmmu] == [2, 1] and mmmu[0].type == "Art_Theory"


def lines(benchmark, reply):
    """What a run would have written, had the model answered ``reply(sample)``."""
    for s in benchmark.samples():
        said = reply(s)
        score = benchmark.score(said, s)
        yield {"id": s.id, "type": s.type, "group": s.group, "answer": said, "expected": [*s.answers], "score": score}


def test_pope_figures(tmp_path):
    benchmark = benchmark_of("pope", tmp_path)
    always = benchmark.aggregate(lines(benchmark, lambda s: "Yes."))
    assert always["yes_ratio"] == 1 and always["accuracy"] == 0.5 and always["recall"] == 1
    assert always["f1"] == always["random/f1"] == pytest.approx(2 / 3)
    strict = replace(benchmark, strict=True)
    assert strict.aggregate(lines(strict, lambda s: "Yes."))["accuracy"] == 0
    assert strict.fingerprint() != benchmark.fingerprint()


def test_mme_figures(tmp_path):
    benchmark = benchmark_of("mme", tmp_path)
    assert benchmark.aggregate(lines(benchmark, lambda s: s.answers[0])) == {
        "perception": 0,
        "cognition": 200,
        "category/code_reasoning": 200,
    }
    said = list(lines(benchmark, lambda s: "yes"))
    assert benchmark.aggregate(said)["cognition"] == 50
    assert benchmark.aggregate(said[:-1])["cognition"] == 50, "a pair with one answer is left out"


def test_mmbench_figures(tmp_path):
    benchmark = benchmark_of("mmbench", tmp_path)
    found = benchmark.aggregate(lines(benchmark, lambda s: "A" if s.id == "1000002" else s.answers[0]))
    assert found == {"circular": 0.75, "single_pass": 1, "coarse_perception": 0.75}


def test_other_figures(tmp_path):
    for name, reply, gold in (
        ("chartqa", "10", {"relaxed": 1 / 3, "human": 0.5, "augmented": 0}),
        ("seedbench", "A", {"seed_image": 1 / 3, "seed_video": 0, "seed_all": 0.25}),
        ("mmmu", "B", {"accuracy": 0.5, "multiple-choice": 1, "open": 0}),
        ("refcoco", "[0.25, 0.25, 0.75, 0.50]", {"acc@0.5": 1, "mean_iou": 0.5}),
    ):
        benchmark = benchmark_of(name, tmp_path / name)
        assert benchmark.aggregate(lines(benchmark, lambda s, reply=reply: reply)) == pytest.approx(gold), name
    benchmark = benchmark_of("ocrbench", tmp_path / "ocrbench")
    found = benchmark.aggregate(lines(benchmark, lambda s: "the x^2 of centre"))
    assert (found["score"], found["text_recognition"], found["hmer"], found["kie"]) == (4, 2, 2, 0)


def test_soft_accuracy_and_its_floor(tmp_path):
    benchmark = benchmark_of("vqav2", tmp_path)
    sample = next(iter(benchmark.samples()))
    assert benchmark.score("Red", sample) == pytest.approx(0.9)
    assert benchmark.credits(sample.answers) == pytest.approx({"red": 0.9, "dark red": 1.0})
    sure = replace(sample, answers=("yes",) * 10)
    assert benchmark.score("Yes", sure) == 1 and replace(benchmark, official=True).score("Yes", sure) == 0


def test_refcoco_coordinates(tmp_path):
    unit = benchmark_of("refcoco", tmp_path)
    for kind, reply in (("unit", "[.25,.25,.75,.75]"), ("thousand", "(250,250),(750,750)"), ("pixels", "10 8 30 24")):
        benchmark = replace(unit, coordinates=kind)
        sample = next(iter(benchmark.samples()))
        assert benchmark.score(reply, sample) == 1 and benchmark.score("nowhere", sample) == 0
    told = next(iter(replace(unit, coordinates="miles").samples())).error
    assert "'miles'" in told and "pixels" in told


def test_mmmu_draws_a_letter_from_the_seed(tmp_path):
    benchmark = benchmark_of("mmmu", tmp_path)
    sample = next(iter(benchmark.samples()))
    scores = [replace(benchmark, seed=seed).score("no idea", sample) for seed in range(30)]
    assert set(scores) == {0.0, 1.0}
    assert scores == [replace(benchmark, seed=seed).score("no idea", sample) for seed in range(30)]


BAD = [  # benchmark, what is changed in its second row, what is told
    ("vqav2", {"question": None}, "column 'question' is None, not text; the columns expected are question_id"),
    ("vqav2", {"answers": []}, "column 'answers'"),
    ("vqav2", {"image": None}, "column 'image' is None"),
    ("vqav2", {"image": {"bytes": None, "path": None}}, "column 'image'"),
    ("vqav2", {"question_id": 1000}, "id '1000' was used before"),
    ("gqa", {"imageId": "n9"}, "picture 'n9' is not in testdev_balanced_images"),
    ("scienceqa", {"answer": 2}, "the answer 2 is not an option's index; the last of them is 1"),
    ("scienceqa", {"choices": []}, "column 'choices'"),
    ("pope", {"answer": "maybe"}, "POPE's are yes and no"),
    ("mme", {"answer": "Maybe"}, "MME's are Yes and No"),
    ("mmbench", {"answer": "D"}, "column 'answer' is 'D', not an option's letter; there are A, B, C"),
    ("mmbench", {"A": "nan"}, "column 'answer' is 'A', not an option's letter; there are B, C"),
    ("seedbench", {"answer": "E"}, "column 'answer' is 'E', not an option's letter; there are A, B, C, D"),
    ("seedbench", {"image": []}, "column 'image'"),
    ("mmmu", {"image_1": None}, "shows image_1, and that column is empty"),
    ("refcoco", {"bbox": [1.0, 2.0]}, "column 'bbox' is [1.0, 2.0], not box"),
    ("refcoco", {"image": {"bytes": b"<html>", "path": None}}, "HTML"),
    ("parquet", {"answer": "C", "A": "x", "B": "y"}, "column 'answer' is 'C', not an option's letter; there are A, B"),
]


@pytest.mark.parametrize(("name", "change", "told"), BAD, ids=[f"{n}-{list(c)[0]}" for n, c, _ in BAD])
def test_a_bad_row_is_named_and_the_others_are_read(name, change, told, tmp_path):
    benchmark = benchmark_of(name, tmp_path)
    kept = FILES[name][0]
    write(tmp_path, kept, [kept.rows[0], kept.rows[1] | change, *kept.rows[2:]])
    samples = list(registry[name](data=benchmark.data, data_dir=tmp_path).samples())
    bad = [s for s in samples if s.error]
    place = "questions.parquet: row 2: " if name == "parquet" else f"{name}:{benchmark.split}:1: "
    assert told in bad[0].error and bad[0].error.startswith(place)
    assert len(bad) == (2 if name == "mme" else 1) and len(samples) > 1  # an MME pair loses its other half


@pytest.mark.parametrize("name", FILES)
def test_a_missing_column_is_named(name, tmp_path):
    benchmark = benchmark_of(name, tmp_path)
    kept = FILES[name][0]
    for column in ("question", "answer", "answers", "image"):
        if column not in benchmark.columns:
            continue
        schema = {key: form for key, form in kept.schema.items() if key != column}
        write(tmp_path, kept, schema=schema)
        told = next(iter(registry[name](data=benchmark.data, data_dir=tmp_path).samples())).error
        assert f"column '{column}' is missing; the columns expected are" in told and f"{column} (" in told


def test_a_mistyped_column_is_named(tmp_path):
    kept = public.CHARTQA
    numbers = [row | {"answer": 10} for row in kept.rows]
    write(tmp_path, kept, numbers, kept.schema | {"answer": WHOLE})
    samples = list(registry["chartqa"](data_dir=tmp_path).samples())
    assert len(samples) == len(numbers)
    assert all("column 'answer' is 10, not text" in s.error and "type (text)" in s.error for s in samples)


def test_an_mme_question_without_its_pair(tmp_path):
    write(tmp_path, public.MME, public.MME.rows[:5])
    *good, last = registry["mme"](data_dir=tmp_path).samples()
    assert len(good) == 5 and not any(s.error for s in good)
    assert "'code_reasoning/0002.png' has 1 question(s), a pair has 2" in last.error


def test_pairs_and_rotations_may_stand_anywhere(tmp_path):
    write(tmp_path, public.MME, [public.MME.rows[n] for n in (0, 2, 4, 1, 3, 5)])
    samples = list(registry["mme"](data_dir=tmp_path, limit=2).samples())
    assert [s.id for s in samples] == [f"code_reasoning/000{p}.png#{n}" for n in (1, 2) for p in (0, 1)]


def stored_image(kind, folder):
    picture(0).save(folder / "a.png")
    return {
        "bytes": png(0),
        "dict": {"bytes": png(0), "path": None},
        "dict with a path": {"bytes": None, "path": "a.png"},
        "path": "a.png",
        "PIL": picture(0),
    }[kind]


@pytest.mark.parametrize("kind", ["bytes", "dict", "dict with a path", "path", "PIL"])
def test_pictures_of_all_kinds(kind, tmp_path):
    found = load_any(forms.image(stored_image(kind, tmp_path)), tmp_path)
    assert found.mode == "RGB" and found.tobytes() == picture(0).tobytes()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (b"\x89PNG\r\n", "cannot be read as a picture"),
        (b"<html></html>", "HTML"),
        ({"bytes": None, "path": "../a.png"}, r"'\.\.'"),
        ({"bytes": None, "path": "/etc/passwd"}, "absolute"),
        ("none.png", "does not exist"),
        (3, "is a int"),
        (None, "is a NoneType"),
    ],
)
def test_broken_pictures(image, told, tmp_path):
    with pytest.raises(DataError, match=f"vqav2:validation:1: picture .*{told}"):
        load_any(image, tmp_path, where="vqav2:validation:1")


def test_paths_of_hub_rows_are_refused():
    with pytest.raises(DataError, match="--data-dir"):
        load_any({"bytes": None, "path": "pyproject.toml"}, None)


def test_a_bomb_is_measured_before_it_is_decoded(tmp_path):
    stream = io.BytesIO()
    picture(0, (200, 100)).save(stream, "PNG")
    with pytest.raises(DataError, match="20,000 pixels, above 10,000"):
        load_any(stream.getvalue(), tmp_path, max_pixels=10_000)
    with pytest.raises(DataError, match="above 10"):
        load_any(picture(0), tmp_path, max_pixels=10)


def test_paths_in_rows_stay_in_the_data_folder(tmp_path):
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.png")
    paths = [
        row | {"image": {"bytes": None, "path": p}}
        for row, p in zip(public.CHARTQA.rows, ("a.png", "../x", "b"), strict=True)
    ]
    write(tmp_path, public.CHARTQA, paths)
    benchmark = registry["chartqa"](data_dir=tmp_path)
    inside, outside, missing = benchmark.samples()
    assert benchmark.pictures(inside)[0].size == (40, 32)
    for sample in (outside, missing):
        with pytest.raises(DataError, match=sample.where):
            benchmark.pictures(sample)


@pytest.mark.parametrize(
    "value", [["red", "blue"], ("red", "blue"), "['red', 'blue']", [{"answer": "red"}, {"answer": "blue"}]]
)
def test_answers_as_a_list_or_its_text(value):
    assert forms.texts(value) == ("red", "blue")


def test_answers_that_only_look_like_lists():
    assert forms.texts("[red") == ("[red",) and forms.texts("red") == ("red",) and forms.texts("[1, 2]") == ("1", "2")
    assert forms.texts("[" * 5000) == ("[" * 5000,)
    for value in (None, [], "[]", [None], 3, {}):
        with pytest.raises((ValueError, TypeError)):
            forms.texts(value)
