"""Makes BERT- and T5-family models small and fast, measures it, and saves what `from_pretrained` loads."""

from hf_efficient.quiet import quiet_torchao

with quiet_torchao():
    from hf_efficient.models import FAMILIES, Structure
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distilling import NonFiniteLossError
from hf_efficient.exported import load_exported
from hf_efficient.exporting import ExportConfig, export
from hf_efficient.measurement.comparison import measure
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.importance import CRITERIA
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantizing import quantize
from hf_efficient.speedup import prune
from hf_efficient.trainer import EfficientSeq2SeqTrainer, EfficientTrainer

__version__ = "0.1.0"

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
    "QuantizationConfig",
    "Structure",
    "export",
    "load_exported",
    "measure",
    "prune",
    "quantize",
]
