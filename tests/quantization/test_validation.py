import pytest
from transformers import BertForNextSentencePrediction

from hf_efficient import QuantizationConfig
from hf_efficient.errors import UserError
from hf_efficient.quantization.validation import check_quantization


@pytest.mark.parametrize("scheme", ["codebook", "int8_static", "int8_dynamic"])
def test_an_unsupported_task_head_is_refused(make_model, scheme):
    model = BertForNextSentencePrediction(make_model().config)
    with pytest.raises(UserError, match="BertForNextSentencePrediction cannot be pruned: use one of BertModel"):
        check_quantization(model, QuantizationConfig(scheme))


def test_torchao_needs_no_class_of_the_package(make_model):
    pytest.importorskip("torchao")
    model = BertForNextSentencePrediction(make_model().config)
    check_quantization(model, QuantizationConfig("int8_dynamic", torchao=True))
