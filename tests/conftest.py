"""Tiny random models, and the handful of things that most tests do with them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import datasets
import pytest
import torch
from heads import BERT_HEADS, HEADS
from reviews import reviewer, workshop  # noqa: F401 (fixtures)
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.models import family_of
from hf_efficient.models.blocks import AttentionBlock
from hf_efficient.pruning.selection import Selection


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    """Gives every test a place of its own for data sets and the teachers' answers to them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


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
# Three layers a stack, four heads an attention block, 64 neurons: SHAPES below count on it.
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
    "mt5": TINY_T5,  # whose feed-forward blocks are gated
}
SEGMENTED = ("bert", "electra")
ENDED = ("t5", "mt5")  # every text ends with the token that the classifier looks at
# For each layer of the tiny model the positions of the heads and neurons that stay; a layer that is not named goes.
SHAPES: dict[str, dict[int, tuple[Sequence[int], Sequence[int]]]] = {
    "uneven widths": {0: ((1, 3), range(0, 64, 3)), 1: ((0,), range(5)), 2: (range(4), range(64))},
    "a block without heads": {0: (range(4), range(64)), 1: ((), range(7, 40)), 2: ((2,), range(64))},
    "a block without neurons": {0: ((0, 1), ()), 1: (range(4), range(9)), 2: ((3,), range(64))},
    "a layer gone": {0: ((0, 2, 3), range(20)), 2: ((1,), range(30, 64))},
    "all of these": {0: ((), ()), 2: ((2,), (0, 63))},
    "a stock shape": {1: (range(4), range(0, 64, 2)), 2: (range(4), range(32))},
}
UNEVEN = [shape for shape in SHAPES if shape != "a stock shape"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error::FutureWarning")


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def heads() -> tuple[str, ...]:
    """The names of all classes of the BERT family."""
    return BERT_HEADS


@pytest.fixture(params=BERT_HEADS)
def head(request: pytest.FixtureRequest) -> str:
    """The name of each class of the BERT family in turn."""
    return request.param


@pytest.fixture(params=HEADS)
def any_head(request: pytest.FixtureRequest) -> str:
    """The name of each stock class of each family in turn."""
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    """The name of each shape in turn."""
    return request.param


@pytest.fixture(params=UNEVEN)
def uneven_shape(request: pytest.FixtureRequest) -> str:
    """The name of each shape in turn that no stock class holds."""
    return request.param


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """Builds a tiny model by the name of its class, weights N(0, 0.3), so that no two units do the same."""

    def make(head: str = "BertForSequenceClassification", seed: int = 0, **changes: object) -> PreTrainedModel:
        family, cls = HEADS[head]
        labels = {} if "id2label" in changes else {"num_labels": 2 if head.endswith("ForQuestionAnswering") else 3}
        model = cls(family.config_class(**{**TINY_OF_FAMILY[family.model_type], **labels, **changes}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(0, 0.3, generator=generator)
                if isinstance(module, nn.LayerNorm):
                    module.weight += 1
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Builds padded inputs for a head, with the labels that it asks for if wanted."""

    def make(head: str = "BertForSequenceClassification", labelled: bool = False, seed: int = 0) -> dict:
        family, task = HEADS[head][0].model_type, head.partition("For")[2]
        padding: int = TINY_OF_FAMILY[family]["pad_token_id"]
        generator = torch.Generator().manual_seed(seed)
        shape = (3, 2, 9) if task == "MultipleChoice" else (3, 9)
        lengths = torch.tensor([9, 6, 3]).view(3, *[1] * (len(shape) - 1))
        mask = (torch.arange(9) < lengths).long().expand(shape)
        ids = torch.randint(padding + 1, 100, shape, generator=generator)
        if family in ENDED:
            ids = ids.clamp(2).scatter(1, lengths - 1, 1)
        ids = torch.where(mask.bool(), ids, padding)
        batch = {"input_ids": ids, "attention_mask": mask.contiguous()}
        if family in SEGMENTED:
            batch["token_type_ids"] = (torch.arange(9) >= 2).long().expand(shape) * mask
        if head in ("T5Model", "MT5Model") or (task == "ConditionalGeneration" and not labelled):
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
    """Computes every tensor that a model answers with, by name.

    A copy computes: weights in a mapped file may be aligned otherwise, and take kernels that round otherwise.
    """

    def compute(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            answer = copy.deepcopy(model)(**batch)
        return {name: value for name, value in answer.items() if torch.is_tensor(value)}

    return compute


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Fails unless two models' outputs are the same tensors, up to `atol`."""

    def check(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], atol: float) -> None:
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=atol, rtol=atol)

    return check


@pytest.fixture(scope="session")
def assert_same_weights() -> Callable[[PreTrainedModel, PreTrainedModel], None]:
    """Fails unless two models hold the same weights, bit by bit, under the same names."""

    def check(found: PreTrainedModel, expected: PreTrainedModel) -> None:
        ours, theirs = found.state_dict(), expected.state_dict()
        assert ours.keys() == theirs.keys()
        assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]

    return check


@pytest.fixture(scope="session")
def select(make_model: Callable[..., PreTrainedModel]) -> Callable[..., Selection]:
    """Returns the selection that gives a tiny model the shape of that name, in each of its stacks."""

    @cache
    def parts(head: str) -> tuple[list[str], dict[str, bool]]:
        """The layers of the model, and for each of its blocks whether its units are heads."""
        with torch.random.fork_rng(devices=[]):
            model = make_model(head)
        blocks = family_of(model).blocks(model)
        return list(family_of(model).layers(model)), {n: isinstance(b, AttentionBlock) for n, b in blocks.items()}

    def selection(shape: str, head: str = "BertModel") -> Selection:
        layers, blocks = parts(head)
        units: dict[str, tuple[int, ...]] = {}
        for name, has_heads in blocks.items():
            heads, neurons = SHAPES[shape].get(int(name.split(".")[1]), ((), ()))
            units[name] = tuple(heads if has_heads else neurons)
        return Selection(tuple(layer for layer in layers if int(layer.split(".")[1]) in SHAPES[shape]), units)

    return selection


@pytest.fixture(scope="session")
def gates_of() -> Callable[[PreTrainedModel, Selection], tuple[dict, dict]]:
    """Returns the gates of units and layers that are 1 for what a selection keeps and 0 for the rest."""

    def gates(model: PreTrainedModel, selection: Selection) -> tuple[dict, dict]:
        units = {}
        for name, block in family_of(model).blocks(model).items():
            units[name] = torch.zeros(block.units)
            units[name][list(selection.units[name])] = 1
        layers = {name: torch.tensor(float(name in selection.layers)) for name in family_of(model).layers(model)}
        return units, layers

    return gates
