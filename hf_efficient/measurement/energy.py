"""Energy that a counter of this machine read: none is guessed from a table of processors."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import torch

JOULES_PER_KWH = 3.6e6
COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"
# How carbon emissions are weighed where nobody said where the machine stands; the result is then thrown away.
_ANYWHERE = "USA"


@dataclass(frozen=True)
class Energy:
    """Joules that processor and accelerator took, as far as they have counters, and the CO2 of making them in grams.

    The counters are the machine's: what else runs on it at the time is in them. `co2_grams` is None where the variable
    CODECARBON_COUNTRY_ISO_CODE does not say in which country the machine is.
    """

    joules: float
    co2_grams: float | None


class EnergyCounter:
    """Counts the energy of what is done on `device` inside `with`; `energy` is None where nothing was counted.

    Needs the package codecarbon (the extra `energy`), and a counter of what computes: RAPL for a processor, NVML for
    an accelerator. codecarbon would estimate from a table without one, and that is no measurement.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.energy: Energy | None = None
        self._tracker: Any = None
        self._processor = self._accelerator = False

    @property
    def counts(self) -> bool:
        """Whether what computes has a counter that can be read here."""
        if find_spec("codecarbon") is None:
            return False
        from codecarbon.core import cpu, gpu

        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._processor = bool(cpu.is_rapl_available())
        self._accelerator = self.device.type == "cuda" and bool(gpu.is_gpu_details_available())
        return self._processor if self.device.type == "cpu" else self._accelerator

    def __enter__(self) -> EnergyCounter:
        if self.counts:
            from codecarbon import OfflineEmissionsTracker

            country = os.environ.get(COUNTRY, _ANYWHERE)
            self._tracker = OfflineEmissionsTracker(
                country_iso_code=country, save_to_file=False, log_level="error", allow_multiple_runs=True
            )
            self._tracker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is None:
            return
        self._tracker.stop()
        found, self._tracker = self._tracker.final_emissions_data, None
        counted = (found.cpu_energy if self._processor else 0.0) + (found.gpu_energy if self._accelerator else 0.0)
        if kind is not None or not counted:
            return
        grams = found.emissions * 1e3 / found.energy_consumed * counted if os.environ.get(COUNTRY) else None
        self.energy = Energy(counted * JOULES_PER_KWH, grams)
