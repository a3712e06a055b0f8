"""Energy that a counter of this machine measured; never an estimate."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

JOULES_PER_KWH = 3.6e6
COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"
# codecarbon needs a country to compute emissions; without the variable above those are discarded.
_DEFAULT_COUNTRY = "USA"


@dataclass(frozen=True)
class Energy:
    """Joules of the processor and the accelerator, as far as they have counters, and the CO2 of that energy in grams.

    Counters measure the machine, so other processes that ran at the same time are included. `co2_grams` is None unless
    the environment variable CODECARBON_COUNTRY_ISO_CODE names the country that the machine is in.
    """

    joules: float
    co2_grams: float | None


class EnergyCounter:
    """Context manager that measures the energy used on `device`; `energy` is None if it could not be measured.

    Needs the package codecarbon (the extra `energy`) and a counter of the device: RAPL for a processor, NVML for an
    accelerator. Without a counter codecarbon would estimate from a table of processors, which is not a measurement.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.energy: Energy | None = None
        self._tracker: Any = None
        self._reads_processor = self._reads_accelerator = False

    @property
    def counts(self) -> bool:
        """Whether the device has a counter that can be read here."""
        if find_spec("codecarbon") is None:
            return False
        from codecarbon.core import cpu, gpu

        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._reads_processor = bool(cpu.is_rapl_available())
        self._reads_accelerator = self.device.type == "cuda" and bool(gpu.is_gpu_details_available())
        return self._reads_processor if self.device.type == "cpu" else self._reads_accelerator

    def __enter__(self) -> EnergyCounter:
        if self.counts:
            from codecarbon import OfflineEmissionsTracker

            country = os.environ.get(COUNTRY, _DEFAULT_COUNTRY)
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
        data, self._tracker = self._tracker.final_emissions_data, None
        energy_kwh = data.cpu_energy if self._reads_processor else 0.0
        energy_kwh += data.gpu_energy if self._reads_accelerator else 0.0
        if kind is not None or not energy_kwh:
            return
        co2_grams = data.emissions * 1e3 / data.energy_consumed * energy_kwh if os.environ.get(COUNTRY) else None
        self.energy = Energy(energy_kwh * JOULES_PER_KWH, co2_grams)
