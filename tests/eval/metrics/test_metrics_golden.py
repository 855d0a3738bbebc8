"""Every golden metrics file, item by item and in the aggregate. Skips where the files are not beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtc.eval.metrics import mean, means
from vtc.eval.metrics.ece import calibration_error
from vtc.eval.metrics.mmmu import mmmu_letter, normalised, open_candidates, open_score
from vtc.eval.metrics.options import (
    circular,
    circular_accuracy,
    likely_letter,
    lone_letter,
    mmbench_letter,
    option_text,
    scienceqa_letter,
    scienceqa_score,
    seed_letter,
)
from vtc.eval.metrics.reading import anls, relaxed_accuracy
from vtc.eval.metrics.text import gqa_match, ocr_match
from vtc.eval.metrics.vqa import APOSTROPHES, evalai_normalise, textvqa_accuracy, vqa_accuracy, vqa_normalise
from vtc.eval.metrics.yes_no import COGNITION, PERCEPTION, binary_figures, mme_answer, mme_scores, pope_answer

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "metrics"
FILES = sorted(path.stem for path in GOLDEN.glob("*.jsonl"))


def lettered(options):
    return {chr(65 + n): text for n, text in enumerate(options)}


def vqa_soft_accuracy(rows, whole):
    for row in rows:
        assert vqa_accuracy(row["prediction"], row["answers"]) == pytest.approx(row["score"], abs=1e-9), row
        always = vqa_accuracy(row["prediction"], row["answers"], always=True)
        assert always == pytest.approx(row["score_always_normalise"], abs=1e-9), row
        assert vqa_normalise(row["prediction"]) == row["normalised_prediction"], row
        assert [vqa_normalise(a) for a in row["answers"]] == row["normalised_answers"], row
    table = json.loads((GOLDEN / "vqa_contractions.json").read_text("utf-8"))["table"]
    for word, meant in table.items():  # those with a capital are never met: the text is in lower case by then
        assert APOSTROPHES.get(word, word) == (meant if word == word.lower() else word)
    assert not APOSTROPHES.keys() - table.keys()
    scores = [vqa_accuracy(row["prediction"], row["answers"]) for row in rows]
    always = mean(vqa_accuracy(row["prediction"], row["answers"], always=True) for row in rows)
    assert always == pytest.approx(whole["mean_always_normalise"], abs=1e-9)
    exact, rounded = whole["accuracy_n12"], whole["accuracy_official_n2"]
    assert round(100 * mean(scores), 2) == rounded["overall"]
    assert 100 * mean(scores) == pytest.approx(exact["overall"], abs=1e-9)
    for key, column in (("perQuestionType", "question_type"), ("perAnswerType", "answer_type")):
        found = means((row[column], 100 * score) for row, score in zip(rows, scores, strict=True))
        assert found == pytest.approx(exact[key], abs=1e-9)


def textvqa_vizwiz_accuracy(rows, whole):
    for row in rows:
        assert textvqa_accuracy(row["prediction"], row["answers"]) == pytest.approx(row["score"], abs=1e-9), row
        assert evalai_normalise(row["prediction"]) == row["normalised_prediction"], row
        assert [evalai_normalise(a) for a in row["answers"]] == row["normalised_answers"], row
    found = mean(textvqa_accuracy(row["prediction"], row["answers"]) for row in rows)
    assert found == pytest.approx(whole["accuracy"], abs=1e-9)


def docvqa_anls(rows, whole):
    scores = [anls(row["prediction"], row["answers"]) for row in rows]
    assert scores == pytest.approx([row["score"] for row in rows], abs=1e-9)
    assert mean(scores) == pytest.approx(whole["anls"], abs=1e-9)


def chartqa_relaxed_accuracy(rows, whole):
    scores = [relaxed_accuracy(row["prediction"], row["answer"]) for row in rows]
    stripped = [relaxed_accuracy(row["prediction"].strip(), row["answer"]) for row in rows]
    assert scores == [row["score"] for row in rows]
    assert stripped == [row["score_prediction_stripped"] for row in rows]
    kinds = means((row["type"], score) for row, score in zip(rows, scores, strict=True))
    assert mean(scores) == whole["relaxed_overall"] and mean(stripped) == whole["overall_prediction_stripped"]
    assert kinds["human_test"] == whole["relaxed_human_split"]
    assert kinds["augmented_test"] == whole["relaxed_augmented_split"]


def pope(rows, whole):
    def figures(chosen, strict=False):
        said = [pope_answer(row["prediction"], strict) for row in chosen]
        return binary_figures(said, [row["label"] for row in chosen])

    for row in rows:
        assert pope_answer(row["prediction"]) == row["parsed"], row
        assert float(pope_answer(row["prediction"]) == row["label"]) == row["score"]
        assert float(pope_answer(row["prediction"], True) == row["label"]) == row["score_lmms_eval_strict"]
    parts = {name: figures([r for r in rows if r["category"] == name]) for name in whole["per_category"]}
    average = {key: mean(part[key] for part in parts.values()) for key in whole["mean_of_categories"]}
    counts = {"TP", "FP", "TN", "FN"}
    for found, gold in [(figures(rows), whole["overall"]), *((parts[n], g) for n, g in whole["per_category"].items())]:
        assert found == pytest.approx({k: v for k, v in gold.items() if k not in counts}, abs=1e-12)
    assert average == pytest.approx(whole["mean_of_categories"], abs=1e-12)
    strict = figures(rows, strict=True)  # lmms-eval's yes ratio is of the labels and is not offered
    gold = {key: value for key, value in whole["lmms_eval_strict"].items() if key != "label_yes_ratio"}
    assert {key: strict[key] for key in gold} == pytest.approx(gold, abs=1e-12)


def mme(rows, whole):
    for row in rows:
        assert mme_answer(row["prediction"]) == row["parsed"], row
        assert float(mme_answer(row["prediction"]) == row["answer"].lower()) == row["score"]
    found = mme_scores((row["category"], row["question_id"], row["score"]) for row in rows)
    assert {name: found[name] for name in (*PERCEPTION, *COGNITION)} == pytest.approx(whole["per_category"], abs=1e-6)
    assert found["perception"] == pytest.approx(whole["perception"], abs=1e-6)
    assert found["cognition"] == pytest.approx(whole["cognition"], abs=1e-6)


def mmbench_answer_extraction(rows, whole):
    scores = []
    for row in rows:
        options, reply = lettered(row["options"]), row["prediction"]
        assert lone_letter(reply) == row["can_infer_option"], row
        assert option_text(reply, options) == row["can_infer_text"], row
        prefetch = lone_letter(reply) or option_text(reply, options)
        assert prefetch == row["prefetch"], row
        assert (prefetch or likely_letter(reply, tuple(options))) == row["static_answer"], row
        assert mmbench_letter(reply, options) == row["static_answer"], row
        scores.append(float(mmbench_letter(reply, options) == row["answer"]))
    assert scores == [row["score"] for row in rows] and mean(scores) == whole["accuracy_static"]


def mmbench_circular(rows, whole):
    def score(row):
        options = {letter: row[letter] for letter in "ABCDE" if row.get(letter) is not None}
        return float(mmbench_letter(row["prediction"], options) == row["answer"])

    scored = [(row["index"], score(row)) for row in rows]
    hits = circular(scored)
    assert all(hits[row["index"] % 1_000_000] == row["group_hit"] for row in rows)
    first = [row for row in rows if row["index"] < 1_000_000]
    assert circular_accuracy(scored) == whole["circular_accuracy"]
    assert means((row["category"], hits[row["index"]]) for row in first) == whole["per_category"]
    assert means((row["l2-category"], hits[row["index"]]) for row in first) == whole["per_l2_category"]
    assert (len(hits), len(rows)) == (whole["n_questions"], whole["n_records"])
    assert mean(s for index, s in scored if index < 1_000_000) == whole["vanilla_accuracy_first_rotation_only"]


def scienceqa(rows, whole):
    llava, lmms = [], []
    for row in rows:
        letter = scienceqa_letter(row["prediction"])
        assert (letter or "FAILED") == row["parsed_llava"], row
        known = letter is not None and letter in lettered(row["options"])
        assert (ord(letter) - 65 if known else -1) == row["pred_idx_llava"], row
        llava.append(float(known and letter == row["answer"]))
        lmms.append(scienceqa_score(row["prediction"], row["answer"]))
    assert llava == [row["score"] for row in rows] and lmms == [row["score_lmms_eval"] for row in rows]
    pictured = [score for row, score in zip(rows, llava, strict=True) if row["has_image"]]
    assert 100 * mean(llava) == pytest.approx(whole["accuracy_percent_llava"], abs=1e-9)
    assert 100 * mean(pictured) == pytest.approx(whole["img_accuracy_percent_llava"], abs=1e-9)
    assert mean(lmms) == whole["accuracy_lmms_eval"]


def seedbench(rows, whole):
    for row in rows:
        assert seed_letter(row["prediction"]) == row["parsed"].upper(), row
        assert float(seed_letter(row["prediction"]) == row["answer"].upper()) == row["score"], row
    kinds = means((row["data_type"], row["score"]) for row in rows)
    assert kinds == {"image": whole["seed_image"], "video": whole["seed_video"]}
    assert mean(row["score"] for row in rows) == whole["seed_all"]


def gqa_exact_match(rows, whole):
    scores = [gqa_match(row["prediction"], row["answer"]) for row in rows]
    assert scores == [row["score"] for row in rows] and mean(scores) == whole["exact_match"]


def ocrbench(rows, whole):
    hits = {}
    for row in rows:
        answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"]
        found = ocr_match(row["prediction"], answers, formula=row["dataset"] == "HME100k")
        assert found == row["score"], row
        hits[row["question_type"]] = hits.get(row["question_type"], 0) + found
    assert hits == {name: part["hits"] for name, part in whole["per_type"].items()}
    assert sum(hits.values()) == whole["hits"] == 1000 * whole["final_score_over_1000"]
    assert (
        sum(n for name, n in hits.items() if "Recognition" in name)
        - hits["Handwritten Mathematical Expression Recognition"]
        == whole["text_recognition_hits"]
    )


def mmmu_multiple_choice(rows, whole):
    for lax, name in ((False, "official"), (True, "lmms_eval")):
        scores, drawn = [], 0
        for row in rows:
            letter = mmmu_letter(row["prediction"], row["options"], lax)
            assert letter == row[f"parsed_{name}"], row
            scores.append((row["subject"], float(letter == row["answer"])))
            drawn += letter is None
            if letter is not None:
                assert scores[-1][1] == row[f"score_{name}"]
        gold = {subject: part["acc"] for subject, part in whole[name]["per_subject"].items()}
        assert means(scores) == pytest.approx(gold)
        assert mean(score for _, score in scores) == pytest.approx(whole[name]["overall_instance_level"])
        assert drawn == whole["n_random_lmms" if lax else "n_random_official"]


def mmmu_open(rows, whole):
    def plain(values):
        return {v if isinstance(v, str) or v - v == 0 else f"number:{v}" for v in values}

    scores = []
    for row in rows:
        golds = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        assert plain(open_candidates(row["prediction"])) == set(row["parsed"]), row
        assert plain(g for gold in golds for g in normalised(gold)) == set(row["normalised_answer"]), row
        scores.append(open_score(row["prediction"], golds))
        assert scores[-1] == row["score"], row
    assert mean(scores) == whole["acc"] and len(rows) == whole["n"]


def ece(rows, whole):
    found = []
    for row in rows:
        if "probabilities" in row:
            confidence = [max(p) for p in row["probabilities"]]
            correct = [float(p.index(max(p)) == y) for p, y in zip(row["probabilities"], row["labels"], strict=True)]
        else:
            confidence, correct = row["confidence"], row["correct"]
        found.append(calibration_error(confidence, correct))
        assert found[-1] == pytest.approx(row["ece_15"], abs=1e-6), row["id"]
        for norm, name in (("max", "mce_15"), ("l2", "rmsce_15")):
            if name in row:
                assert calibration_error(confidence, correct, norm=norm) == pytest.approx(row[name], abs=1e-6)
        if conventions := row.get("ece_by_bin_convention"):
            assert found[-1] == pytest.approx(conventions["left_closed_one_separate"], abs=1e-6)
    assert mean(found) == pytest.approx(whole["mean_ece"], abs=1e-6) and len(found) == whole["n_cases"]


CHECKS = (
    *(vqa_soft_accuracy, textvqa_vizwiz_accuracy, docvqa_anls, chartqa_relaxed_accuracy, pope, mme),
    *(mmbench_answer_extraction, mmbench_circular, scienceqa, seedbench, gqa_exact_match, ocrbench),
    *(mmmu_multiple_choice, mmmu_open, ece),
)


@pytest.mark.skipif(not FILES, reason="the golden metrics are not beside the repository")
@pytest.mark.parametrize("name", FILES)
def test_golden(name):
    checks = {check.__name__: check for check in CHECKS}
    assert name in checks, f"{name}.jsonl has no function that is compared with it"
    rows = [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert rows
    checks[name](rows, json.loads((GOLDEN / f"{name}.aggregate.json").read_text("utf-8")))
