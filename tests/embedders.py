"""Tiny sentence embedders in the files of sentence-transformers, and texts for them."""

import json
from pathlib import Path

import torch
from reviews import save_model, tiny_config
from safetensors.torch import save_file
from transformers import BertModel, set_seed

WORDS = (
    *("anna", "wolf", "man", "dog", "child", "runs", "sits", "sleeps", "eats", "sings"),
    *("fast", "here", "park", "house", "street", "bread", "song"),
)
PREFIX = "sentence_transformers.models"
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of two to nine words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator)) for length in lengths
    ]


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Return pairs of texts with the share of words that they have in common, from 0 to 5."""
    rows = []
    for first, second in zip(texts(count, seed), texts(count, seed + 1), strict=True):
        words = [set(text.split()) for text in (first, second)]
        rows.append({"sentence1": first, "sentence2": second, "score": 5 * len(words[0] & words[1]) / len(words[0])})
    return rows


def write_lines(path: Path, lines) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def write_rows(path: Path, rows) -> Path:
    return write_lines(path, map(json.dumps, rows))


def write_modules(folder: Path, kinds=("Transformer", "Pooling", "Normalize"), pooling="mean", width=32, **settings):
    """Write `modules.json` and the folders of the modules; a Dense halves the width."""
    entries = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{PREFIX}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": width, **{key: name == pooling for name, key in POOLING_KEYS.items()}}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config, indent=4))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    for entry in entries:
        if entry["type"].endswith("Dense"):
            dense = folder / entry["path"]
            dense.mkdir()
            values = {"in_features": width, "out_features": width // 2, "bias": True}
            values["activation_function"] = "torch.nn.modules.activation.Tanh"
            (dense / "config.json").write_text(json.dumps(values))
            weights = {"linear.weight": torch.randn(width // 2, width), "linear.bias": torch.randn(width // 2)}
            save_file(weights, dense / "model.safetensors")
    return folder


def save_embedder(folder: Path, seed=0, modules=True, changes=(), words=WORDS, **options) -> Path:
    """Save a tiny BERT of random weights with the modules of an embedder, and a tokenizer of these words."""
    set_seed(seed)
    config = tiny_config(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id=None, **dict(changes))
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    save_model(folder, model, texts=(" ".join(words), *(texts(20) if words is WORDS else ())))
    return write_modules(folder, width=config.hidden_size, **options) if modules else folder
