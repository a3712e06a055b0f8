"""What a repository says about a model is checked before anything is built from it."""

import copy
import time

import pytest

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.models import family_of
from hf_efficient.pruning.selection import remove_units

LAYER = ("structure", "encoder", 0)
HEADS, NEURONS = (*LAYER, "heads", "attention"), (*LAYER, "neurons", "feed_forward")
QUERY = ("int8", "linears", "encoder.layer.0.attention.self.query_key_value")
DENSE = ("int8", "linears", "encoder.layer.0.attention.output.dense")
CODEBOOK = ("codebooks", "encoder.layer.0.attention.output.dense")
GONE = object()
# Where the config is changed, and to what.
DAMAGES = {
    "heads negative": (HEADS, [-1]),
    "heads doubled": (HEADS, [1, 1]),
    "heads out of range": (HEADS, [4]),
    "heads nested": (HEADS, [[0]]),
    "heads as texts": (HEADS, ["0"]),
    "heads as booleans": (HEADS, [True]),
    "heads as fractions": (HEADS, [0.5]),
    "a head of 10^30": (HEADS, [10**30]),
    "heads null": (HEADS, None),
    "heads as a text": (HEADS, "01"),
    "neurons negative": (NEURONS, -5),
    "more neurons than the config has": (NEURONS, 65),
    "neurons of 10^30": (NEURONS, 10**30),
    "neurons null": (NEURONS, None),
    "neurons as a list": (NEURONS, [5]),
    "source of 10^9": ((*LAYER, "source"), 10**9),
    "source as HTML": ((*LAYER, "source"), "<script>alert(1)</script>"),
    "source negative": ((*LAYER, "source"), -1),
    "source twice": ((*LAYER, "source"), 1),
    "unknown block": ((*LAYER, "heads", "cross_attention"), [0]),
    "unknown key": ((*LAYER, "depth"), 1),
    "unknown stack": (("structure", "middle"), []),
    "no source": ((*LAYER, "source"), GONE),
    "no heads": ((*LAYER, "heads"), GONE),
    "no heads of attention": (HEADS, GONE),
    "no neurons": (NEURONS, GONE),
    "no encoder": (("structure", "encoder"), GONE),
    "layer null": (LAYER, None),
    "layer as a list": (LAYER, []),
    "stack null": (("structure", "encoder"), None),
    "stack as a mapping": (("structure", "encoder"), {}),
    "fewer layers than the config has": (("structure", "encoder"), []),
    "structure null": (("structure",), None),
    "structure as a list": (("structure",), []),
    "structure as a text": (("structure",), "encoder"),
    "100,000 layers": (("num_hidden_layers",), 100_000),
    "10^30 layers": (("num_hidden_layers",), 10**30),
    "a layer less": (("num_hidden_layers",), 2),
    "10^30 heads": (("num_attention_heads",), 10**30),
    "-4 heads": (("num_attention_heads",), -4),
    "10^30 neurons in the config": (("intermediate_size",), 10**30),
    "int8 as a list": (("int8",), []),
    "int8 empty": (("int8",), {}),
    "int8 of a module that is not there": (("int8", "linears", "encoder.layer.9.dense"), {}),
    "int8 of a norm": (("int8", "linears", "encoder.layer.0.output.LayerNorm"), {}),
    "int8 of the same module twice": (("int8", "linears", "encoder.layer.0.attention.self.query"), {}),
    "int8 in place of a method": (("int8", "linears", "encoder.layer.0.forward"), {"members": ["a", "b"]}),
    "unknown activations": (("int8", "activations"), "float"),
    "activations as a list": (("int8", "activations"), []),
    "activations of one": ((*DENSE, "activations"), 5),
    "linears null": (("int8", "linears"), None),
    "settings null": (DENSE, None),
    "outliers negative": ((*DENSE, "outliers"), -1),
    "more outliers than inputs": ((*DENSE, "outliers"), 10**9),
    "members null": ((*QUERY, "members"), None),
    "members empty": ((*QUERY, "members"), []),
    "members doubled": ((*QUERY, "members"), ["query", "query"]),
    "members elsewhere": ((*QUERY, "members"), ["query", "../key"]),
    "embeddings null": (("int8", "embeddings"), None),
    "embeddings doubled": (("int8", "embeddings"), ["embeddings.word_embeddings"] * 2),
    "embeddings nested": (("int8", "embeddings"), [["embeddings.word_embeddings"]]),
    "codebooks as a list": (("codebooks",), []),
    "codebook of a module that is not there": (("codebooks", "pooler.nothing"), {"bits": 4, "group": 8}),
    "codebook of a norm": (("codebooks", "embeddings.LayerNorm"), {"bits": 4, "group": 8}),
    "codebook of the model": (("codebooks", ""), {"bits": 4, "group": 8}),
    "codebook null": (CODEBOOK, None),
    "0 bits": ((*CODEBOOK, "bits"), 0),
    "10^9 bits": ((*CODEBOOK, "bits"), 10**9),
    "bits as a text": ((*CODEBOOK, "bits"), "4"),
    "group of 0": ((*CODEBOOK, "group"), 0),
    "group of 10^30": ((*CODEBOOK, "group"), 10**30),
    "no group": ((*CODEBOOK, "group"), GONE),
    "keep_packed as a number": ((*CODEBOOK, "keep_packed"), 7),
}


@pytest.fixture(scope="module")
def pruned(make_model, select):
    """Return a pruned model in float, in int8 and in codebooks."""
    model = remove_units(make_model(), select("uneven widths", "BertForSequenceClassification"))
    schemes = {"int8": QuantizationConfig("int8_dynamic"), "codebooks": QuantizationConfig("codebook")}
    return {"structure": model, **{name: quantize(model, config) for name, config in schemes.items()}}


def change(config, path, value):
    """Change one value of a config."""
    if len(path) == 1:
        setattr(config, path[0], value)
        return
    holder, (*parents, last) = getattr(config, path[0]), path[1:]
    for key in parents:
        holder = holder[key]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_config_is_refused_at_once(pruned, damage):
    path, value = DAMAGES[damage]
    model = pruned.get(path[0], pruned["structure"])
    config = copy.deepcopy(model.config)
    change(config, path, value)
    start = time.process_time()
    with pytest.raises(ValueError, match="the config of the model is damaged: "):
        type(model)(config)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "sources", [None, [], {"encoder": [0, 0, 1]}, {"encoder": 5}, {"encoder": [0, 1, 10**30]}, {"middle": [0, 1, 2]}]
)
def test_damaged_layer_sources_are_refused(make_model, sources):
    model = make_model()
    config = copy.deepcopy(model.config)
    config.layer_sources = sources
    with pytest.raises(ValueError, match="the config of the model is damaged: "):
        family_of(model).structure(config)
