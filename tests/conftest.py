"""Tiny random models of every family, inputs for them, and checks that many tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import datasets
import pytest
import torch
from heads import BERT_HEADS, HEADS
from reviews import job_dir, review_model_dir  # noqa: F401 (fixtures)
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.exporters.signal_stack import use_ordinary_signal_stack
from hf_efficient.models import family_of, int8_kernels
from hf_efficient.models.blocks import AttentionBlock
from hf_efficient.models.inputs import task_head_of
from hf_efficient.pruning.selection import Selection


@pytest.fixture(autouse=True)
def separate_dataset_cache(tmp_path_factory, monkeypatch):
    """Give each test its own cache of datasets, so that none depends on what another test has cached."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module", autouse=True)
def unchecked_modules():
    """Leave what is imported so far out of collections of garbage: a training makes several, each of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signal_stack():
    """Undo what OpenVINO models that other tests deleted have left: a signal would end the process."""
    use_ordinary_signal_stack()


TINY = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
TINY_ROBERTA = {**TINY, "pad_token_id": 1, "type_vocab_size": 1}
TINY_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 3,
    "d_ff": 64,
    "vocab_size": 100,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
TINY_MODERNBERT = {
    **TINY,
    "global_attn_every_n_layers": 2,
    "local_attention": 12,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
}
TINY_BART = {
    "d_model": 32,
    **{f"{stack}_layers": 3 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 64 for stack in ("encoder", "decoder")},
    "vocab_size": 100,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 0,
}
TINY_DEBERTA = {
    **TINY,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
# SHAPES below assume three layers in each stack, four heads in each attention block and 64 neurons.
TINY_OF_FAMILY: dict[str, dict[str, object]] = {
    "bert": TINY,
    "roberta": TINY_ROBERTA,
    "xlm-roberta": TINY_ROBERTA,
    "camembert": TINY_ROBERTA,
    "distilbert": {
        "dim": 32,
        "n_heads": 4,
        "n_layers": 3,
        "hidden_dim": 64,
        "vocab_size": 100,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "electra": {**TINY, "embedding_size": 16},
    "t5": TINY_T5,
    "mt5": TINY_T5,  # with gated feed-forward blocks
    "modernbert": TINY_MODERNBERT,
    "mpnet": {**TINY, "pad_token_id": 1},
    "deberta-v2": TINY_DEBERTA,
    "bart": TINY_BART,
    "marian": TINY_BART,
    "albert": {**TINY, "embedding_size": 16, "num_hidden_groups": 3, "num_hidden_layers": 6},
}
FAMILIES_WITH_TOKEN_TYPES = ("bert", "electra", "albert")
FAMILIES_WITH_EOS = ("t5", "mt5", "bart", "marian")  # their classifier reads the end-of-sequence token
ENCODER_DECODERS = ("T5Model", "MT5Model", "BartModel", "MarianModel")  # they need inputs of the decoder
# For each kept layer, the positions of its kept heads and neurons.
SHAPES: dict[str, dict[int, tuple[Sequence[int], Sequence[int]]]] = {
    "uneven widths": {0: ((1, 3), range(0, 64, 3)), 1: ((0,), range(5)), 2: (range(4), range(64))},
    "a block without heads": {0: (range(4), range(64)), 1: ((), range(7, 40)), 2: ((2,), range(64))},
    "a block without neurons": {0: ((0, 1), ()), 1: (range(4), range(9)), 2: ((3,), range(64))},
    "a layer gone": {0: ((0, 2, 3), range(20)), 2: ((1,), range(30, 64))},
    "all of these": {0: ((), ()), 2: ((2,), (0, 63))},
    "a stock shape": {0: (range(4), range(0, 64, 2)), 2: (range(4), range(32))},
}
UNEVEN = [shape for shape in SHAPES if shape != "a stock shape"]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With `--dist loadfile`, let all tests of the Hub share a process too: their fixtures take a minute."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadFolderOfHub(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/hub" if nodeid.startswith("tests/hub/") else super()._split_scope(nodeid)

    return LoadFolderOfHub(config, log)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error::FutureWarning")


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def heads() -> tuple[str, ...]:
    """Return the names of all model classes of the BERT family."""
    return BERT_HEADS


@pytest.fixture(params=BERT_HEADS)
def head(request: pytest.FixtureRequest) -> str:
    """Run the test for each model class of the BERT family, by name."""
    return request.param


@pytest.fixture(params=HEADS)
def any_head(request: pytest.FixtureRequest) -> str:
    """Run the test for each model class of each family, by name."""
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    """Run the test for each of SHAPES, by name."""
    return request.param


@pytest.fixture(params=UNEVEN)
def uneven_shape(request: pytest.FixtureRequest) -> str:
    """Run the test for each of SHAPES that no stock class can hold, by name."""
    return request.param


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """Build a tiny model by the name of its class; random weights make every unit different from every other."""

    def make(head: str = "BertForSequenceClassification", seed: int = 0, **changes: object) -> PreTrainedModel:
        family, cls = HEADS[head]
        labels = {} if "id2label" in changes else {"num_labels": 2 if head.endswith("ForQuestionAnswering") else 3}
        model = cls(family.config_class(**{**TINY_OF_FAMILY[family.model_type], **labels, **changes}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                # Positions that are computed, as Marian's, are not trained and not saved.
                for parameter in (each for each in module.parameters(recurse=False) if each.requires_grad):
                    parameter.normal_(0, 0.3, generator=generator)
                if isinstance(module, nn.LayerNorm):
                    module.weight += 1
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Build padded inputs for a model class, on request with labels for its task head."""

    def make(head: str = "BertForSequenceClassification", labelled: bool = False, seed: int = 0) -> dict:
        family, task = HEADS[head][0].model_type, task_head_of(head)
        padding: int = TINY_OF_FAMILY[family]["pad_token_id"]
        generator = torch.Generator().manual_seed(seed)
        shape = (3, 2, 9) if task == "MultipleChoice" else (3, 9)
        lengths = torch.tensor([9, 6, 3]).view(3, *[1] * (len(shape) - 1))
        mask = (torch.arange(9) < lengths).long().expand(shape)
        ids = torch.randint(padding + 1, 100, shape, generator=generator)
        if family in FAMILIES_WITH_EOS:
            ids = ids.clamp(2).scatter(1, lengths - 1, 1)
        ids = torch.where(mask.bool(), ids, padding)
        batch = {"input_ids": ids, "attention_mask": mask.contiguous()}
        if family in FAMILIES_WITH_TOKEN_TYPES:
            batch["token_type_ids"] = (torch.arange(9) >= 2).long().expand(shape) * mask
        if head in ENCODER_DECODERS or (task == "ConditionalGeneration" and not labelled):
            batch["decoder_input_ids"] = torch.randint(2, 100, (3, 5), generator=generator)
        if labelled:
            labels = {
                "MaskedLM": {"labels": torch.where(mask.bool(), ids, -100)},
                "PreTraining": {"labels": ids % 2},
                "ConditionalGeneration": {"labels": torch.where(mask.bool(), ids, -100)[:, :7].contiguous()},
                "TokenClassification": {"labels": torch.where(mask.bool(), ids % 3, -100)},
                "QuestionAnswering": {
                    "start_positions": torch.tensor([1, 0, 2]),
                    "end_positions": torch.tensor([8, 3, 2]),
                },
                "MultipleChoice": {"labels": torch.tensor([0, 1, 1])},
            }
            batch |= labels.get(task, {"labels": torch.tensor([0, 2, 1])})
        return batch

    return make


@pytest.fixture(scope="session")
def outputs() -> Callable[[PreTrainedModel, Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Compute all output tensors of a model, by name.

    A copy of the model is run: weights in a memory-mapped file can be aligned differently, and then round differently.
    """

    def compute(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            result = copy.deepcopy(model)(**batch)
        return {name: value for name, value in result.items() if torch.is_tensor(value)}

    return compute


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Check that two models have the same outputs, up to `atol`."""

    def check(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], atol: float) -> None:
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], atol=atol, rtol=atol)

    return check


@pytest.fixture(scope="session")
def assert_same_weights() -> Callable[[PreTrainedModel, PreTrainedModel], None]:
    """Check that two models have exactly the same weights, under the same names."""

    def check(actual: PreTrainedModel, expected: PreTrainedModel) -> None:
        actual_weights, expected_weights = actual.state_dict(), expected.state_dict()
        assert actual_weights.keys() == expected_weights.keys()
        different = [
            name for name, weight in expected_weights.items() if not torch.equal(actual_weights[name], weight)
        ]
        assert different == []

    return check


@pytest.fixture
def kernels_for_tiny_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 8-bit Linears use products of integers whatever their size, as larger models do."""
    monkeypatch.setattr(int8_kernels, "MIN_WEIGHT_ENTRIES", {})


@pytest.fixture(scope="session")
def select(make_model: Callable[..., PreTrainedModel]) -> Callable[..., Selection]:
    """Return the selection that gives each stack of a tiny model the named shape."""

    @cache
    def layers_and_blocks(head: str) -> tuple[list[str], dict[str, bool]]:
        """Return the names of the layers, and for each block whether its units are heads."""
        with torch.random.fork_rng(devices=[]):
            model = make_model(head)
        blocks = family_of(model).blocks(model)
        return list(family_of(model).layers(model)), {n: isinstance(b, AttentionBlock) for n, b in blocks.items()}

    def selection(shape: str, head: str = "BertModel") -> Selection:
        layers, blocks = layers_and_blocks(head)
        units: dict[str, tuple[int, ...]] = {}
        for name, has_heads in blocks.items():
            heads, neurons = SHAPES[shape].get(int(name.split(".")[1]), ((), ()))
            units[name] = tuple(heads if has_heads else neurons)
        return Selection(tuple(layer for layer in layers if int(layer.split(".")[1]) in SHAPES[shape]), units)

    return selection


@pytest.fixture(scope="session")
def gates_of() -> Callable[[PreTrainedModel, Selection], tuple[dict, dict]]:
    """Return gates of units and layers: 1 for what a selection keeps, 0 for the rest."""

    def gates(model: PreTrainedModel, selection: Selection) -> tuple[dict, dict]:
        units = {}
        for name, block in family_of(model).blocks(model).items():
            units[name] = torch.zeros(block.units)
            units[name][list(selection.units[name])] = 1
        layers = {name: torch.tensor(float(name in selection.layers)) for name in family_of(model).layers(model)}
        return units, layers

    return gates
