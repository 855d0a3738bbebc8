"""Where the rows of public benchmarks come from: splits, parquet and TSV files, official files, the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval import public
from tests.eval.public import benchmark_of, png, write
from tests.eval.tiny import picture
from vtc.errors import DataError, VTCError
from vtc.eval.benchmarks import reader, registry, rows
from vtc.eval.benchmarks.pope import POPE

OFFICIAL_POPE = Path(__file__).parents[4] / "shared" / "data" / "pope"


@pytest.mark.parametrize(
    ("name", "split", "told"),
    [
        ("vqav2", "test", "not public; use --split validation"),
        ("vqav2", "testdev", "not public"),
        ("vizwiz", "test", "use --split val"),
        ("docvqa", "test", "use --split validation"),
        ("pope", "validation", "has no split 'validation'; use --split test"),
    ],
)
def test_splits_without_answers(name, split, told):
    with pytest.raises(DataError, match=told):
        registry[name](split=split)


def test_files_are_found_or_missed_by_name(tmp_path):
    with pytest.raises(DataError, match="no test.parquet"):
        list(registry["pope"](data_dir=tmp_path).samples())
    write(tmp_path, replace(public.POPE, path="test.parquet"))
    write(tmp_path, replace(public.POPE, path="testdev-00000-of-00001.parquet"))
    assert len(list(registry["pope"](data_dir=tmp_path).samples())) == 6
    write(tmp_path, replace(public.POPE, path="data/test-00000-of-00002.parquet"))
    with pytest.raises(DataError, match="1 of 2 test files"):
        list(registry["pope"](data_dir=tmp_path).samples())


def test_a_broken_file_is_told(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"test.parquet cannot be read as parquet"):
        list(registry["pope"](data_dir=tmp_path).samples())


def test_other_rows_are_another_fingerprint(tmp_path):
    first = benchmark_of("chartqa", tmp_path).fingerprint()
    changed = [public.CHARTQA.rows[0] | {"answer": "11"}, *public.CHARTQA.rows[1:]]
    write(tmp_path, public.CHARTQA, changed)
    assert registry["chartqa"](data_dir=tmp_path).fingerprint() != first


def official(folder, change=None):
    for category in ("random", "popular", "adversarial"):
        row = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "yes"}
        (folder / f"coco_pope_{category}.json").write_text(json.dumps(row | (change or {})) + "\n")
    (folder / "images").mkdir(exist_ok=True)
    picture(0).save(folder / "images" / "a.jpg", "JPEG")
    return POPE(data_dir=folder)


def test_official_pope_files(tmp_path):
    benchmark = official(tmp_path)
    samples = list(benchmark.samples())
    assert [s.id for s in samples] == ["adversarial:1", "popular:1", "random:1"]
    assert samples[0].question == "Is there a cat in the image?\nAnswer the question using a single word or phrase."
    assert benchmark.pictures(samples[0])[0].size == (40, 32)
    assert "column 'answer' is 3" in next(iter(official(tmp_path, {"label": 3}).samples())).error
    (tmp_path / "coco_pope_random.json").write_text("{")
    with pytest.raises(DataError, match="coco_pope_random.json is not JSON lines"):
        list(POPE(data_dir=tmp_path).samples())


@pytest.mark.skipif(not OFFICIAL_POPE.is_dir(), reason="POPE's files are not beside the repository")
def test_the_real_pope_files():
    samples = list(POPE(data_dir=OFFICIAL_POPE).samples())
    assert len(samples) == 9000 and not any(s.error for s in samples)
    assert sum(s.answers == ("yes",) for s in samples) == 4500


def test_tsv(tmp_path):
    benchmark = benchmark_of("tsv", tmp_path)
    options, many, odd = benchmark.samples()
    assert options.options == ("cat", "dog") and options.answers == ("B",) and options.type == "animal"
    assert many.answers == ("red", "dark red") and benchmark.score("Dark red.", many) == 1
    assert odd.question == "What\tnow\n?" and odd.answers == ('say "no"',)
    assert benchmark.pictures(odd)[0].tobytes() == picture(2).tobytes()
    assert benchmark.score("B", options) == 1 and benchmark.score("a cat", options) == 0


def test_bad_tsv(tmp_path):
    bad = [public.TABLE_ROWS[0] | {"image": image} for image in ("241", "no base64", "x.png")]
    file = public.write_tsv(tmp_path, [row | {"index": str(n)} for n, row in enumerate(bad)])
    benchmark = registry["tsv"](data=file)
    other, broken, path = benchmark.samples()
    assert "is that of row 241" in other.error and "not base64" in broken.error
    with pytest.raises(DataError, match="x.png.* does not exist"):
        benchmark.pictures(path)
    (tmp_path / "empty.tsv").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as TSV"):
        list(registry["tsv"](data=tmp_path / "empty.tsv").samples())
    with pytest.raises(DataError, match="give --data questions.tsv"):
        list(registry["tsv"]().samples())


def test_a_file_is_read_by_its_suffix():
    assert [reader(Path(p)) for p in ("a.tsv", "b.PARQUET", "c.jsonl", "d.json")] == [
        "tsv",
        "parquet",
        "jsonl",
        "jsonl",
    ]


class Hub:
    """A hub that has one data set."""

    asked: list[str] = []

    def dataset_info(self, name):
        from huggingface_hub.errors import RepositoryNotFoundError

        Hub.asked.append(name)
        if name == "down":
            raise ConnectionError("no route")
        if name != "lmms-lab-encoder/ChartQA":
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its constructor wants a response
        return type("Info", (), {"sha": "abc"})()


def test_hub_names_fall_back(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return datasets.Dataset.from_parquet(str(write(tmp_path, public.CHARTQA)), streaming=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    benchmark = registry["chartqa"](limit=2)
    assert len(list(benchmark.samples())) == 2
    assert calls == [(("lmms-lab-encoder/ChartQA", "default"), {"split": "test", "revision": "abc", "streaming": True})]
    assert Hub.asked[-2:] == ["lmms-lab/ChartQA", "lmms-lab-encoder/ChartQA"]
    assert benchmark.fingerprint()["source"] == ["lmms-lab-encoder/ChartQA", "abc"]
    with pytest.raises(DataError, match="the hub has none of mine"):
        list(registry["chartqa"](repository="mine").samples())
    with pytest.raises(DataError, match="cannot be asked for down .*--data-dir"):
        list(registry["chartqa"](repository="down").samples())


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    import sys

    benchmark = benchmark_of("chartqa", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(VTCError, match=r"pip install 'vtc-vlm\[eval\]'"):
        list(benchmark.samples())
    with pytest.raises(VTCError, match=r"pip install 'vtc-vlm\[eval\]'"):
        list(rows.hub_rows("lmms-lab/ChartQA", "abc", "default", "test"))


def test_images_may_be_plain_bytes_in_parquet(tmp_path):
    schema = public.CHARTQA.schema | {"image": public.TABLE.schema["image"]}
    write(tmp_path, public.CHARTQA, [row | {"image": png(1)} for row in public.CHARTQA.rows], schema)
    benchmark = registry["chartqa"](data_dir=tmp_path)
    assert benchmark.pictures(next(iter(benchmark.samples())))[0].tobytes() == picture(1).tobytes()


def test_hub_files_that_declare_pictures_stay_encoded(tmp_path):
    import datasets

    features = datasets.Features({key: datasets.Value("string") for key in ("type", "question", "answer")})
    features["image"] = datasets.Image()
    made = datasets.Dataset.from_list([row | {"image": picture(2)} for row in public.CHARTQA.rows], features=features)
    made.to_parquet(str(tmp_path / "test.parquet"))
    benchmark = registry["chartqa"](data_dir=tmp_path)
    sample = next(iter(benchmark.samples()))
    assert isinstance(sample.images[0]["bytes"], bytes)
    assert benchmark.pictures(sample)[0].tobytes() == picture(2).tobytes()
