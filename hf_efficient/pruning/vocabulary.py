"""Vocabulary rows: keeps the tokens that are used, in the model and in its tokenizer, and renumbers both alike."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_efficient.errors import UserError
from hf_efficient.pruning.tokenizer_vocabulary import add_required_tokens, renumber_tokenizer, tokenizer_state

TEXT_BATCH_SIZE = 1000

TokenIds: TypeAlias = "int | torch.Tensor | Sequence[TokenIds]"


@dataclass(frozen=True, eq=False)
class TrimmedVocabulary:
    """A model and its tokenizer with fewer tokens.

    | field | meaning |
    | --- | --- |
    | model | a copy of the model with fewer rows in its embeddings and its language modelling head |
    | tokenizer | a copy of the tokenizer that gives the new ids |
    | token_ids | shape (new size,): the old id of each new one: `token_ids[input_ids]` is input for the old model |
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    token_ids: torch.Tensor


def find_used_tokens(data: Iterable[str | TokenIds], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that occur in `data`, ascending.

    `data` yields texts, which are tokenized whole, with their special tokens, or token ids: tensors, or sequences
    nested to any depth. Negative ids, such as the -100 of ignored labels, are no tokens. Give texts where there are
    any: of a word that WordPiece gives up as unknown, the pieces that it found before are kept too, without which
    the trimmed tokenizer might spell the word after all.

    Raises ValueError: the tokenizer cannot be trimmed.
    Raises TypeError: `data` yields something else.
    """
    model_type = tokenizer_state(tokenizer)["model"]["type"]
    used: set[int] = set()
    texts: list[str] = []
    for item in data:
        if isinstance(item, str):
            texts.append(item)
            if len(texts) == TEXT_BATCH_SIZE:
                used |= _tokens_of(texts, tokenizer, model_type)
                texts.clear()
        else:
            used.update(token for token in _flat(item) if token >= 0)
    if texts:
        used |= _tokens_of(texts, tokenizer, model_type)
    return sorted(used)


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep: Iterable[int]
) -> TrimmedVocabulary:
    """Return copies of `model` and `tokenizer` without the tokens that are not needed; the given ones stay.

    A text all of whose tokens are in `keep` is split into the same tokens as before, and the model answers the same
    (of logits over the vocabulary, the kept columns). Beside `keep` there stay: special and added tokens; all ids
    that the configs name; single characters and bytes, so that an unseen word still has pieces; for BPE, the tokens
    that a kept one is merged from; for Unigram, a piece of the lowest score, which sets the price of the unknown
    token; where positions are counted from the padding id, as in RoBERTa, all ids below it.

    Ids keep their order. Rows of the model that no token has, such as T5's padding to 32128, go unless kept.

    Raises ValueError: the tokenizer is slow or its model unknown, it has more tokens than the model has rows, the
        input embeddings are no plain `nn.Embedding`, or `keep` has ids that are no rows of the model.
    """
    state = tokenizer_state(tokenizer)
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding) or type(embeddings.weight) is not nn.Parameter:
        kind = type(getattr(embeddings, "weight", None)).__name__
        raise UserError(
            f"the input embeddings are a {type(embeddings).__name__} over a {kind}, whose rows cannot be taken: trim "
            "the vocabulary first, quantize afterwards"
        )
    rows, largest = embeddings.weight.shape[0], max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"the tokenizer has ids up to {largest}, the model only {rows} rows: give the tokenizer of this model, or "
            f"call model.resize_token_embeddings({largest + 1}) first"
        )
    kept = {int(token) for token in keep}
    if foreign := sorted(token for token in kept if not 0 <= token < rows):
        raise UserError(f"keep has ids outside 0..{rows - 1}, the rows of the model: {foreign[:5]}")

    fixed = _ids_below_padding(model)
    kept |= {token for token in _token_ids_in_configs(model) if 0 <= token < rows}
    order = add_required_tokens(state, kept | set(fixed))
    if order[: len(fixed)] != fixed:
        raise UserError(
            f"the model counts positions from its padding id {fixed[-1]}, which would change, since the tokenizer has "
            "no token for some id below it: give the tokenizer of this model"
        )
    if len(order) == rows:
        return TrimmedVocabulary(copy.deepcopy(model), copy.deepcopy(tokenizer), torch.arange(rows))
    new_ids = {old: new for new, old in enumerate(order)}
    token_ids = torch.tensor(order, dtype=torch.long)
    return TrimmedVocabulary(_trim_model(model, new_ids, token_ids), renumber_tokenizer(tokenizer, new_ids), token_ids)


def _flat(item: Any) -> Iterator[int]:
    if torch.is_tensor(item):
        yield from item.flatten().tolist()
    elif isinstance(item, Integral):
        yield int(item)
    elif isinstance(item, Iterable) and not isinstance(item, (str, bytes, Mapping)):
        for part in item:
            yield from _flat(part)
    else:
        raise TypeError(
            f"{type(item).__name__} is neither a text nor token ids: give strings, tensors or lists of ids"
        )


def _tokens_of(texts: list[str], tokenizer: PreTrainedTokenizerBase, model_type: str) -> set[int]:
    encodings = tokenizer(texts, truncation=False, padding=False, verbose=False).encodings
    used = {token for encoding in encodings for token in encoding.ids}
    unknown = tokenizer.unk_token_id
    if model_type != "WordPiece" or unknown not in used:
        return used
    for text, encoding in zip(texts, encodings, strict=True):
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == unknown:
                used |= _partial_wordpieces(text[start:end], tokenizer.backend_tokenizer, unknown)
    return used


def _partial_wordpieces(word: str, backend: Tokenizer, unknown: int) -> set[int]:
    """Return the pieces of the longest beginning of `word` that can be spelled: where the greedy search stopped."""
    word = backend.normalizer.normalize_str(word) if backend.normalizer else word
    for end in range(len(word) - 1, 0, -1):
        pieces = {token.id for token in backend.model.tokenize(word[:end])}
        if unknown not in pieces:
            return pieces
    return set()


def _configs(model: PreTrainedModel) -> list[Any]:
    """Return every config that `model` and its parts hold, each once."""
    parts = [getattr(module, "config", None) for module in model.modules()]
    found = [*parts, getattr(model, "generation_config", None)]
    return list({id(config): config for config in found if config is not None}.values())


def _token_ids_in_configs(model: PreTrainedModel) -> set[int]:
    """Return the ids that must have a row because a config of `model`, or its table of embeddings, names them."""
    padding = model.get_input_embeddings().padding_idx
    named = set() if padding is None else {padding}
    for config in _configs(model):
        for name, value in vars(config).items():
            if value is not None and (name.endswith("_token_id") or name == "force_words_ids"):
                named.update(_flat(value))
    return named


def _ids_below_padding(model: PreTrainedModel) -> list[int]:
    """Return the ids up to the padding id if the positions of `model` are counted from it, and none otherwise."""
    for module in model.modules():
        if (
            isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module is not model.get_input_embeddings()
        ):
            return list(range(module.padding_idx + 1))
    return []


def _renumber_config(config: Any, new_ids: Mapping[int, int]) -> None:
    """Put new ids in place of the old in `config`; what it says of a token that is gone, goes too."""

    def renumbered(value: Any) -> Any:
        return new_ids.get(value, value) if isinstance(value, int) else [renumbered(part) for part in value]

    def stay(tokens: Iterable[int]) -> bool:
        return all(token in new_ids for token in tokens)

    for name, value in list(vars(config).items()):
        if value is None:
            continue
        if name.endswith("_token_id") or name == "force_words_ids":
            setattr(config, name, renumbered(value))
        elif name in ("suppress_tokens", "begin_suppress_tokens"):
            setattr(config, name, [new_ids[token] for token in value if token in new_ids] or None)
        elif name == "bad_words_ids":
            setattr(config, name, [renumbered(tokens) for tokens in value if stay(tokens)] or None)
        elif name == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            setattr(config, name, [[renumbered(tokens), bias] for tokens, bias in pairs if stay(tokens)] or None)


def _biases_beside_the_head(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the biases that the owner of the output embeddings holds besides, as RoBERTa's `lm_head.bias`.

    Tied to that of the output embeddings they are resized with it; of an untied model they are left behind.
    """
    head = model.get_output_embeddings()
    owners = [] if head is None else [module for module in model.modules() if head in module.children()]
    return [owner.bias for owner in owners if isinstance(getattr(owner, "bias", None), nn.Parameter)]


def _trim_model(model: PreTrainedModel, new_ids: Mapping[int, int], token_ids: torch.Tensor) -> PreTrainedModel:
    """Return a copy of `model` with the rows `token_ids` of every tensor that has a row for each token."""
    trimmed = copy.deepcopy(model)
    old_size = model.get_input_embeddings().weight.shape[0]
    padding = trimmed.get_input_embeddings().padding_idx
    with torch.random.fork_rng(devices=[]):
        trimmed.resize_token_embeddings(len(token_ids))
    for bias in _biases_beside_the_head(trimmed):
        bias.data = bias.data[: len(token_ids)].clone()
    before = model.state_dict()
    with torch.no_grad():
        for name, tensor in trimmed.state_dict().items():
            for dim, (size, old) in enumerate(zip(tensor.shape, before[name].shape, strict=True)):
                if size != old:
                    tensor.copy_(before[name].index_select(dim, token_ids.to(tensor.device)))
    trimmed.get_input_embeddings().padding_idx = None if padding is None else new_ids[padding]
    for config in _configs(trimmed):
        if getattr(config, "vocab_size", None) == old_size:
            config.vocab_size = len(token_ids)
        _renumber_config(config, new_ids)
    return trimmed
