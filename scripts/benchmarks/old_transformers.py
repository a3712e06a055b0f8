"""Load a stock, a pruned and an 8-bit model in Transformers 4.57, which is installed into a temporary environment.

The files of this package are not importable there: the code next to the weights is used, as on a server.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REQUIREMENTS = ("transformers==4.57.*", "huggingface_hub<1", "tokenizers<0.23")
CONSUMER = """
import json, sys
sys.modules["hf_efficient"] = None
import torch, transformers
results = {"version": transformers.__version__}
for name in sys.argv[1:]:
    try:
        auto_class = transformers.AutoModelForSequenceClassification
        model = auto_class.from_pretrained(name, trust_remote_code=True).eval()
        expected = torch.load(name + ".pt")
        with torch.no_grad():
            logits = model(**expected["inputs"]).logits
        results[name] = f"loads, largest difference {float((logits - expected['logits']).abs().max()):.1e}"
    except Exception as error:
        results[name] = f"fails: {type(error).__name__}: {error}"
print(json.dumps(results))
"""


def write_models(folder: Path) -> list[str]:
    """Write the models and their outputs into `folder`, and return their names."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from hf_efficient import PruningConfig, QuantizationConfig, prune, quantize

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_attention_heads=4, num_hidden_layers=3, intermediate_size=64
    )
    stock = BertForSequenceClassification(config).eval()
    pruned = prune(stock, PruningConfig(heads=0.4, neurons=0.4, criterion="magnitude", multiple_of=1)).eval()
    models = {
        "stock": stock,
        "pruned": pruned,
        "int8": quantize(pruned, QuantizationConfig("int8_dynamic")).eval(),
        "codebook": quantize(pruned, QuantizationConfig("codebook")).eval(),
    }
    inputs = {"input_ids": torch.arange(2, 34).view(2, 16), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        with torch.no_grad():
            torch.save({"inputs": inputs, "logits": model(**inputs).logits}, folder / f"{name}.pt")
    return list(models)


def main() -> None:
    """Print for each model whether it loads there and how far its outputs are from those written here."""
    import torch

    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        names = write_models(folder)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *REQUIREMENTS], check=True)
        # Torch and all else are those of this environment; what is installed above comes first.
        packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        (packages / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
        result = subprocess.run(
            [python, "-c", CONSUMER, *names], cwd=folder, check=True, capture_output=True, text=True
        )
    for name, text in json.loads(result.stdout.splitlines()[-1]).items():
        sys.stdout.write(f"{name}: {text}\n")


if __name__ == "__main__":
    main()
