"""Tokenizers as the tasks need them: with a padding token, padding on the right, and spaces before words."""

from __future__ import annotations

from typing import Any

from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer
from transformers import PreTrainedConfig
from transformers.utils import logging

from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)


def adapt_tokenizer(tokenizer: Any, config: PreTrainedConfig, needs_offsets: bool, reads_words: bool = False) -> None:
    """Change the tokenizer in place to what a model with this config and a task need.

    It gets a padding token if it has none, and pads on the right, where padding does not move the positions of a text.
    `needs_offsets`: the task must know which characters a token stands for; `reads_words`: it reads lists of words.
    Byte-level tokenizers then see a space before each word, also before the first.

    Raises UserError if it has more tokens than the model, no padding token, or no offsets.
    """
    name = type(tokenizer).__name__
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= config.vocab_size:
        raise UserError(
            f"the tokenizer ({name}, {len(tokenizer)} tokens) is not that of the model, whose table has "
            f"{config.vocab_size} tokens: save the one that the model was trained with in the model's folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _find_padding_token(tokenizer, config)
        logger.warning(f"the tokenizer has no padding token: {tokenizer.pad_token!r} is used")
    if tokenizer.padding_side != "right":
        logger.warning("the tokenizer pads on the left, which moves the positions of texts: padding is on the right")
        tokenizer.padding_side = "right"
    if needs_offsets and not tokenizer.is_fast:
        raise UserError(
            f"{name} does not tell which characters its tokens come from, which this task needs: save the model's "
            "fast tokenizer (a tokenizer.json file) in the model's folder, or name it with --tokenizer_name"
        )
    if tokenizer.is_fast and (needs_offsets or reads_words):
        add_prefix_space(tokenizer)


def add_prefix_space(tokenizer: Any) -> None:
    """Let a byte-level tokenizer see a space before the first word as before the others."""
    for part in _byte_level_parts(tokenizer.backend_tokenizer.pre_tokenizer):
        if not part.add_prefix_space:
            part.add_prefix_space = True
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


def _byte_level_parts(part: PreTokenizer | None) -> list[Any]:
    if isinstance(part, ByteLevel):
        return [part]
    try:
        parts = [] if part is None else list(part)  # type: ignore[call-overload]
    except TypeError:  # not a sequence
        parts = []
    return [each for each in parts if isinstance(each, ByteLevel)]


def _find_padding_token(tokenizer: Any, config: PreTrainedConfig) -> str:
    index = getattr(config, "pad_token_id", None)
    token = None if index is None else tokenizer.convert_ids_to_tokens(index)
    token = token or tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if token is None:
        raise UserError(
            f"{type(tokenizer).__name__} has no padding token, nor another special token that could be one: set "
            "pad_token in the model's tokenizer_config.json"
        )
    return str(token)
