import pytest
import torch
from datasets import Dataset
from transformers import T5Tokenizer

from hf_efficient.errors import UserError
from hf_efficient.measurement.metrics import masked_lm_metrics
from hf_efficient.tasks.masked_lm import MaskingCollator, mask_once, masked_token_scores


def test_tokens_are_masked_anew_in_each_batch_unless_they_are_masked_once(tokenizer):
    words = " ".join(["the cat sat on mat dog ran in"] * 4)
    data = Dataset.from_list([dict(tokenizer(words)), dict(tokenizer(words[:60]))])
    collate, (first, second) = MaskingCollator(tokenizer), (mask_once(data, tokenizer, seed) for seed in (0, 0))
    assert first[:] == second[:]
    torch.manual_seed(0)
    labels = [collate([data[0]])["labels"] for _ in range(2)]
    assert not torch.equal(*labels)
    batch = collate(list(first))
    assert torch.equal(batch["labels"], collate(list(first))["labels"])
    masked = batch["labels"] != -100
    assert 0 < int(masked.sum()) < 20
    assert torch.equal(batch["labels"][0][masked[0]], torch.tensor(data[0]["input_ids"])[masked[0]])


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(UserError, match="T5Tokenizer has no mask token: fill-mask needs a model that has one"):
        MaskingCollator(T5Tokenizer())


def test_metrics_are_computed_from_the_scores_of_masked_tokens():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 3.0], [9.0, 9.0]]]).log_softmax(-1)
    labels = torch.tensor([[0, 1, -100]])
    metrics = masked_lm_metrics(masked_token_scores(logits, labels).numpy(), labels.numpy())
    probability = torch.tensor([0.0, 3.0]).softmax(-1)[1]
    assert metrics["perplexity"] == pytest.approx(float((2 / probability).sqrt()), rel=1e-6)
    assert metrics["accuracy"] == 1.0
