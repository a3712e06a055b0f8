import pytest
import torch

from hf_efficient.models.batches import has_labels
from hf_efficient.models.inputs import accepts_token_type_ids, is_label, select_inputs

LABELS = ["labels", "label", "label_ids", "start_positions", "end_positions"]
OTHER_COLUMNS = ["input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "position_ids", "inputs_embeds"]


@pytest.mark.parametrize("name", LABELS)
def test_label_columns_are_labels(name):
    assert is_label(name)
    assert has_labels({"input_ids": torch.ones(1, 2), name: torch.ones(1)})


@pytest.mark.parametrize("name", OTHER_COLUMNS)
def test_other_columns_are_not_labels(name):
    assert not is_label(name)
    assert not has_labels({name: torch.ones(1, 2)})


@pytest.mark.parametrize(
    ("head", "accepts"), [("BertModel", True), ("ElectraModel", True), ("DistilBertModel", False), ("T5Model", False)]
)
def test_token_types_are_selected_if_the_model_accepts_them(make_model, head, accepts):
    model, batch = make_model(head), {"input_ids": torch.ones(1, 2), "token_type_ids": torch.zeros(1, 2)}
    assert accepts_token_type_ids(model) is accepts
    assert select_inputs(model, batch).keys() == ({"input_ids", "token_type_ids"} if accepts else {"input_ids"})
