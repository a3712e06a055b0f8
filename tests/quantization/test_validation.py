import pytest
from transformers import BertForNextSentencePrediction

from hf_efficient import QuantizationConfig
from hf_efficient.errors import UserError
from hf_efficient.quantization.validation import check_quantization


def test_codebooks_for_an_unsupported_task_head_are_refused(make_model):
    model = BertForNextSentencePrediction(make_model().config)
    with pytest.raises(UserError, match="BertForNextSentencePrediction cannot be pruned: use one of BertModel"):
        check_quantization(model, QuantizationConfig("codebook"))
