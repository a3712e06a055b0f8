"""Vocabulary of a tokenizer: which tokens must be kept with others, and a tokenizer with new ids."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_efficient.errors import UserError

State: TypeAlias = dict[str, Any]


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> State:
    """Return the content of the file `tokenizer.json` of `tokenizer`.

    Raises UserError if the tokenizer is slow, or its model is not one of `REQUIRED_TOKENS`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose vocabulary cannot be trimmed: load a fast one, "
            "with AutoTokenizer.from_pretrained(...)"
        )
    state: State = json.loads(tokenizer.backend_tokenizer.to_str())
    model_type = state["model"]["type"]
    if model_type not in REQUIRED_TOKENS:
        raise UserError(
            f"a tokenizer with the model {model_type!r} cannot be trimmed: supported are {', '.join(REQUIRED_TOKENS)}"
        )
    return state


def add_required_tokens(state: State, kept: set[int]) -> list[int]:
    """Return `kept` and the tokens that it requires, in the order that the file format requires.

    Required are special and added tokens and all that the post-processor inserts; single characters and bytes, so that
    an unseen word can still be split into pieces; for BPE, the tokens that a kept one is merged from; for Unigram, a
    piece with the lowest score, which determines the score of the unknown token. The order is that of the old ids,
    except that added tokens outside the model's vocabulary follow it, and ids without a token come last.
    """
    kept = kept | {holder[key] for holder, key in token_id_fields(state)}
    kept |= REQUIRED_TOKENS[state["model"]["type"]](state["model"], kept)
    vocabulary = state["model"]["vocab"]
    model_ids = set(vocabulary.values()) if isinstance(vocabulary, dict) else set(range(len(vocabulary)))
    added_ids = {token["id"] for token in state["added_tokens"]}
    return [
        *sorted(kept & model_ids),
        *sorted(kept & added_ids - model_ids),
        *sorted(kept - model_ids - added_ids),
    ]


def renumber_tokenizer(tokenizer: PreTrainedTokenizerBase, new_ids: Mapping[int, int]) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` with only the tokens `new_ids` (old id to new), in the order of the new ids.

    The order must be that of `add_required_tokens`.

    Raises UserError if the file format cannot hold the new ids.
    """
    state = tokenizer_state(tokenizer)
    model = state["model"]
    if "merges" in model:
        is_kept = [all(index in new_ids for index in merge) for merge in _merges(model)]
        model["merges"] = [merge for merge, keep in zip(model["merges"], is_kept, strict=True) if keep]
    for holder, key in list(token_id_fields(state)):
        holder[key] = new_ids[holder[key]]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {piece: new_ids[index] for piece, index in vocabulary.items() if index in new_ids}
    else:
        model["vocab"] = [piece for index, piece in enumerate(vocabulary) if index in new_ids]

    trimmed = copy.deepcopy(tokenizer)
    trimmed._tokenizer = Tokenizer.from_str(json.dumps(state))
    expected = {token: new_ids[index] for token, index in tokenizer.get_vocab().items() if index in new_ids}
    if trimmed.get_vocab() != expected:
        raise UserError(
            "the ids of this tokenizer have gaps that added tokens fill, which its file format cannot hold: trim it "
            "before adding tokens"
        )
    return trimmed


def token_id_fields(state: State) -> Iterator[tuple[Any, str | int]]:
    """Yield (holder, key) of every `holder[key]` that is a token id, except those of the vocabulary itself."""
    yield from ((token, "id") for token in state["added_tokens"])
    if state["padding"] is not None:
        yield state["padding"], "pad_id"
    if state["model"].get("unk_id") is not None:
        yield state["model"], "unk_id"
    processors = [state["post_processor"]] if state["post_processor"] else []
    while processors:
        processor = processors.pop()
        processors.extend(processor.get("processors", ()))
        yield from ((processor[name], 1) for name in ("sep", "cls") if name in processor)
        for token in processor.get("special_tokens", {}).values():
            yield from ((token["ids"], position) for position in range(len(token["ids"])))


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _merges(model: State) -> Iterator[tuple[int, int, int]]:
    """Yield (left, right, result) of every merge of a BPE model, as ids."""
    pieces, prefix_length = model["vocab"], len(model["continuing_subword_prefix"] or "")
    for left, right in model["merges"]:
        yield pieces[left], pieces[right], pieces[left + right[prefix_length:]]


def _required_by_wordpiece(model: State, kept: set[int]) -> set[int]:
    """Return the ids of single characters, at the start of a word and inside it, and of the unknown token."""
    prefix = model["continuing_subword_prefix"]
    return {
        index
        for piece, index in model["vocab"].items()
        if len(piece.removeprefix(prefix)) == 1 or len(piece) == 1 or piece == model["unk_token"]
    }


def _required_by_bpe(model: State, kept: set[int]) -> set[int]:
    """Return the ids of single characters or bytes, of the unknown token, and of all that `kept` is merged from.

    The merges inside a token are the same in every text: they are applied by rank, and none crosses its borders.
    """
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    required = {
        index
        for piece, index in model["vocab"].items()
        if len(piece.removeprefix(prefix).removesuffix(suffix)) == 1
        or len(piece) == 1
        or piece == model["unk_token"]
        or (model["byte_fallback"] and _is_byte(piece))
    }
    parts: dict[int, set[int]] = defaultdict(set)
    for left, right, result in _merges(model):
        parts[result] |= {left, right}
    unvisited = list(kept | required)
    while unvisited:
        new = parts[unvisited.pop()] - kept - required
        required |= new
        unvisited.extend(new)
    return required


def _required_by_unigram(model: State, kept: set[int]) -> set[int]:
    """Return the ids of single characters, of bytes to fall back to, and of a piece with the lowest score."""
    scores = [score for _, score in model["vocab"]]
    return {scores.index(min(scores))} | {
        index
        for index, (piece, _) in enumerate(model["vocab"])
        if len(piece) == 1 or (model["byte_fallback"] and _is_byte(piece))
    }


# By the model of a tokenizer, a function from its state and the kept ids to the ids that are required besides.
REQUIRED_TOKENS: dict[str, Callable[[State, set[int]], set[int]]] = {
    "WordPiece": _required_by_wordpiece,
    "BPE": _required_by_bpe,
    "Unigram": _required_by_unigram,
}
