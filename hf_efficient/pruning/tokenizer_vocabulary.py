"""A tokenizer with fewer tokens: what of its vocabulary must stay with the kept, and its file with new ids."""

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
    """Return what the file `tokenizer.json` of `tokenizer` holds.

    Raises ValueError: the tokenizer is slow, or its model is none of `NEEDED`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose vocabulary cannot be trimmed: load a fast one, "
            "with AutoTokenizer.from_pretrained(...)"
        )
    state: State = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] not in REQUIRED_TOKENS:
        raise UserError(
            f"a tokenizer of the model {state['model']['type']!r} cannot be trimmed: known are {', '.join(REQUIRED_TOKENS)}"
        )
    return state


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _required_by_wordpiece(model: State, kept: set[int]) -> set[int]:
    """Return the ids of single characters, at the start of a word and inside it, and of the unknown token."""
    prefix = model["continuing_subword_prefix"]
    return {
        index
        for piece, index in model["vocab"].items()
        if len(piece.removeprefix(prefix)) == 1 or len(piece) == 1 or piece == model["unk_token"]
    }


def _merges(model: State) -> Iterator[tuple[int, int, int]]:
    """Yield (left, right, result) of every merge of a BPE model, as ids."""
    pieces, skipped = model["vocab"], len(model["continuing_subword_prefix"] or "")
    for left, right in model["merges"]:
        yield pieces[left], pieces[right], pieces[left + right[skipped:]]


def _required_by_bpe(model: State, kept: set[int]) -> set[int]:
    """Return the ids of single characters or bytes, of the unknown token, and of all that `kept` is merged from.

    What a token is merged from is the same in any text: merges go by rank, and none crosses the token's borders.
    """
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    needed = {
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
    left_to_do = list(kept | needed)
    while left_to_do:
        new = parts[left_to_do.pop()] - kept - needed
        needed |= new
        left_to_do.extend(new)
    return needed


def _required_by_unigram(model: State, kept: set[int]) -> set[int]:
    """Return the ids of single characters, of bytes to fall back to, and of a piece with the lowest score."""
    scores = [score for _, score in model["vocab"]]
    return {scores.index(min(scores))} | {
        index
        for index, (piece, _) in enumerate(model["vocab"])
        if len(piece) == 1 or (model["byte_fallback"] and _is_byte(piece))
    }


REQUIRED_TOKENS: dict[str, Callable[[State, set[int]], set[int]]] = {
    "WordPiece": _required_by_wordpiece,
    "BPE": _required_by_bpe,
    "Unigram": _required_by_unigram,
}


def token_id_fields(state: State) -> Iterator[tuple[Any, str | int]]:
    """Yield (holder, key) of every `holder[key]` that is an id, beside the vocabulary itself."""
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


def add_required_tokens(state: State, kept: set[int]) -> list[int]:
    """Return `kept` and the tokens that must stay with it, in the order that the file format asks for.

    Beside `kept` there stay: special and added tokens and all that the post-processor inserts; single characters and
    bytes, so that an unseen word still has pieces; for BPE, the tokens that a kept one is merged from; for Unigram, a
    piece of the lowest score, which sets the price of the unknown token. The order is that of the old ids, but
    added tokens that are no pieces of the model come after these, and ids that have no token at the end.
    """
    kept = kept | {holder[key] for holder, key in token_id_fields(state)}
    kept |= REQUIRED_TOKENS[state["model"]["type"]](state["model"], kept)
    vocabulary = state["model"]["vocab"]
    own = set(vocabulary.values()) if isinstance(vocabulary, dict) else set(range(len(vocabulary)))
    added = {token["id"] for token in state["added_tokens"]}
    return [*sorted(kept & own), *sorted(kept & added - own), *sorted(kept - own - added)]


def renumber_tokenizer(tokenizer: PreTrainedTokenizerBase, new_ids: Mapping[int, int]) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` with only the tokens `new_ids` (old id to new), which `add_needed` ordered.

    Raises ValueError: the new ids cannot be written to a file.
    """
    state = tokenizer_state(tokenizer)
    model = state["model"]
    if "merges" in model:
        usable = [all(index in new_ids for index in merge) for merge in _merges(model)]
        model["merges"] = [merge for merge, stays in zip(model["merges"], usable, strict=True) if stays]
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
