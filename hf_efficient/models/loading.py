"""Loading of trained models: from safetensors only, and with all weights of the base model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hf_efficient.errors import UserError

SHOWN = 3


def load_pretrained(auto_class: Any, name: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """Return the model called `name`, and the names of the weights of its head that are not in its files.

    Other weights that are missing would be random, and so would all that is computed with them: raises UserError.
    Only poolers may be missing, which models that are trained to predict tokens do not have. `options` are those of
    `from_pretrained`, which raises OSError if there are no weights in safetensors: pickles can run code.
    """
    model, info = auto_class.from_pretrained(name, use_safetensors=True, output_loading_info=True, **options)
    missing = set(info["missing_keys"])
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    of_base = {key for key in missing if key.startswith(prefix) and ".pooler." not in f".{key}"}
    of_base = {key for key in of_base if not key.startswith("lm_head.")}  # a head, where there is no prefix
    if of_base:
        shown = ", ".join(sorted(of_base)[:SHOWN]) + (", ..." if len(of_base) > SHOWN else "")
        raise UserError(
            f"the files of {name!r} have no weights for {len(of_base):,} of the tensors that its config.json asks "
            f"for ({shown}): they are incomplete, or belong to another config.json"
        )
    return model, missing
