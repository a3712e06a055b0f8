"""Arguments of other types than they have, as a program can give them, are refused with what to give."""

import dataclasses
import json
import re
import time

import numpy as np
import pytest
import torch
from torch import nn

from hf_efficient import DistillationConfig, PruningConfig, QuantizationConfig, export, measure, prune, quantize
from hf_efficient.commands.config import ModelConfig
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.hub.config import PushConfig, SpaceConfig

HEADS = PruningConfig(heads=0.5)


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (PruningConfig, {"rounds": 1.5}),
        (PruningConfig, {"rounds": True}),
        (PruningConfig, {"rounds": 10**400}),
        (PruningConfig, {"rounds": 1_000_000}),
        (PruningConfig, {"portable": "x"}),
        (PruningConfig, {"portable": 1}),
        (PruningConfig, {"target_flops": float("inf")}),
        (PruningConfig, {"target_flops": float("nan")}),
        (PruningConfig, {"target_flops": 10**400}),
        (PruningConfig, {"target_flops": "2"}),
        (PruningConfig, {"target_flops": torch.tensor(2.0)}),
        (PruningConfig, {"heads": [1]}),
        (PruningConfig, {"multiple_of": 10**30}),
        (QuantizationConfig, {"scheme": 3}),
        (QuantizationConfig, {"bits": 4.0}),
        (QuantizationConfig, {"skip_modules": ["a"]}),
        (QuantizationConfig, {"skip_modules": "(" * 400 + ")" * 400}),
        (QuantizationConfig, {"skip_modules": "a" * 100_000}),
        (DistillationConfig, {"temperature": "2"}),
        (DistillationConfig, {"hidden_weight": float("nan")}),
        (DistillationConfig, {"cache_top_k": 1.5}),
        (DataConfig, {"max_length": "x"}),
        (DataConfig, {"max_length": 1.5}),
        (DataConfig, {"train_file": 3}),
        (DataConfig, {"dataset_name": ["a"]}),
        (ExportConfig, {"export": 3}),
        (ExportConfig, {"export": [3]}),
        (ExportConfig, {"export": "onnx"}),
        (ExportConfig, {"export_quantization": None}),
        (ModelConfig, {"model_name_or_path": 3}),
        (ModelConfig, {"model_name_or_path": "a", "teacher_name_or_path": "b"}),
        (ModelConfig, {"model_name_or_path": "a", "distil": "True"}),
        (PushConfig, {"repo_id": 3}),
        (PushConfig, {"repo_id": "me/x", "private": "True"}),
        (SpaceConfig, {"space": 3}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_field(config_class, fields):
    with pytest.raises(UserError, match=r"give|not a regular expression") as error:
        config_class(**fields)
    assert list(fields)[-1] in str(error.value)
    assert len(str(error.value)) < 3000


def test_numbers_of_numpy_become_numbers_of_python():
    config = PruningConfig(target_flops=np.float32(2.5), rounds=np.int64(3))
    assert (type(config.target_flops), type(config.rounds)) == (float, int)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["target_flops"] == 2.5
    temperature = DistillationConfig(temperature=np.float64(2)).temperature
    assert json.dumps(temperature) == "2.0"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, batch: prune("model", HEADS), "model='model' is a str: give a model of Transformers"),
        (lambda model, batch: prune(nn.Linear(2, 2), HEADS), "is a Linear: give a model of Transformers"),
        (lambda model, batch: prune(model, None), "config=None is a NoneType: give a PruningConfig"),
        (lambda model, batch: prune(model, {"heads": 0.5}), "is a dict: give a PruningConfig"),
        (lambda model, batch: prune(model, QuantizationConfig()), "is a QuantizationConfig: give a PruningConfig"),
        (lambda model, batch: prune(model, HEADS, batch), "dataloader is a dict: give a DataLoader"),
        (lambda model, batch: prune(model, HEADS, None), "dataloader is a NoneType: give a DataLoader"),
        (lambda model, batch: prune(model, HEADS, ["text"]), "a batch of dataloader is a str without tensors"),
        (lambda model, batch: quantize("model"), "model='model' is a str"),
        (lambda model, batch: quantize(model, "int8_dynamic"), "is a str: give a QuantizationConfig"),
        (lambda model, batch: quantize(model, None, batch), "calibration is a dict"),
        (lambda model, batch: quantize(model, None, ["text"]), "a batch of calibration is a str without tensors"),
        (lambda model, batch: measure("model", batch), "model is a str: give a torch module"),
        (lambda model, batch: measure(model, {}), "inputs hold no tensors"),
        (lambda model, batch: measure(model, {"input_ids": np.ones((1, 4))}), "inputs hold no tensors"),
        (lambda model, batch: export("model", "out"), "model='model' is a str"),
        (lambda model, batch: export(model, 3), "directory=3 is a int: give a path"),
        (lambda model, batch: export(model, "out", format=3), "format=3 is unknown"),
    ],
)
def test_argument(make_model, make_batch, call, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call(make_model(), make_batch())


@pytest.mark.parametrize("pattern", [r"(.|.)+[?!]", r"((\w|\.)+)+[^\w.]"])
def test_pattern_that_takes_exponential_time_is_refused(pattern):
    start = time.process_time()
    with pytest.raises(UserError, match="takes too long to match"):
        QuantizationConfig(skip_modules=pattern)
    assert time.process_time() - start < 1
