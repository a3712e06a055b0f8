"""Compression of BERT- and T5-family models: prune, distil, quantize, measure, and load with `from_pretrained`.

The public names are imported when they are first used: `import hf_efficient` itself imports neither torch nor
Transformers. From then on the Auto classes of Transformers load pruned models without remote code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_efficient.registry import register_on_lookup

if TYPE_CHECKING:
    from hf_efficient.distillation.config import DistillationConfig
    from hf_efficient.errors import NonFiniteLossError, PushError, UnsupportedModelError, UserError
    from hf_efficient.exporters.config import ExportConfig
    from hf_efficient.exporters.runtime_models import load_exported
    from hf_efficient.functions import export, measure, prune, quantize
    from hf_efficient.measurement.report import CompressionReport
    from hf_efficient.models import FAMILIES, Structure
    from hf_efficient.pruning.config import PruningConfig
    from hf_efficient.pruning.criteria import CRITERIA
    from hf_efficient.quantization.config import QuantizationConfig
    from hf_efficient.trainer.trainer import EfficientSeq2SeqTrainer, EfficientTrainer

__version__ = "0.1.0"

_MODULES = {
    "CRITERIA": "pruning.criteria",
    "FAMILIES": "models",
    "CompressionReport": "measurement.report",
    "DistillationConfig": "distillation.config",
    "EfficientSeq2SeqTrainer": "trainer.trainer",
    "EfficientTrainer": "trainer.trainer",
    "ExportConfig": "exporters.config",
    "NonFiniteLossError": "errors",
    "PruningConfig": "pruning.config",
    "PushError": "errors",
    "QuantizationConfig": "quantization.config",
    "Structure": "models",
    "UnsupportedModelError": "errors",
    "UserError": "errors",
    "export": "functions",
    "load_exported": "exporters.runtime_models",
    "measure": "functions",
    "prune": "functions",
    "quantize": "functions",
}
__all__ = [
    "CRITERIA",
    "FAMILIES",
    "CompressionReport",
    "DistillationConfig",
    "EfficientSeq2SeqTrainer",
    "EfficientTrainer",
    "ExportConfig",
    "NonFiniteLossError",
    "PruningConfig",
    "PushError",
    "QuantizationConfig",
    "Structure",
    "UnsupportedModelError",
    "UserError",
    "export",
    "load_exported",
    "measure",
    "prune",
    "quantize",
]

register_on_lookup("pruned_", "hf_efficient.models")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
