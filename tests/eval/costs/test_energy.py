"""Joules from counters: a fake powercap folder, a counter that wraps, and none at all."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.eval.tiny import picture
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.cells import Cell
from vtc.eval.costs import energy
from vtc.eval.costs.energy import RAPL
from vtc.eval.costs.interleaved import Turns
from vtc.eval.costs.measure import entered


@pytest.fixture
def zones(tmp_path):
    """Two packages, a part of the first and what holds all, as Linux shows them; sets a counter."""
    names = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core", "intel-rapl:2": "psys"}

    def put(zone, microjoules, wrap=1_000_000):
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(names[zone] + "\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text(f"{wrap}\n")

    for zone in names:
        put(zone, 900_000)
    return put


def test_packages_are_added_and_their_parts_are_not(zones, tmp_path):
    def work():
        zones("intel-rapl:0", 950_000)
        zones("intel-rapl:1", 920_000)
        zones("intel-rapl:0:0", 940_000)
        zones("intel-rapl:2", 990_000)

    assert RAPL(tmp_path).measure(work) == pytest.approx(0.07)
    assert RAPL(tmp_path).measure(lambda: None) == 0.0


def test_a_counter_that_wraps(zones, tmp_path):
    assert RAPL(tmp_path).measure(lambda: zones("intel-rapl:0", 100_000)) == pytest.approx(0.2)


def test_no_counter_is_an_error_of_the_reader(tmp_path):
    with pytest.raises(OSError, match="no RAPL package"):
        RAPL(tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    with pytest.raises(OSError):
        RAPL(tmp_path)


def test_joules_of_a_question(vlm, monkeypatch):
    class Counter:
        name = "rapl"

        def measure(self, run):
            run()
            return 6.0

    answerer = Answerer(*vlm, Benchmark.frame, max_new_tokens=2)
    asked = [Asked(Sample("x", "what ?"), [picture(0)], answerer.prompt("what ?", 1))] * 2
    rounds = []
    real = Answerer.generate
    monkeypatch.setattr(Answerer, "generate", lambda *a, **k: rounds.append(1) or real(*a, **k))
    assert energy.a_question(Counter(), answerer, answerer.inputs(asked), 0.02) == 6.0 / (2 * len(rounds))
    monkeypatch.setattr(energy, "SECONDS", 0.0)
    enter = {"unpatched": lambda: entered(answerer.model, Cell())}
    monkeypatch.setattr(energy, "meter", lambda device: Counter())
    assert energy.energy(answerer, enter, asked, Turns()) == {
        "unpatched": {"joules": 3.0, "iqr_joules": 0.0, "source": "rapl", "batch": 2}
    }
    monkeypatch.setattr(energy, "meter", lambda device: None)
    assert energy.energy(answerer, enter, asked, Turns()) == {
        "unpatched": {"joules": "unavailable", "source": "unavailable"}
    }


def test_nvml_counts_millijoules_of_the_gpu_that_torch_uses(monkeypatch):
    counted, asked_for = iter([5_000, 5_000, 7_500]), []
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked_for.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counted),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-ab"))
    gauge = energy.meter(torch.device("cuda:1"))
    assert asked_for == ["GPU-12-ab"] and gauge.name == "nvml"
    assert gauge.measure(lambda: None) == 2.5


def test_a_gpu_without_nvml_has_no_meter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.meter(torch.device("cuda")) is None and energy.meter(torch.device("meta")) is None
