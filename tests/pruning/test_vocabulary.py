import json
from functools import cache

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CamembertTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from hf_efficient.pruning.selection import remove_units
from hf_efficient.pruning.vocabulary import count_split_words, find_used_tokens, trim_vocabulary

CORPUS = [
    "the river carries small boats down to the harbour",
    "the harbour carries a smaller river of boats and boatmen",
    "nobody rivers the harbouring of smallest carrying boats",
    "green winters follow the greenest summer rivers",
    "somebody carried winter boats down the summer river",
    "a harbour without boats follows a river without summers",
]
USED = ["the river carries smaller boats", "a harbour follows", "down rivers!"]
UNSEEN = ["winterbodies outgreened", "boatless summering nobody"]
SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
T5_WIDTHS = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


@cache
def train_tokenizer_model(kind, *special):
    """Returns the model of a tokenizer trained on the corpus, as in its JSON file."""
    model = {"WordPiece": models.WordPiece, "BPE": models.BPE, "Unigram": models.Unigram}[kind]()
    tokenizer = Tokenizer(model)
    if kind == "WordPiece":
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=list(special), show_progress=False)
    elif kind == "BPE":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=380, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=list(special), unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return json.loads(tokenizer.to_str())["model"]


def unigram(special):
    return [tuple(piece) for piece in train_tokenizer_model("Unigram", *special)["vocab"]]


def make_bert_tokenizer():
    return BertTokenizer(vocab=train_tokenizer_model("WordPiece", *SPECIAL["bert"])["vocab"])


def make_roberta_tokenizer():
    model = train_tokenizer_model("BPE", *SPECIAL["roberta"])
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def make_t5_tokenizer():
    return T5Tokenizer(vocab=unigram(["<pad>", "</s>", "<unk>"]), extra_ids=5)


def make_xlm_roberta_tokenizer():
    return XLMRobertaTokenizer(vocab=unigram(["<s>", "<pad>", "</s>", "<unk>"]))


def make_camembert_tokenizer():
    special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"]
    return CamembertTokenizer(vocab=unigram(special))


def make_word_tokenizer():
    """A hundred tokens, as many as the embeddings of the tiny models of conftest."""
    pieces = [*SPECIAL["bert"], *(f"w{index}" for index in range(95))]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def make_generic_tokenizer():
    """A PreTrainedTokenizerFast with special tokens in the middle of the ids and an added token at the end."""
    vocab = train_tokenizer_model("WordPiece")["vocab"]
    pieces = list(vocab)[:40] + SPECIAL["bert"] + list(vocab)[40:]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.Sequence(
        [processors.BertProcessing(("[SEP]", 43), ("[CLS]", 42)), processors.ByteLevel()]
    )
    backend.enable_padding(pad_id=40, pad_token="[PAD]")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.add_tokens(["<name>"])
    return tokenizer


# A class with a language modelling head, one without, the tokenizer, and the fields of the config.
CASES = {
    "bert": ("BertForMaskedLM", "BertForSequenceClassification", make_bert_tokenizer, WIDTHS),
    "bert pretraining": ("BertForPreTraining", "BertModel", make_bert_tokenizer, WIDTHS),
    "generic tokenizer": ("BertForMaskedLM", "BertModel", make_generic_tokenizer, {**WIDTHS, "pad_token_id": 40}),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertForTokenClassification",
        make_bert_tokenizer,
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
    ),
    "electra": ("ElectraForMaskedLM", "ElectraForPreTraining", make_bert_tokenizer, {**WIDTHS, "embedding_size": 8}),
    "roberta": ("RobertaForMaskedLM", "RobertaForSequenceClassification", make_roberta_tokenizer, WIDTHS),
    "roberta untied": (
        "RobertaForMaskedLM",
        "RobertaModel",
        make_roberta_tokenizer,
        {**WIDTHS, "tie_word_embeddings": False},
    ),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaModel", make_xlm_roberta_tokenizer, WIDTHS),
    "camembert": (
        "CamembertForMaskedLM",
        "CamembertModel",
        make_camembert_tokenizer,
        {**WIDTHS, "bos_token_id": 5, "eos_token_id": 6},
    ),
    "t5": ("T5ForConditionalGeneration", "T5ForSequenceClassification", make_t5_tokenizer, T5_WIDTHS),
    "t5 untied": (
        "T5ForConditionalGeneration",
        "T5EncoderModel",
        make_t5_tokenizer,
        {**T5_WIDTHS, "tie_word_embeddings": False},
    ),
    "mt5": ("MT5ForConditionalGeneration", "MT5EncoderModel", make_t5_tokenizer, {**T5_WIDTHS, "pad_token_id": 0}),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def build(name, tokenizer, config, spare_rows=0, **changes):
    """A random model, biases and norms included, with a row for every token and `spare_rows` more."""
    cls = getattr(transformers, name)
    fields = {"decoder_start_token_id": 0} if "d_model" in config else {}
    torch.manual_seed(0)
    model = cls(cls.config_class(vocab_size=len(tokenizer) + spare_rows, **{**fields, **config, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


def outputs_of(model, batch):
    """Returns the outputs of `model` for padded texts; a decoder reads the same texts."""
    inputs = dict(batch)
    if "EncoderModel" not in type(model).__name__ and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"]
        inputs["decoder_attention_mask"] = batch["attention_mask"]
    with torch.no_grad():
        outputs = model(**inputs)
    return {name: value for name, value in outputs.items() if torch.is_tensor(value)}


def encode(tokenizer, texts):
    return tokenizer(texts, padding=True, return_tensors="pt")


def test_kept_texts_have_the_same_tokens_and_outputs(case):
    with_head, without, make_tokenizer, config = case
    tokenizer = make_tokenizer()
    for name in (with_head, without):
        model = build(name, tokenizer, config)
        trimmed = trim_vocabulary(model, tokenizer, find_used_tokens(USED, tokenizer))
        assert len(trimmed.tokenizer) == len(trimmed.token_ids) < len(tokenizer)
        assert trimmed.model.config.vocab_size == len(trimmed.token_ids)
        old, new = encode(tokenizer, USED), encode(trimmed.tokenizer, USED)
        assert [trimmed.tokenizer.tokenize(text) for text in USED] == [tokenizer.tokenize(text) for text in USED]
        assert torch.equal(trimmed.token_ids[new["input_ids"]], old["input_ids"])
        expected, actual = outputs_of(model, old), outputs_of(trimmed.model, new)
        assert expected.keys() == actual.keys()
        for key, value in expected.items():
            if value.shape[-1] == len(tokenizer):
                torch.testing.assert_close(actual[key], value[..., trimmed.token_ids], rtol=0, atol=1e-5)
            else:
                assert torch.equal(actual[key], value), key


def test_trimmed_model_and_tokenizer_are_saved_and_loaded(case, tmp_path, assert_same_weights):
    name, _, make_tokenizer, config = case
    tokenizer = make_tokenizer()
    trimmed = trim_vocabulary(build(name, tokenizer, config), tokenizer, find_used_tokens(USED, tokenizer))
    trimmed.model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    model, reloaded = type(trimmed.model).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert_same_weights(model, trimmed.model)
    assert reloaded.get_vocab() == trimmed.tokenizer.get_vocab()
    assert reloaded.all_special_ids == trimmed.tokenizer.all_special_ids
    for texts in (USED, UNSEEN, list(zip(USED, UNSEEN, strict=False))):
        assert encode(reloaded, texts)["input_ids"].tolist() == encode(trimmed.tokenizer, texts)["input_ids"].tolist()
    assert reloaded.decode(reloaded(USED[0])["input_ids"]) == tokenizer.decode(tokenizer(USED[0])["input_ids"])


def test_special_tokens_and_pairs_do_not_change(case):
    name, _, make_tokenizer, config = case
    tokenizer = make_tokenizer()
    trimmed = trim_vocabulary(build(name, tokenizer, config), tokenizer, find_used_tokens(USED, tokenizer))
    assert trimmed.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert set(trimmed.tokenizer.added_tokens_encoder) == set(tokenizer.added_tokens_encoder)
    for token, new in trimmed.tokenizer.get_vocab().items():
        assert trimmed.token_ids[new] == tokenizer.get_vocab()[token]
    old, new = tokenizer(USED[0], USED[1]), trimmed.tokenizer(USED[0], USED[1])
    assert trimmed.token_ids[new["input_ids"]].tolist() == old["input_ids"]


def test_unseen_words_are_split_into_pieces(case):
    name, _, make_tokenizer, config = case
    tokenizer = make_tokenizer()
    trimmed = trim_vocabulary(build(name, tokenizer, config), tokenizer, find_used_tokens(USED, tokenizer))
    for text in UNSEEN:
        assert tokenizer.unk_token not in trimmed.tokenizer.tokenize(text)
        joined = "".join(trimmed.tokenizer.tokenize(text)).replace("##", "")
        assert joined == "".join(tokenizer.tokenize(text)).replace("##", "")
        assert len(trimmed.tokenizer.tokenize(text)) > len(tokenizer.tokenize(text))


def test_words_that_fall_into_more_pieces_are_counted(case):
    name, _, make_tokenizer, config = case
    tokenizer = make_tokenizer()
    trimmed = trim_vocabulary(build(name, tokenizer, config), tokenizer, find_used_tokens(USED, tokenizer)).tokenizer
    seen = count_split_words(USED[:2], tokenizer, trimmed)
    assert (seen.words, seen.split, seen.tokens) == (8, 0, seen.tokens_before)
    texts = [*USED[:2], *UNSEEN]
    counts = count_split_words(texts, tokenizer, trimmed)
    assert counts.words == 13
    assert counts.tokens_before == sum(len(tokenizer.tokenize(text)) for text in texts)
    assert counts.tokens == sum(len(trimmed.tokenize(text)) for text in texts)
    assert 2 <= counts.split <= 5
    assert str(counts).startswith(f"{counts.split / 13:.1%} of 13 words fall into more pieces, ")


def test_no_words_are_no_share():
    tokenizer = make_bert_tokenizer()
    assert str(count_split_words([], tokenizer, tokenizer)) == "no words to compare"


def test_given_model_and_tokenizer_are_not_changed(assert_same_weights):
    tokenizer = make_t5_tokenizer()
    model, same = (build("T5ForConditionalGeneration", tokenizer, T5_WIDTHS) for _ in range(2))
    before = tokenizer.backend_tokenizer.to_str()
    trimmed = trim_vocabulary(model, tokenizer, [])
    trimmed.tokenizer.add_tokens(["new"])
    trimmed.tokenizer.eos_token = "new"
    with torch.no_grad():
        trimmed.model.shared.weight.zero_()
    assert_same_weights(model, same)
    assert model.config.to_dict() == same.config.to_dict()
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.eos_token == "</s>"


def test_trimming_draws_no_random_number():
    tokenizer = make_bert_tokenizer()
    model = build("BertForMaskedLM", tokenizer, WIDTHS)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    trim_vocabulary(model, tokenizer, [])
    assert torch.equal(torch.rand(1), expected)


def test_generated_texts_do_not_change():
    tokenizer = make_t5_tokenizer()
    model = build("T5ForConditionalGeneration", tokenizer, CASES["t5 untied"][3], spare_rows=7)
    batch, settings = encode(tokenizer, USED), {"min_new_tokens": 8, "max_new_tokens": 8, "no_repeat_ngram_size": 1}
    spare = list(range(len(tokenizer), len(tokenizer) + 7))
    expected = model.generate(**batch, **settings, suppress_tokens=spare)
    trimmed = trim_vocabulary(model, tokenizer, find_used_tokens([*USED, expected], tokenizer))
    assert trimmed.model.config.vocab_size == len(trimmed.tokenizer) < len(tokenizer)
    generated = trimmed.model.generate(**encode(trimmed.tokenizer, USED), **settings)
    assert len(set(expected.flatten().tolist())) > 8
    assert torch.equal(trimmed.token_ids[generated], expected)


def test_ids_in_the_configs_are_renumbered():
    tokenizer = make_generic_tokenizer()
    config = {**T5_WIDTHS, "pad_token_id": 40, "eos_token_id": 43, "decoder_start_token_id": 42}
    model = build("T5ForConditionalGeneration", tokenizer, config)
    last = len(tokenizer) - 2
    generation = model.generation_config
    generation.forced_eos_token_id, generation.eos_token_id = 43, [43, 41]
    generation.suppress_tokens, generation.begin_suppress_tokens = [44, last], [last]
    generation.bad_words_ids, generation.sequence_bias = [[42, last], [42, 43]], {(44,): -1.0, (last,): 2.0}
    trimmed = trim_vocabulary(model, tokenizer, [])
    ids = trimmed.tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    assert last not in trimmed.token_ids
    assert ids[0] < 40
    pad, unknown, first, end, mask = ids
    for new in (trimmed.model.config, trimmed.model.encoder.config, trimmed.model.decoder.config):
        assert (new.pad_token_id, new.eos_token_id, new.decoder_start_token_id) == (pad, end, first)
        assert new.vocab_size == len(trimmed.token_ids)
    new = trimmed.model.generation_config
    assert (new.pad_token_id, new.forced_eos_token_id, new.eos_token_id) == (pad, end, [end, unknown])
    assert (new.suppress_tokens, new.begin_suppress_tokens) == ([mask], None)
    assert new.bad_words_ids == [[first, end]]
    assert new.sequence_bias == [[[mask], -1.0]]
    assert generation.eos_token_id == [43, 41]


def test_padding_row_has_no_gradient():
    tokenizer = make_generic_tokenizer()
    model = build("BertModel", tokenizer, WIDTHS, pad_token_id=40)
    trimmed = trim_vocabulary(model, tokenizer, [])
    pad = trimmed.tokenizer.pad_token_id
    assert (trimmed.model.embeddings.word_embeddings.padding_idx, trimmed.model.config.pad_token_id) == (pad, pad)
    assert json.loads(trimmed.tokenizer.backend_tokenizer.to_str())["padding"]["pad_id"] == pad
    assert trimmed.token_ids[pad] == 40


def test_positions_counted_from_the_padding_id_do_not_change():
    tokenizer = make_generic_tokenizer()
    model = build("RobertaModel", tokenizer, WIDTHS, pad_token_id=40, max_position_embeddings=60)
    trimmed = trim_vocabulary(model, tokenizer, find_used_tokens(USED, tokenizer))
    assert trimmed.token_ids[:41].tolist() == list(range(41))
    old, new = encode(tokenizer, USED), encode(trimmed.tokenizer, USED)
    assert torch.equal(
        outputs_of(trimmed.model, new)["last_hidden_state"], outputs_of(model, old)["last_hidden_state"]
    )


def test_rows_without_a_token_are_removed_unless_kept_or_in_the_config():
    tokenizer = make_t5_tokenizer()
    size = len(tokenizer)
    model = build("T5ForConditionalGeneration", tokenizer, T5_WIDTHS, spare_rows=9, bos_token_id=size + 3)
    trimmed = trim_vocabulary(model, tokenizer, [size + 1])
    assert len(trimmed.token_ids) == len(trimmed.tokenizer) + 2
    assert trimmed.token_ids[-2:].tolist() == [size + 1, size + 3]
    assert trimmed.model.config.bos_token_id == len(trimmed.token_ids) - 1
    assert torch.equal(trimmed.model.shared.weight, model.shared.weight[trimmed.token_ids])


def test_keeping_all_tokens_changes_nothing(assert_same_weights):
    tokenizer = make_bert_tokenizer()
    model = build("BertForMaskedLM", tokenizer, WIDTHS)
    trimmed = trim_vocabulary(model, tokenizer, range(len(tokenizer)))
    assert trimmed.token_ids.tolist() == list(range(len(tokenizer)))
    assert trimmed.model is not model
    assert_same_weights(trimmed.model, model)
    assert trimmed.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("order", ["pruned, then trimmed", "trimmed, then pruned"])
def test_pruning_and_trimming_can_be_combined_in_any_order(
    make_model, make_batch, outputs, assert_same, select, order
):
    tokenizer = make_word_tokenizer()
    model, batch = make_model("BertForMaskedLM"), make_batch("BertForMaskedLM")
    keep = batch["input_ids"].unique().tolist()
    pruned = remove_units(model, select("uneven widths"))
    if order == "pruned, then trimmed":
        trimmed = trim_vocabulary(pruned, tokenizer, keep)
        result = trimmed.model
    else:
        trimmed = trim_vocabulary(model, tokenizer, keep)
        result = remove_units(trimmed.model, select("uneven widths"))
    new_ids = torch.full((100,), -1)
    new_ids[trimmed.token_ids] = torch.arange(len(trimmed.token_ids))
    expected = outputs(pruned, batch)["logits"][..., trimmed.token_ids]
    assert result.config.vocab_size == len(trimmed.token_ids) < 100
    assert_same(outputs(result, {**batch, "input_ids": new_ids[batch["input_ids"]]}), {"logits": expected}, atol=1e-5)


def test_pruned_and_trimmed_model_is_saved_and_loaded(make_model, select, tmp_path, assert_same_weights):
    tokenizer = make_word_tokenizer()
    trimmed = trim_vocabulary(remove_units(make_model(), select("all of these")), tokenizer, [7, 9])
    trimmed.model.save_pretrained(tmp_path)
    reloaded = type(trimmed.model).from_pretrained(tmp_path)
    assert reloaded.config.vocab_size == 7
    assert_same_weights(reloaded, trimmed.model)


def test_wordpiece_keeps_the_pieces_at_the_start_of_an_unknown_word():
    """The greedy search finds "ab", then no "##c"; without "ab" the word would be split into "a", "##bc"."""
    vocab = {piece: index for index, piece in enumerate([*SPECIAL["bert"], "a", "##b", "ab", "##bc", "x", "xy", "c"])}
    tokenizer = BertTokenizer(vocab=vocab)
    assert tokenizer.tokenize("abc") == ["[UNK]"]
    keep = find_used_tokens(["ABC", "a c"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(keep) == ["[UNK]", "[CLS]", "[SEP]", "a", "ab", "c"]
    model = build("BertModel", tokenizer, WIDTHS)
    trimmed = trim_vocabulary(model, tokenizer, [*keep, vocab["##bc"]]).tokenizer
    assert trimmed.tokenize("abc") == ["[UNK]"]
    assert "xy" not in trimmed.get_vocab()


def test_bpe_keeps_the_parts_of_its_tokens_and_their_merges():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("c", "d"), ("b", "c"), ("ab", "cd"), ("x", "y"), ("xy", "z"), ("abcd", "xy")]
    pieces = [*SPECIAL["roberta"], *alphabet, *("".join(merge) for merge in merges)]
    tokenizer = RobertaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    model = build("RobertaModel", tokenizer, WIDTHS)
    keep = find_used_tokens(["abcd", "bc"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(keep) == ["<s>", "</s>", "bc", "abcd"]
    trimmed = trim_vocabulary(model, tokenizer, keep).tokenizer
    state = json.loads(trimmed.backend_tokenizer.to_str())["model"]
    assert state["merges"] == [["a", "b"], ["c", "d"], ["b", "c"], ["ab", "cd"]]
    assert set(state["vocab"]) == {*SPECIAL["roberta"], *alphabet, "ab", "cd", "bc", "abcd"}
    assert trimmed.tokenize("abcdxyz é") == ["abcd", "x", "y", "z", "Ġ", "Ã", "©"]


def test_unigram_keeps_the_score_of_the_unknown_token():
    """The score of the unknown token is 10 below the lowest of all pieces: without "zz", -24 instead of -40."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("zz", -30.0),
        ("▁ab", -1.0),
        ("▁a", -14.0),
        ("b☃", -14.0),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=2)
    assert tokenizer.tokenize("ab☃") == ["▁a", "b☃"]
    cheap = T5Tokenizer(vocab=[piece for piece in pieces if piece[0] != "zz"], extra_ids=2)
    assert cheap.tokenize("ab☃") == ["▁ab", "☃"]
    model = build("T5EncoderModel", tokenizer, T5_WIDTHS)
    keep = find_used_tokens(["ab☃", "ab"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(keep) == ["</s>", "▁ab", "▁a", "b☃"]
    trimmed = trim_vocabulary(model, tokenizer, keep).tokenizer
    assert trimmed.tokenize("ab☃") == ["▁a", "b☃"]


def test_unigram_keeps_bytes_and_renumbers_the_unknown_token():
    table = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["aa", "bb", "cc", "<unk>", "<pad>", "a", "<0x41>x", *table]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3, byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    model = build("BertModel", tokenizer, WIDTHS, pad_token_id=4)
    trimmed = trim_vocabulary(model, tokenizer, [pieces.index("cc")])
    state = json.loads(trimmed.tokenizer.backend_tokenizer.to_str())["model"]
    assert [piece for piece, _ in state["vocab"]] == ["aa", "cc", "<unk>", "<pad>", "a", *table]
    assert state["vocab"][state["unk_id"]][0] == "<unk>"
    assert trimmed.tokenizer.tokenize("ccé") == tokenizer.tokenize("ccé") == ["cc", "<0xC3>", "<0xA9>"]


def gapped_tokenizer():
    """Ids 2 to 6 and 9 to 18 have no piece; an added token gets the id 7, which is the number of pieces."""
    vocab = {"[UNK]": 0, "aa": 1, "bb": 8, "[PAD]": 19, "cc": 20, "dd": 21, "ee": 22}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.add_tokens(["<name>"])
    return tokenizer


def test_gaps_between_ids_are_closed():
    tokenizer = gapped_tokenizer()
    assert tokenizer.convert_tokens_to_ids("<name>") == 7
    model = build("BertModel", tokenizer, WIDTHS, spare_rows=30)
    trimmed = trim_vocabulary(model, tokenizer, find_used_tokens(["bb dd"], tokenizer))
    assert trimmed.token_ids.tolist() == [0, 8, 21, 7]
    assert trimmed.tokenizer("dd <name> bb xx")["input_ids"] == [2, 3, 1, 0]


def test_positions_counted_from_a_padding_id_above_a_gap_are_refused():
    tokenizer = gapped_tokenizer()
    model = build("RobertaModel", tokenizer, WIDTHS, spare_rows=30, pad_token_id=19, max_position_embeddings=60)
    with pytest.raises(ValueError, match="counts positions from its padding id 19, which would change"):
        trim_vocabulary(model, tokenizer, [])


def test_sentinels_of_t5_are_kept():
    tokenizer = make_t5_tokenizer()
    trimmed = trim_vocabulary(build("T5EncoderModel", tokenizer, T5_WIDTHS), tokenizer, [])
    sentinels = [f"<extra_id_{index}>" for index in range(5)]
    old, new = (t.convert_tokens_to_ids(sentinels) for t in (tokenizer, trimmed.tokenizer))
    assert trimmed.token_ids[new].tolist() == old
    assert trimmed.tokenizer.tokenize("boats <extra_id_3>")[-1] == "<extra_id_3>"


def test_used_tokens_of_texts_tensors_and_nested_ids():
    tokenizer = make_bert_tokenizer()
    ids = tokenizer("river")["input_ids"]
    assert find_used_tokens(["river"], tokenizer) == sorted(set(ids))
    assert find_used_tokens([torch.tensor([[9, 7], [7, -100]]), [[8], [[3]]], [5, -100]], tokenizer) == [3, 5, 7, 8, 9]
    assert find_used_tokens(["river"] * 2500 + ["boats"], tokenizer) == find_used_tokens(["river boats"], tokenizer)
    with pytest.raises(ValueError, match="data yields a dict, neither a text nor token ids"):
        find_used_tokens([{"input_ids": [1]}], tokenizer)


def test_unsupported_arguments_are_refused():
    tokenizer = make_bert_tokenizer()
    model = build("BertModel", tokenizer, WIDTHS)
    with pytest.raises(ValueError, match=r"keep has ids that are not rows of the model, such as \[-1, 999\]: give"):
        trim_vocabulary(model, tokenizer, [5, 999, -1])
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="model 'WordLevel' cannot be trimmed: supported are WordPiece, BPE, Unigram"):
        find_used_tokens([], PreTrainedTokenizerFast(tokenizer_object=words))
    with pytest.raises(ValueError, match="ByT5Tokenizer is a slow tokenizer"):
        trim_vocabulary(model, transformers.ByT5Tokenizer(), [])
    tokenizer.add_tokens(["<name>"])
    with pytest.raises(ValueError, match=r"the model only 1\d\d rows: .*resize_token_embeddings\(1\d\d\)"):
        trim_vocabulary(model, tokenizer, [])
