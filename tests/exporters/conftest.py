"""Exports that tests share: each model is exported once a session, and tests only read its folder."""

from functools import cache
from types import SimpleNamespace

import pytest
from export_cases import FEW_LAYERS, PACKAGES, remove_every_other_unit, require

from hf_efficient import export
from hf_efficient.exporters.config import uses_calibration
from hf_efficient.models import family_of


@pytest.fixture(params=PACKAGES)
def runtime(request):
    require(request.param)
    return request.param


@pytest.fixture(scope="session")
def one_layer_model(make_model):
    """Builds a tiny model of one layer a stack: exporting takes longer the more layers there are."""

    def build(head, **changes):
        model_type = family_of(make_model(head)).model_type
        return make_model(head, **FEW_LAYERS.get(model_type, {"num_hidden_layers": 1}), **changes)

    return build


@pytest.fixture(scope="session")
def exported(one_layer_model, make_batch, tmp_path_factory):
    """Exports a tiny model of one layer by the name of its class: the model, the folder and the result."""

    @cache
    def build(head="BertForSequenceClassification", format="onnx", quantization=None, pruned=False):
        require(format)
        model = one_layer_model(head)
        if pruned:
            model = remove_every_other_unit(model)
        calibration = None
        if uses_calibration(format, quantization):
            calibration = [make_batch(head, labelled=True, seed=seed) for seed in range(2)]
        folder = tmp_path_factory.mktemp("export") / format
        result = export(model, folder, format, quantization, calibration)
        return SimpleNamespace(model=model, folder=folder, result=result)

    return build
