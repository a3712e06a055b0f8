"""Energy is what a counter read, or nothing: here the counter, and codecarbon, are stood in for."""

import sys
import types
from typing import ClassVar

import pytest
import torch

from hf_efficient.measurement import comparison, energy
from hf_efficient.measurement.energy import Energy, EnergyCounter


class Tracker:
    """Counts 2 Wh of the processor and 3 of an accelerator, and guesses 5 of the memory; 0.1 kg of CO2 a kWh."""

    asked: ClassVar[dict] = {}

    def __init__(self, **settings):
        Tracker.asked = settings

    def start(self):
        self.final_emissions_data = None

    def stop(self):
        self.final_emissions_data = types.SimpleNamespace(
            cpu_energy=0.002, gpu_energy=0.003, ram_energy=0.005, energy_consumed=0.010, emissions=0.001
        )


@pytest.fixture
def counters(monkeypatch):
    """Installs a codecarbon that finds such counters."""

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


def counted(device="cpu"):
    with EnergyCounter(torch.device(device)) as counter:
        pass
    return counter.energy


def test_without_codecarbon_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    assert counted() is None


def test_an_estimate_is_no_measurement(counters):
    counters(processor=False)
    assert counted() is None


def test_an_accelerator_without_a_counter_is_not_replaced_by_the_processor(counters, monkeypatch):
    counters(processor=True, accelerator=True)
    monkeypatch.setattr(sys.modules["codecarbon.core.gpu"], "is_gpu_details_available", lambda: False)
    assert counted("cuda") is None
    assert counted("mps") is None


def test_the_counted_energy_is_without_the_guessed(counters):
    counters(processor=True)
    assert counted() == Energy(pytest.approx(7200), None)
    counters(processor=True, accelerator=True)
    assert counted("cuda") == Energy(pytest.approx(18000), None)
    assert counted("cpu") == Energy(pytest.approx(7200), None)  # the accelerator idles
    assert not Tracker.asked["save_to_file"]


def test_carbon_is_known_where_the_country_is(counters, monkeypatch):
    counters(processor=True)
    monkeypatch.setenv(energy.COUNTRY, "FRA")
    assert counted() == Energy(pytest.approx(7200), pytest.approx(0.2))
    assert Tracker.asked["country_iso_code"] == "FRA"


def test_what_failed_has_no_energy(counters):
    counters(processor=True)
    counter = EnergyCounter(torch.device("cpu"))
    with pytest.raises(KeyError), counter:
        raise KeyError
    assert counter.energy is None


def test_a_sample_takes_its_share(counters, monkeypatch):
    counters(processor=True)
    clock = iter(range(100))
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(comparison, "ENERGY_SECONDS", 4.5)
    assert comparison._energy_per_sample(lambda: None, 9, torch.device("cpu")) == pytest.approx(7200 / (4 * 9))
