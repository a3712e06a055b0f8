"""Exported sentence embedders compute the embeddings in their graph."""

import pytest
import torch
from embedders import save_embedder

from hf_efficient import export, load_exported
from hf_efficient.models.sentence_files import AutoSentenceEmbedder


def test_the_graph_computes_the_embeddings(tmp_path):
    pytest.importorskip("onnxruntime")
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    model = AutoSentenceEmbedder.from_pretrained(save_embedder(tmp_path / "model", kinds=kinds)).eval()
    export(model, tmp_path / "onnx")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": torch.randint(5, 100, (2, 4)), "attention_mask": mask}
    outputs = load_exported(tmp_path / "onnx")(**batch)
    assert set(outputs) == {"sentence_embedding", "last_hidden_state"}
    torch.testing.assert_close(outputs["sentence_embedding"], model(**batch).sentence_embedding, atol=1e-5, rtol=1e-4)
