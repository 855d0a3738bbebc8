"""Deltas: two fine-tuned models over one base, their folders, and what is refused."""

import copy
import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtc
from tests import zoo
from tests.files.mutations import mutated
from vtc.errors import CheckpointError, UnknownName, WeightsError
from vtc.weights.deltas.delta import difference, merge, parameters_sha256
from vtc.weights.deltas.folder import CONFIG, TENSORS, load, save
from vtc.weights.deltas.several import Deltas
from vtc.weights.recipe import Recipe

RECIPES = {
    "deltacome": dict(passes=[{"pass": "deltacome", "payload": 4.0, "group": 32}]),
    "bitdelta": "bitdelta",
    "low rank": "svd:rank=8",
    "quantized and low rank": "svdllm:rank=4|rtn:bits=4:group=32",
}


def finetuned(base, seed, steps=6):
    """A few real steps of training on one prompt; every parameter may move."""
    model = copy.deepcopy(base).requires_grad_(True).train()
    prompt = zoo.prompt(model, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**prompt, labels=prompt["input_ids"]).loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base():
    return zoo.build("llava", layers=2).requires_grad_(False)


@pytest.fixture(scope="module")
def tuned(base):
    return [finetuned(base, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def prompts(base):
    return [zoo.prompt(base, seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def delta(base, tuned, prompts):
    return difference(base, tuned[0], RECIPES["deltacome"], prompts, progress=False)


def logits(model, prompt):
    with torch.no_grad():
        return model(**prompt).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def hooks_of(model):
    return {name: list(module._forward_hooks) for name, module in model.named_modules()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_two_deltas_over_one_base_answer_as_if_merged(base, tuned, prompts, recipe, tmp_path):
    before, answer, hooks = state(base), logits(base, prompts[3]), hooks_of(base)
    deltas = Deltas(base)
    merged = []
    for n, model in enumerate(tuned):
        made = difference(base, model, recipe, prompts, progress=False)
        deltas.add(str(n), save(made, tmp_path / str(n)))
        merged.append(logits(merge(copy.deepcopy(base), made), prompts[3]))
    for name in ("0", "1", "0", None, "1"):
        deltas.use(name)
        got = logits(base, prompts[3])
        if name is None:
            assert torch.equal(got, answer)
        else:
            assert (got - merged[int(name)]).abs().max() <= 1e-4 * got.abs().max()
            assert not torch.allclose(got, answer, rtol=1e-2)
    deltas.remove()
    assert same(state(base), before) and torch.equal(logits(base, prompts[3]), answer)
    assert hooks_of(base) == hooks and deltas.bytes == 0


def test_a_delta_brings_most_of_the_fine_tuning(base, tuned, prompts, delta):
    wanted, without = logits(tuned[0], prompts[3]), logits(base, prompts[3])
    deltas = Deltas(base)
    deltas.add("a", delta)
    with deltas.using("a"):
        got = logits(base, prompts[3])
    assert (got - wanted).norm() < 0.2 * (without - wanted).norm()
    assert all(change.error is not None and change.error < 0.1 for change in delta.layers.values())


def test_a_full_rank_delta_is_the_fine_tuned_model(base, tuned, prompts):
    full = difference(base, tuned[0], "rtn:bits=8:group=8|svd:keep=1.0", progress=False)
    deltas = Deltas(base)
    deltas.add("a", full)
    with deltas.using("a"):
        assert (logits(base, prompts[0]) - logits(tuned[0], prompts[0])).abs().max() < 2e-2
    deltas.remove()


def test_using_restores_what_was_in_use_also_after_an_error(base, delta):
    deltas = Deltas(base)
    deltas.add("a", delta)
    deltas.add("b", delta)
    deltas.use("a")
    with pytest.raises(RuntimeError), deltas.using("b"):
        with deltas.using(None):
            assert deltas.current is None
        assert deltas.current == "b"
        raise RuntimeError
    assert deltas.current == "a" and list(deltas) == ["a", "b"]
    assert deltas.bytes == 2 * delta.bytes
    deltas.remove()


@pytest.mark.parametrize("recipe", ["bitdelta", "deltacome:payload=4.0:group=32"])
def test_a_bfloat16_base_under_a_token_patch(base, tuned, prompts, recipe):
    small, large = copy.deepcopy(base).bfloat16(), copy.deepcopy(tuned[0]).bfloat16()
    before = state(small)
    prompts = [{k: v.bfloat16() if v.is_floating_point() else v for k, v in p.items()} for p in prompts]
    made = difference(small, large, recipe, prompts, progress=False)
    assert {change.dtype for change in made.layers.values()} == {torch.bfloat16}
    deltas = Deltas(small)
    deltas.add("a", made)
    whole = merge(copy.deepcopy(small), made)
    with vtc.patched(small, "divprune", budget=0.5), vtc.patched(whole, "divprune", budget=0.5), deltas.using("a"):
        got, wanted = logits(small, prompts[0]), logits(whole, prompts[0])
    assert (got - wanted).norm() < 0.05 * wanted.norm()
    assert same(state(small), before)


def test_untouched_parameters_are_not_stored(base, prompts):
    model = copy.deepcopy(base)
    layer = "model.language_model.layers.1.mlp.up_proj"
    norm = "model.language_model.norm.weight"
    model.get_parameter(f"{layer}.weight").add_(0.01)
    model.get_parameter(norm).mul_(1.5)
    made = difference(base, model, "bitdelta", progress=False)
    assert list(made.layers) == [layer] and list(made.whole) == [norm]
    assert difference(base, copy.deepcopy(base), "bitdelta", progress=False).tensors() == {}


def test_the_folder_holds_what_was_made(base, delta, tmp_path):
    folder = save(delta, tmp_path / "delta")
    again = load(folder)
    assert same(again.tensors(), delta.tensors())
    assert again.base_sha256 == parameters_sha256(base) and Recipe.of(again.recipe) == Recipe.of(delta.recipe)
    assert {n: (c.shape, [t for t, _ in c.parts]) for n, c in again.layers.items()} == {
        n: (c.shape, [t for t, _ in c.parts]) for n, c in delta.layers.items()
    }
    size = (folder / TENSORS).stat().st_size
    assert delta.bytes < size < delta.bytes + 200 * (len(delta.tensors()) + 1)  # the header names each tensor
    linear = sum(c.shape[0] * c.shape[1] for c in delta.layers.values())
    packed = sum(t.numel() * t.element_size() for name, t in delta.tensors().items() if name.startswith("layers/"))
    assert packed < linear * 2  # 4 bits a weight of codes, and the scales of tiny layers, in float32
    assert {p.name for p in folder.iterdir()} == {TENSORS, CONFIG}
    assert [p.name for p in tmp_path.iterdir()] == ["delta"]


def test_another_base_is_refused_with_both_hashes(base, delta, tmp_path):
    other = copy.deepcopy(base)
    other.get_parameter("model.language_model.norm.weight")[0] += 1e-3
    told = f"{parameters_sha256(base)[:12]}.*{parameters_sha256(other)[:12]}"
    with pytest.raises(CheckpointError, match=told):
        Deltas(other).add("a", save(delta, tmp_path / "delta"))
    with pytest.raises(CheckpointError, match=told):
        merge(other, delta)


def test_names_are_checked(base, delta):
    deltas = Deltas(base)
    deltas.add("a", delta)
    with pytest.raises(WeightsError, match="already"):
        deltas.add("a", delta)
    with pytest.raises(UnknownName, match="'b'; there are: a"):
        deltas.use("b")


def test_a_folder_is_never_overwritten(delta, tmp_path):
    folder = save(delta, tmp_path / "delta")
    with pytest.raises(CheckpointError, match="exists"):
        save(delta, folder)
    (tmp_path / "empty").mkdir()
    assert load(save(delta, tmp_path / "empty")).bytes == delta.bytes


def test_an_interrupted_save_leaves_nothing(delta, tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("vtc.weights.deltas.folder.write_json", full)
    with pytest.raises(CheckpointError, match="cannot be written .No space"):
        save(delta, tmp_path / "delta")
    assert not list(tmp_path.iterdir())


def test_layers_without_a_pass_are_kept_whole(base, tuned):
    name = "model.language_model.layers.0.mlp.up_proj"
    made = difference(base, tuned[0], dict(passes=[], by_layer={name: ["bitdelta"]}), progress=False)
    assert list(made.layers) == [name]
    assert "model.language_model.layers.1.mlp.up_proj.weight" in made.whole and f"{name}.weight" not in made.whole


def test_models_that_do_not_match_are_refused(base, tuned, prompts):
    with pytest.raises(WeightsError, match="only one of"):
        difference(base, zoo.build("llava", layers=1), "bitdelta", progress=False)
    with pytest.raises(WeightsError, match="float32 in the base and .*bfloat16"):
        difference(base, copy.deepcopy(base).bfloat16(), "bitdelta", progress=False)
    with pytest.raises(WeightsError, match="calibration"):
        difference(base, tuned[0], "deltacome", progress=False)
    with pytest.raises(WeightsError, match="calibration is empty"):
        difference(base, tuned[0], "deltacome", [], progress=False)
    with pytest.raises(WeightsError, match="by_layer names 'nothing'"):
        recipe = dict(passes=["bitdelta"], by_layer={"nothing": ["bitdelta"]})
        difference(base, tuned[0], recipe, progress=False)
    broken = copy.deepcopy(tuned[0])
    broken.get_parameter("model.language_model.layers.0.mlp.up_proj.weight")[0, 0] = float("nan")
    with pytest.raises(WeightsError, match="layers.0.mlp.up_proj: .*not finite"):
        difference(base, broken, "bitdelta", progress=False)


def rewritten(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda c: c.update(schema_version=2), "schema version 2"),
        (lambda c: c.update(colour="red"), "unknown fields .*colour"),
        (lambda c: c.pop("base"), "missing fields .*base"),
        (lambda c: c.update(base="another"), "was changed"),
        (lambda c: next(iter(c["layers"].values())).update(shape=[1, 1]), "was changed"),
    ],
)
def test_a_changed_description_is_refused(delta, tmp_path, change, told):
    folder = save(delta, tmp_path / "delta")
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=told):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: next(iter(c["layers"].values())).update(shape=[1, 1]),
        lambda c: next(iter(c["layers"].values())).update(shape="wide"),
        lambda c: next(iter(c["layers"].values())).update(dtype="int99"),
        lambda c: next(iter(c["layers"].values())).update(colour="red"),
        lambda c: next(iter(c["layers"].values()))["terms"][0].update(kind="magic"),
        lambda c: next(iter(c["layers"].values()))["terms"][0].update(bands=[[8, 10**9]]),
        lambda c: c["layers"].popitem(),
        lambda c: c["whole"].append("model.nothing"),
        lambda c: c.update(layers=[]),
    ],
)
def test_a_description_that_lies_is_refused_even_where_its_hash_agrees(delta, tmp_path, change):
    from vtc.weights.deltas.folder import _digest

    folder = save(delta, tmp_path / "delta")
    rewritten(folder, change)
    rewritten(folder, lambda c: c.update(sha256=_digest({k: v for k, v in c.items() if k != "sha256"})))
    with pytest.raises(CheckpointError):
        load(folder)


def test_one_thing_changed_anywhere(delta, tmp_path):
    """Its hash agreeing: the library's own error with the file's name, never a raw one."""
    from vtc.weights.deltas.folder import _digest

    folder, at = save(delta, tmp_path / "delta"), random.Random(0)
    whole = json.loads((folder / CONFIG).read_text())
    for _ in range(300):
        config = mutated({k: v for k, v in whole.items() if k != "sha256"}, at)
        if isinstance(config, dict):
            config["sha256"] = _digest(config)
        (folder / CONFIG).write_text(json.dumps(config))
        try:
            load(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)


def test_names_that_the_model_lacks_are_refused(base, delta):
    """That the base agrees is no promise of the layers: a delta may be made by hand."""
    lies = delta
    for wrong in (
        dataclasses.replace(lies, layers={"model.layers.99.up_proj": next(iter(delta.layers.values()))}),
        dataclasses.replace(lies, layers={}, whole={"model.nothing": torch.ones(2)}),
        dataclasses.replace(lies, layers={}, whole={"model.language_model.norm.weight": torch.ones(2)}),
    ):
        with pytest.raises(CheckpointError, match="which this model does not have"):
            merge(copy.deepcopy(base), wrong)
        with pytest.raises(CheckpointError, match="which this model does not have"):
            Deltas(base).add("a", wrong)


def test_flipped_and_missing_bytes_are_refused(delta, tmp_path):
    folder = save(delta, tmp_path / "delta")
    for name in (TENSORS, CONFIG):
        whole = (folder / name).read_bytes()
        for at in torch.randint(len(whole), (60,), generator=torch.Generator().manual_seed(0)).tolist():
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(CheckpointError):
                load(folder)
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError):
            load(folder)
        (folder / name).unlink()
        with pytest.raises(CheckpointError):
            load(folder)
        (folder / name).write_bytes(whole)
    assert load(folder).bytes == delta.bytes


def test_a_tensor_that_nothing_describes_is_refused(delta, tmp_path):
    from vtc.files.digest import weights_sha256
    from vtc.weights.deltas.folder import _digest

    folder = save(delta, tmp_path / "delta")
    save_file({**load_file(folder / TENSORS), "stowaway": torch.zeros(3)}, folder / TENSORS)
    rewritten(folder, lambda c: c.update(weights_sha256=weights_sha256(folder)))
    rewritten(folder, lambda c: c.update(sha256=_digest({k: v for k, v in c.items() if k != "sha256"})))
    with pytest.raises(CheckpointError, match="stowaway"):
        load(folder)
