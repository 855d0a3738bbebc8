"""A few rows of every public benchmark in its exact schema (the data sets' cards), and the files they make."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.eval.tiny import picture


def png(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    stream = io.BytesIO()
    picture(seed, size).save(stream, "PNG")
    return stream.getvalue()


def image(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": f"{seed}.png"}


TEXT, TEXTS, WHOLE = pa.string(), pa.list_(pa.string()), pa.int64()
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TEN = ["red"] * 3 + ["dark red"] * 7


@dataclass(frozen=True)
class Kept:
    """A file of a benchmark: where it stands, its schema, its rows."""

    path: str
    schema: dict[str, pa.DataType]
    rows: list[dict[str, Any]]


def vqa_answers() -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(TEN, 1)]


VQAV2 = Kept(
    "data/validation-00000-of-00001.parquet",
    {
        "question_type": TEXT,
        "multiple_choice_answer": TEXT,
        "answers": pa.list_(pa.struct({"answer": TEXT, "answer_confidence": TEXT, "answer_id": WHOLE})),
        "image_id": WHOLE,
        "answer_type": TEXT,
        "question_id": WHOLE,
        "question": TEXT,
        "image": IMAGE,
    },
    [
        {
            "question_type": "what color",
            "multiple_choice_answer": "dark red",
            "answers": vqa_answers(),
            "image_id": n,
            "answer_type": ("other", "number")[n % 2],
            "question_id": 1000 + n,
            "question": "What color is it?",
            "image": image(n),
        }
        for n in range(4)
    ],
)
GQA = [
    Kept(
        "testdev_balanced_instructions/testdev-00000-of-00001.parquet",
        {"id": TEXT, "imageId": TEXT, "question": TEXT, "answer": TEXT, "fullAnswer": TEXT, "isBalanced": pa.bool_()},
        [
            {
                "id": f"20{n}",
                "imageId": f"n{n % 2}",
                "question": "Is it red?",
                "answer": ("yes", "t-shirt")[n % 2],
                "fullAnswer": "Yes, it is.",
                "isBalanced": True,
            }
            for n in range(4)
        ],
    ),
    Kept(
        "testdev_balanced_images/testdev-00000-of-00001.parquet",
        {"id": TEXT, "image": IMAGE},
        [{"id": f"n{n}", "image": image(n)} for n in range(2)],
    ),
]
TEXTVQA = Kept(
    "data/validation-00000-of-00001.parquet",
    {
        "image_id": TEXT,
        "question_id": pa.int32(),
        "question": TEXT,
        "question_tokens": TEXTS,
        "image": IMAGE,
        "image_width": pa.int32(),
        "image_height": pa.int32(),
        "flickr_original_url": TEXT,
        "flickr_300k_url": TEXT,
        "answers": TEXTS,
        "image_classes": TEXTS,
        "set_name": TEXT,
        "ocr_tokens": TEXTS,
    },
    [
        {
            "image_id": f"i{n}",
            "question_id": n,
            "question": "what is WRITTEN here?",
            "question_tokens": ["what"],
            "image": image(n),
            "image_width": 40,
            "image_height": 32,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": TEN,
            "image_classes": [],
            "set_name": "val",
            "ocr_tokens": ["STOP", "now"],
        }
        for n in range(3)
    ],
)
VIZWIZ = Kept(
    "data/val-00000-of-00001.parquet",
    {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answers": TEXTS, "category": TEXT},
    [
        {
            "question_id": f"VizWiz_val_{n}.jpg",
            "image": image(n),
            "question": "what is this?",
            "answers": TEN,
            "category": "other",
        }
        for n in range(3)
    ],
)
SCIENCEQA = Kept(
    "ScienceQA-IMG/test-00000-of-00001.parquet",
    {
        "image": IMAGE,
        "question": TEXT,
        "choices": TEXTS,
        "answer": pa.int8(),
        **dict.fromkeys("hint task grade subject topic category skill lecture solution".split(), TEXT),
    },
    [
        {
            "image": image(n),
            "question": "Which one?",
            "choices": ["a cat", "a dog"],
            "answer": n % 2,
            "hint": ("", "Look at it.")[n % 2],
            "subject": "natural science",
        }
        for n in range(3)
    ],
)
POPE = Kept(
    "data/test-00000-of-00001.parquet",
    {
        **dict.fromkeys("id question_id question answer image_source".split(), TEXT),
        "image": IMAGE,
        "category": TEXT,
    },
    [
        {
            "id": str(n),
            "question_id": str(n % 2),
            "question": "Is there a cat in the image?",
            "answer": ("yes", "no")[n % 2],
            "image_source": "COCO_val2014_1",
            "image": image(n),
            "category": ("adversarial", "popular", "random")[n // 2],
        }
        for n in range(6)
    ],
)
MME = Kept(
    "data/test-00000-of-00001.parquet",
    {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": TEXT, "category": TEXT},
    [
        {
            "question_id": f"code_reasoning/000{n // 2}.png",
            "image": image(n // 2),
            "question": "Is it Python? Please answer yes or no.",
            "answer": ("Yes", "No")[n % 2],
            "category": "code_reasoning",
        }
        for n in range(8)
    ],
)
MMBENCH = Kept(
    "en/dev-00000-of-00001.parquet",
    {
        "index": WHOLE,
        **dict.fromkeys("question hint answer A B C D category".split(), TEXT),
        "image": IMAGE,
        **dict.fromkeys("source L2-category comment split".split(), TEXT),
    },
    [
        {
            "index": q + 1_000_000 * r,
            "question": "Which one?",
            "hint": ("nan", "Look.")[q % 2],
            "answer": "ABC"[r],
            **dict(zip("ABC", (["one", "two", "three"] * 2)[3 - r : 6 - r], strict=True)),
            "D": "nan",
            "category": "ocr",
            "image": image(q),
            "L2-category": "coarse_perception",
            "split": "dev",
        }
        for r in range(3)
        for q in range(4)
    ],
)
SEED = Kept(
    "data/test-00000-of-00001.parquet",
    {
        **dict.fromkeys("answer choice_a choice_b choice_c choice_d data_id data_type".split(), TEXT),
        "image": pa.list_(IMAGE),
        "question": TEXT,
        "question_id": TEXT,
        "question_type_id": pa.int16(),
        "segment": pa.list_(pa.int64()),
    },
    [
        {
            "answer": "ABCD"[n],
            **{f"choice_{c}": f"option {c}" for c in "abcd"},
            "data_type": ("image", "video")[n == 3],
            "image": [image(n)] * (3 if n == 3 else 1),
            "question": "Which?",
            "question_id": f"s{n}",
            "question_type_id": n,
        }
        for n in range(4)
    ],
)
CHARTQA = Kept(
    "data/test-00000-of-00001.parquet",
    {"type": TEXT, "question": TEXT, "answer": TEXT, "image": IMAGE},
    [
        {
            "type": ("human_test", "augmented_test")[n % 2],
            "question": "How many?",
            "answer": ("10", "5%", "blue")[n],
            "image": image(n),
        }
        for n in range(3)
    ],
)
DOCVQA = Kept(
    "DocVQA/validation-00000-of-00001.parquet",
    {
        "questionId": TEXT,
        "question": TEXT,
        "question_types": TEXTS,
        "image": IMAGE,
        "docId": WHOLE,
        "ucsf_document_id": TEXT,
        "ucsf_document_page_no": TEXT,
        "answers": TEXTS,
        "data_split": TEXT,
    },
    [
        {
            "questionId": str(n),
            "question": "What is the date?",
            "question_types": ["form"],
            "image": image(n),
            "docId": n,
            "answers": ["1 May 1990", "May 1, 1990"],
            "data_split": "val",
        }
        for n in range(3)
    ],
)
OCRBENCH = Kept(
    "data/test-00000-of-00001.parquet",
    {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": TEXTS, "image": IMAGE},
    [
        {
            "dataset": ("IIIT5K", "HME100k")[n % 2],
            "question": "what is written in the image?",
            "question_type": ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition")[n % 2],
            "answer": [("CENTRE", "x ^ 2")[n % 2]],
            "image": image(n),
        }
        for n in range(4)
    ],
)
MMMU = Kept(
    "data/validation-00000-of-00001.parquet",
    {
        **dict.fromkeys("id question options explanation".split(), TEXT),
        **{f"image_{n}": IMAGE for n in range(1, 8)},
        **dict.fromkeys("img_type answer topic_difficulty question_type subfield".split(), TEXT),
    },
    [
        {
            "id": "validation_Art_Theory_1",
            "question": "What is in <image 1> ?",
            "options": "['a cat', \"a dog's tail\", '<image 2>']",
            "image_1": image(0),
            "image_2": image(1),
            "answer": "B",
            "question_type": "multiple-choice",
        },
        {
            "id": "validation_Math_7",
            "question": "How many in <image 1> ?",
            "options": "[]",
            "image_1": image(2),
            "answer": "['42', 'forty-two']",
            "question_type": "open",
        },
    ],
)
REFCOCO = Kept(
    "data/val-00000-of-00001.parquet",
    {
        "question_id": TEXT,
        "image": IMAGE,
        "question": TEXT,
        "answer": TEXTS,
        "segmentation": pa.list_(pa.float32()),
        "bbox": pa.list_(pa.float32()),
        "iscrowd": pa.int8(),
        "file_name": TEXT,
    },
    [
        {
            "question_id": str(n),
            "image": image(n),
            "question": "Describe the box.",
            "answer": ["left one", "the red one"],
            "segmentation": [],
            "bbox": [10.0, 8.0, 20.0, 16.0],
            "iscrowd": 0,
            "file_name": "x.jpg",
        }
        for n in range(2)
    ],
)
TABLE_ROWS = [
    {"index": "0", "question": "Which?", "answer": "B", "A": "cat", "B": "dog", "hint": "Look.", "category": "animal"},
    {"index": "1", "question": "What?", "answer": "['red', 'dark red']", "category": "color"},
    {"index": "2", "question": "What\tnow\n?", "answer": 'say "no"', "category": "color"},
]
TABLE = Kept(
    "questions.parquet",
    {**dict.fromkeys("index question answer A B C D hint category".split(), TEXT), "image": pa.binary()},
    [row | {"image": png(n)} for n, row in enumerate(TABLE_ROWS)],
)
FILES = {
    "vqav2": [VQAV2],
    "gqa": GQA,
    "textvqa": [TEXTVQA],
    "textvqa_ocr": [TEXTVQA],
    "vizwiz": [VIZWIZ],
    "scienceqa": [SCIENCEQA],
    "pope": [POPE],
    "mme": [MME],
    "mmbench": [MMBENCH],
    "seedbench": [SEED],
    "chartqa": [CHARTQA],
    "docvqa": [DOCVQA],
    "ocrbench": [OCRBENCH],
    "mmmu": [MMMU],
    "refcoco": [REFCOCO],
    "parquet": [TABLE],
}


def write(folder: Path, kept: Kept, rows: list[dict[str, Any]] | None = None, schema: dict | None = None) -> Path:
    """Rows (its own, unless others are given) as a parquet file."""
    file = folder / kept.path
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = kept.schema if schema is None else schema
    pq.write_table(pa.Table.from_pylist(kept.rows if rows is None else rows, pa.schema(list(schema.items()))), file)
    return file


def write_tsv(folder: Path, rows: list[dict[str, Any]] = TABLE_ROWS) -> Path:
    """As VLMEvalKit writes it: by pandas, pictures in base64."""
    import pandas

    filled = [{"image": base64.b64encode(png(n)).decode()} | row for n, row in enumerate(rows)]
    file = folder / "questions.tsv"
    pandas.DataFrame(filled).to_csv(file, sep="\t", index=False)
    return file


def benchmark_of(name: str, folder: Path, **options: Any):
    """The registered benchmark on files that are written into ``folder``, whatever its kind."""
    from vtc.eval.benchmarks import registry

    if name == "jsonl":
        rows = [{"id": f"q{n}", "image": f"{n}.png", "question": "what ?", "answer": "red"} for n in range(3)]
        for n in range(3):
            picture(n).save(folder / f"{n}.png")
        (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return registry[name](data=folder / "q.jsonl", **options)
    if name == "easy_vqa":
        (folder / "test" / "images").mkdir(parents=True)
        (folder / "test" / "questions.json").write_text(json.dumps([["what is the red shape?", "circle", 0]] * 3))
        picture(0).save(folder / "test" / "images" / "0.png")
    if name == "tsv":
        return registry[name](data=write_tsv(folder), **options)
    for kept in FILES.get(name, ()):
        write(folder, kept)
    data = folder / TABLE.path if name == "parquet" else None
    return registry[name](data=data, data_dir=folder, **options)
