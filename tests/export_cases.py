"""Tiny models to export, and comparisons of their outputs."""

from importlib.util import find_spec

import pytest
import torch

from hf_efficient.models import family_of
from hf_efficient.pruning.selection import Selection, remove_units

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
# Changes of a config that leave one layer a stack; of ModernBERT two, with global and with local attention.
FEW_LAYERS = {
    "t5": {"num_layers": 1},
    "mt5": {"num_layers": 1},
    "bart": {"encoder_layers": 1, "decoder_layers": 1},
    "marian": {"encoder_layers": 1, "decoder_layers": 1},
    "distilbert": {"n_layers": 1},
    "modernbert": {"num_hidden_layers": 2},
    "albert": {"num_hidden_layers": 1, "num_hidden_groups": 1},
}
FULL_PRECISION = {"openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}}}


def require(format):
    missing = [package for package in PACKAGES[format] if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of the extra hf_efficient[{format}] is not installed")


def remove_every_other_unit(model):
    """Returns a copy of `model` of a shape that no stock class has: half of the heads and neurons of each block."""
    family = family_of(model)
    units = {name: tuple(range(1, block.units, 2)) for name, block in family.blocks(model).items()}
    return remove_units(model, Selection(tuple(family.layers(model)), units)).eval()


def largest_difference(outputs, expected):
    return max(
        float((outputs[name] - value).abs().max())
        for name, value in expected.items()
        if torch.is_tensor(value) and value.is_floating_point()
    )


def sentences(count=3):
    ids = torch.randint(2, 100, (count, 7), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 1
    mask = torch.ones_like(ids)
    ids[0, 4:], mask[0, 4:] = 0, 0
    ids[0, 3] = 1
    return {"input_ids": ids, "attention_mask": mask}
