"""Loading of the models and tokenizers that a user names, with errors that say which and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from hf_efficient.errors import UserError
from hf_efficient.models.config_checks import MAX_HEADS, MAX_LAYERS, MAX_NEURONS, check_sizes
from hf_efficient.models.loading import load_pretrained
from hf_efficient.tasks.score_activation import complete_score_activation

# What `from_pretrained` raises for what is missing, cannot be read or reached, or needs a package or permission.
LOADING_ERRORS = (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError)
# What it raises for values that it does not check, in files that are damaged.
DAMAGE_ERRORS = (TypeError, KeyError, AttributeError, AssertionError, ZeroDivisionError, RecursionError)
# No model of these families comes near these; they bound what a config can make a program build.
MAX_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers"), MAX_LAYERS),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "type_vocab_size"), 1 << 26),
    **dict.fromkeys(("hidden_size", "embedding_size", "d_model", "d_kv"), 1 << 16),
    **dict.fromkeys(("intermediate_size", "d_ff"), MAX_NEURONS),
    **dict.fromkeys(("num_attention_heads", "num_heads"), MAX_HEADS),
    "num_labels": 1 << 20,
}


@contextmanager
def explain_loading_errors(name: str, part: str = "model") -> Iterator[None]:
    """Within the context errors of `from_pretrained` become a `UserError` about the `part` of the model `name`."""
    try:
        yield
    except UserError:
        raise
    except (*LOADING_ERRORS, *DAMAGE_ERRORS) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"the {part} of {name!r} is code in its repository, which is not run unasked: read that code, and "
                "give --trust_remote_code if you trust it"
            ) from error
        reason = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, DAMAGE_ERRORS):
            reason = f"its files are damaged ({type(error).__name__}: {reason})"
        raise UserError(
            f"the {part} of {name!r} cannot be loaded: {reason}. Give a directory that save_pretrained wrote, with "
            "its tokenizer, or the name of a model on the Hub"
        ) from error


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """Return the config of a model. Raises UserError if it cannot be loaded."""
    with explain_loading_errors(name, "config"):
        values, _ = PreTrainedConfig.get_config_dict(name)
        check_sizes(SimpleNamespace(**values), {field: MAX_SIZES[field] for field in MAX_SIZES.keys() & values.keys()})
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        complete_score_activation(config, name)
        return config


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model. Raises UserError if it has none, or if it cannot be loaded."""
    with explain_loading_errors(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not has_vocabulary(tokenizer):
        raise UserError(
            f"{name!r} has no tokenizer: save the one that the model was trained with in the same directory, or name "
            "it with --tokenizer_name"
        )
    return tokenizer


def has_vocabulary(tokenizer: Any) -> bool:
    """Whether a tokenizer has more than special tokens: a model saved without one gets an empty one."""
    return len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) > 1


def load_model(auto_class: Any, name: str, **options: Any) -> tuple[Any, set[str]]:
    """Return a model, loaded by `auto_class`, and the names of the weights of its head that it lacks.

    Raises UserError if it cannot be loaded, or its weights do not fit.
    """
    try:
        with explain_loading_errors(name):
            return load_pretrained(auto_class, name, **options)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            f"the weights of {name!r} have other shapes than its config.json and the labels of the data ask for: use "
            "data with as many classes as the model has, or a config.json that belongs to the weights"
        ) from error
