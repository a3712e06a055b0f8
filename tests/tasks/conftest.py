"""A tokenizer of a few words, and splits of a few rows."""

import pytest
from datasets import Dataset, DatasetDict
from transformers import BertConfig

from hf_efficient.commands.demo_dataset import train_tokenizer
from hf_efficient.data.config import DataConfig
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.task import RowEncoder

WORDS = "the cat sat on mat dog ran in park who where what anna berlin lives wolf gang"


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([WORDS, "a b c d e f g h i j k l m n o p q r s t u v w x y z"], 200)


@pytest.fixture(scope="session")
def base_config():
    """The config of a model without a task head."""
    return BertConfig(architectures=["BertModel"])


@pytest.fixture(scope="session")
def make_splits():
    """Build splits that both have the given rows."""

    def make(rows, features=None):
        data = Dataset.from_list(rows, features=features)
        return DatasetDict(train=data, evaluation=data)

    return make


@pytest.fixture(scope="session")
def encode(tokenizer, base_config):
    """Tokenize splits for a task; return them and the encoder."""

    def encode_splits(task, splits, data=None, config=base_config, label_to_id=None):
        data = data or DataConfig()
        columns = TASKS[task].get_columns(splits, data)
        encoder = RowEncoder(columns, tokenizer, data, label_to_id, num_labels=config.num_labels)
        return TASKS[task].tokenize(splits, encoder), encoder

    return encode_splits
