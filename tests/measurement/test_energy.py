"""Energy is read from a counter, or is None; codecarbon and its counters are replaced here."""

import sys
import types
from typing import ClassVar

import pytest
import torch

from hf_efficient.measurement import comparison, energy
from hf_efficient.measurement.energy import Energy, EnergyCounter


class Tracker:
    """Measures 2 Wh of the processor and 3 Wh of an accelerator, estimates 5 Wh of memory; 0.1 kg of CO2 per kWh."""

    settings: ClassVar[dict] = {}

    def __init__(self, **settings):
        Tracker.settings = settings

    def start(self):
        self.final_emissions_data = None

    def stop(self):
        self.final_emissions_data = types.SimpleNamespace(
            cpu_energy=0.002, gpu_energy=0.003, ram_energy=0.005, energy_consumed=0.010, emissions=0.001
        )


@pytest.fixture
def counters(monkeypatch):
    """Return a function that installs a codecarbon with these counters."""

    def install(processor, accelerator=False):
        modules = {
            "codecarbon": types.SimpleNamespace(OfflineEmissionsTracker=Tracker),
            "codecarbon.core": types.SimpleNamespace(),
            "codecarbon.core.cpu": types.SimpleNamespace(is_rapl_available=lambda: processor),
            "codecarbon.core.gpu": types.SimpleNamespace(is_gpu_details_available=lambda: accelerator),
        }
        modules["codecarbon.core"].cpu = modules["codecarbon.core.cpu"]
        modules["codecarbon.core"].gpu = modules["codecarbon.core.gpu"]
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(energy, "find_spec", lambda name: object())
        monkeypatch.delenv(energy.COUNTRY, raising=False)

    return install


def measure_energy(device="cpu"):
    with EnergyCounter(torch.device(device)) as counter:
        pass
    return counter.energy


def test_energy_is_none_without_codecarbon(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    assert measure_energy() is None


def test_energy_is_none_without_a_counter(counters):
    counters(processor=False)
    assert measure_energy() is None


def test_energy_is_none_if_only_the_processor_has_a_counter(counters, monkeypatch):
    counters(processor=True, accelerator=True)
    monkeypatch.setattr(sys.modules["codecarbon.core.gpu"], "is_gpu_details_available", lambda: False)
    assert measure_energy("cuda") is None
    assert measure_energy("mps") is None


def test_energy_excludes_estimates(counters):
    counters(processor=True)
    assert measure_energy() == Energy(pytest.approx(7200), None)
    counters(processor=True, accelerator=True)
    assert measure_energy("cuda") == Energy(pytest.approx(18000), None)
    assert measure_energy("cpu") == Energy(pytest.approx(7200), None)  # the accelerator is idle
    assert not Tracker.settings["save_to_file"]


def test_co2_is_computed_if_the_country_is_known(counters, monkeypatch):
    counters(processor=True)
    monkeypatch.setenv(energy.COUNTRY, "FRA")
    assert measure_energy() == Energy(pytest.approx(7200), pytest.approx(0.2))
    assert Tracker.settings["country_iso_code"] == "FRA"


def test_energy_is_none_after_an_exception(counters):
    counters(processor=True)
    counter = EnergyCounter(torch.device("cpu"))
    with pytest.raises(KeyError), counter:
        raise KeyError
    assert counter.energy is None


def test_energy_is_divided_by_all_samples(counters, monkeypatch):
    counters(processor=True)
    clock = iter(range(100))
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(comparison, "ENERGY_SECONDS", 4.5)
    assert comparison._energy_per_sample(lambda: None, 9, torch.device("cpu")) == pytest.approx(7200 / (4 * 9))
