"""Trimming of the vocabulary of a model and its tokenizer to the tokens that are used, with new ids for both."""

from __future__ import annotations

import copy
from collections import Counter
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


@dataclass(frozen=True)
class SplitWords:
    """Words of texts that fall into more pieces since tokens were removed.

    | field | meaning |
    | --- | --- |
    | words, split | number of words in the texts, and of those that are split into more tokens than before |
    | tokens_before, tokens | number of tokens of all words before and after |
    """

    words: int
    split: int
    tokens_before: int
    tokens: int

    def __str__(self) -> str:
        if not self.words:
            return "no words to compare"
        growth = self.tokens / max(self.tokens_before, 1) - 1
        return f"{self.split / self.words:.1%} of {self.words:,} words fall into more pieces, {growth:.1%} more tokens"


def find_used_tokens(data: Iterable[str | TokenIds], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that occur in `data`, ascending.

    `data` yields texts, which are tokenized without truncation and with special tokens, or token ids: tensors, or
    sequences nested to any depth. Negative ids, such as the -100 of ignored labels, are skipped. Texts are better than
    ids: for a word that WordPiece cannot split, the pieces at its start are included too, since without them the
    trimmed tokenizer might be able to split it.

    Raises UserError if the tokenizer cannot be trimmed or `data` yields anything else.
    """
    model_type = tokenizer_state(tokenizer)["model"]["type"]
    used: set[int] = set()
    texts: list[str] = []
    for item in data:
        if isinstance(item, str):
            texts.append(item)
            if len(texts) == TEXT_BATCH_SIZE:
                used |= _tokenize(texts, tokenizer, model_type)
                texts.clear()
        else:
            used.update(token for token in _flatten(item) if token >= 0)
    if texts:
        used |= _tokenize(texts, tokenizer, model_type)
    return sorted(used)


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep: Iterable[int]
) -> TrimmedVocabulary:
    """Return copies of `model` and `tokenizer` with only the tokens `keep`, and those that must be kept with them.

    A text whose tokens are all kept is split into the same tokens as before, and the outputs of the model do not
    change (of logits over the vocabulary, the kept columns). Kept besides `keep` are: special and added tokens; all
    ids in the configs; single characters and bytes, so that an unseen word can still be split; for BPE, the tokens
    that a kept one is merged from; for Unigram, a piece with the lowest score, which determines the score of the
    unknown token; if positions are counted from the padding id, as in RoBERTa, all ids below it.

    Ids keep their order. Rows of the model without a token, such as those of T5 up to 32128, are removed unless kept.

    Raises UserError if the tokenizer is slow or its model is not supported, it has more tokens than the model has
    rows, the input embeddings are not a plain `nn.Embedding`, or `keep` has ids that are not rows of the model.
    """
    state = tokenizer_state(tokenizer)
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding) or type(embeddings.weight) is not nn.Parameter:
        kind = type(getattr(embeddings, "weight", None)).__name__
        raise UserError(
            f"the input embeddings are a {type(embeddings).__name__} with a {kind} as weight, whose rows cannot be "
            "selected: trim the vocabulary first, quantize afterwards"
        )
    rows, max_id = embeddings.weight.shape[0], max(tokenizer.get_vocab().values())
    if max_id >= rows:
        raise UserError(
            f"the tokenizer has ids up to {max_id}, the model only {rows} rows: give the tokenizer of this model, or "
            f"call model.resize_token_embeddings({max_id + 1}) first"
        )
    kept = {int(token) for token in keep}
    if invalid := sorted(token for token in kept if not 0 <= token < rows):
        raise UserError(
            f"keep has ids that are not rows of the model, such as {invalid[:5]}: give ids from 0 to {rows - 1}"
        )

    fixed = _ids_below_padding(model)
    kept |= {token for token in _token_ids_in_configs(model) if 0 <= token < rows}
    order = add_required_tokens(state, kept | set(fixed))
    if order[: len(fixed)] != fixed:
        raise UserError(
            f"the model counts positions from its padding id {fixed[-1]}, which would change because the tokenizer "
            "has no token for an id below it: give the tokenizer of this model"
        )
    if len(order) == rows:
        return TrimmedVocabulary(copy.deepcopy(model), copy.deepcopy(tokenizer), torch.arange(rows))
    new_ids = {old: new for new, old in enumerate(order)}
    token_ids = torch.tensor(order, dtype=torch.long)
    return TrimmedVocabulary(_trim_model(model, new_ids, token_ids), renumber_tokenizer(tokenizer, new_ids), token_ids)


def count_split_words(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase
) -> SplitWords:
    """Return how many of the words of `texts` the trimmed tokenizer splits into more tokens than `tokenizer` did.

    A word is what the tokenizer splits a text into before it looks up tokens: parts between blanks, for some also
    punctuation and Chinese characters alone.
    """
    backends = [each.backend_tokenizer for each in (tokenizer, trimmed)]
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = backends[0].normalizer.normalize_str(text) if backends[0].normalizer else text
        words = backends[0].pre_tokenizer.pre_tokenize_str(normalized) if backends[0].pre_tokenizer else [(text, ())]
        counts.update(word for word, _ in words)
    tokens_before = tokens = split = 0
    for word, count in counts.items():
        before, after = (len(backend.model.tokenize(word)) for backend in backends)
        tokens_before, tokens = tokens_before + count * before, tokens + count * after
        split += count * (after > before)
    return SplitWords(counts.total(), split, tokens_before, tokens)


def _flatten(item: Any) -> Iterator[int]:
    if torch.is_tensor(item):
        yield from item.flatten().tolist()
    elif isinstance(item, Integral):
        yield int(item)
    elif isinstance(item, Iterable) and not isinstance(item, (str, bytes, Mapping)):
        for part in item:
            yield from _flatten(part)
    else:
        raise UserError(
            f"data yields a {type(item).__name__}, neither a text nor token ids: give strings, tensors or lists of ids"
        )


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase, model_type: str) -> set[int]:
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
    """Return the pieces of the longest start of `word` that can be split: where the greedy search has stopped."""
    word = backend.normalizer.normalize_str(word) if backend.normalizer else word
    for end in range(len(word) - 1, 0, -1):
        pieces = {token.id for token in backend.model.tokenize(word[:end])}
        if unknown not in pieces:
            return pieces
    return set()


def _configs(model: PreTrainedModel) -> list[Any]:
    """Return every config of `model` and its modules, each once."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    configs.append(getattr(model, "generation_config", None))
    return list({id(config): config for config in configs if config is not None}.values())


def _token_ids_in_configs(model: PreTrainedModel) -> set[int]:
    """Return the ids that a config of `model`, or its input embeddings, refer to."""
    padding = model.get_input_embeddings().padding_idx
    ids = set() if padding is None else {padding}
    for config in _configs(model):
        for name, value in vars(config).items():
            if value is not None and (name.endswith("_token_id") or name == "force_words_ids"):
                ids.update(_flatten(value))
    return ids


def _ids_below_padding(model: PreTrainedModel) -> list[int]:
    """Return the ids up to the padding id if `model` counts positions from it, and none otherwise."""
    for module in model.modules():
        if (
            isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module is not model.get_input_embeddings()
        ):
            return list(range(module.padding_idx + 1))
    return []


def _renumber_config(config: Any, new_ids: Mapping[int, int]) -> None:
    """Replace the old ids in `config` by new ones, and remove entries about tokens that are not kept."""

    def renumber(value: Any) -> Any:
        return new_ids.get(value, value) if isinstance(value, int) else [renumber(part) for part in value]

    def are_kept(tokens: Iterable[int]) -> bool:
        return all(token in new_ids for token in tokens)

    for name, value in list(vars(config).items()):
        if value is None:
            continue
        if name.endswith("_token_id") or name == "force_words_ids":
            setattr(config, name, renumber(value))
        elif name in ("suppress_tokens", "begin_suppress_tokens"):
            setattr(config, name, [new_ids[token] for token in value if token in new_ids] or None)
        elif name == "bad_words_ids":
            setattr(config, name, [renumber(tokens) for tokens in value if are_kept(tokens)] or None)
        elif name == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            setattr(config, name, [[renumber(tokens), bias] for tokens, bias in pairs if are_kept(tokens)] or None)


def _head_biases(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the biases of the module that holds the output embeddings, such as RoBERTa's `lm_head.bias`.

    They are resized with the bias of the output embeddings if they are tied to it, but not in an untied model.
    """
    head = model.get_output_embeddings()
    owners = [] if head is None else [module for module in model.modules() if head in module.children()]
    return [owner.bias for owner in owners if isinstance(getattr(owner, "bias", None), nn.Parameter)]


def _trim_model(model: PreTrainedModel, new_ids: Mapping[int, int], token_ids: torch.Tensor) -> PreTrainedModel:
    """Return a copy of `model` with the rows `token_ids` of every tensor that has a row per token."""
    trimmed = copy.deepcopy(model)
    old_size = model.get_input_embeddings().weight.shape[0]
    padding = trimmed.get_input_embeddings().padding_idx
    with torch.random.fork_rng(devices=[]):
        trimmed.resize_token_embeddings(len(token_ids))
    for bias in _head_biases(trimmed):
        bias.data = bias.data[: len(token_ids)].clone()
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in trimmed.state_dict().items():
            for dim, (size, old) in enumerate(zip(tensor.shape, state[name].shape, strict=True)):
                if size != old:
                    tensor.copy_(state[name].index_select(dim, token_ids.to(tensor.device)))
    trimmed.get_input_embeddings().padding_idx = None if padding is None else new_ids[padding]
    for config in _configs(trimmed):
        if getattr(config, "vocab_size", None) == old_size:
            config.vocab_size = len(token_ids)
        _renumber_config(config, new_ids)
    return trimmed
