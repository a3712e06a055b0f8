"""Non-uniform quantization: k-means finds, for every few rows of a weight, the values that serve it best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import family_of
from hf_efficient.models.codebook import Codebook, pack
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.module_selection import select_embeddings, select_linears

MOST_POINTS = 2048


def quantize_codebook(
    model: PreTrainedModel, config: QuantizationConfig, importance: Mapping[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """Return a copy of `model` whose weights are indices into codebooks; with an 8-bit scheme, its embeddings alone.

    `importance` holds, by the names of weights, how much an error of each entry costs; others count alike.

    Raises ValueError: nothing of it would be quantized. Raises TypeError: the family of `model` is unknown.
    """
    family, importance = family_of(model), importance or {}
    bits = dict(select_codebook_weights(model, config))
    if not bits:
        raise UserError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    weights, codebooks = model.state_dict(), {}
    for name, number in bits.items():
        weight = weights.pop(f"{prefix}{name}.weight")
        group = min(config.codebook_rows or len(weight), len(weight))
        indices, table = fit_codebook(weight, number, group, importance.get(f"{prefix}{name}.weight"))
        weights[f"{prefix}{name}.indices"] = pack(indices.flatten(), number)
        weights[f"{prefix}{name}.table"] = table.to(weight.dtype)
        codebooks[name] = {"bits": number, "group": group, "keep_packed": config.keep_packed}
    small = family.pruned_config(model.config, family.structure(model.config))
    small.codebooks = codebooks
    with torch.random.fork_rng(devices=[]), model.device:
        found = family.class_for(type(model), small)._from_config(
            small, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    found.load_state_dict(weights)
    if model.can_generate():
        found.generation_config = model.generation_config
    found.config._name_or_path = model.config._name_or_path
    return found.to(model.device).eval()


def fit_codebook(
    weight: torch.Tensor, bits: int, group: int, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices (rows, columns), uint8, and a table (groups, 2**bits), in ascending order, for `weight`.

    `importance` (rows, columns) weighs the squared error of each entry; None: all alike.
    Source: Han et al. 2016, "Deep Compression", section 3; weighted as in Choi et al. 2017, "Towards the Limit of
    Network Quantization", eq. 9.
    """
    found = [
        _fit(rows, 1 << bits, None if importance is None else importance[start : start + group].float())
        for start, rows in zip(range(0, len(weight), group), torch.split(weight.detach().float(), group), strict=True)
    ]
    return torch.cat([indices for indices, _ in found]), torch.stack([table for _, table in found])


def _fit(values: torch.Tensor, count: int, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices, of the shape of `values`, and the `count` values of their table."""
    from sklearn.cluster import KMeans

    flat = values.flatten()
    costs = torch.ones_like(flat) if importance is None or not importance.any() else importance.flatten()
    points, shares = _histogram_points(flat, costs)
    kept = shares > 0
    points, shares = points[kept], shares[kept]
    clusters = min(count, len(points))
    means = KMeans(clusters, n_init=2, random_state=0, max_iter=100)
    means.fit(points[:, None].double().cpu().numpy(), sample_weight=shares.double().cpu().numpy())
    table = torch.as_tensor(means.cluster_centers_[:, 0], dtype=torch.float32).sort().values.to(flat.device)
    for _ in range(2):  # from bins to the entries themselves
        indices = _nearest(flat, table)
        total = torch.zeros_like(table).index_add_(0, indices, costs)
        mean = torch.zeros_like(table).index_add_(0, indices, costs * flat) / total
        table = torch.where(total > 0, mean, table).sort().values
    table = torch.cat([table, table[-1:].expand(count - clusters)])
    return _nearest(flat, table[:clusters]).to(torch.uint8).view_as(values), table


def _nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)


def _histogram_points(values: torch.Tensor, costs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a few points and their weights that stand for many values: means of narrow bins."""
    if len(values) <= MOST_POINTS:
        return values, costs
    low, high = values.min(), values.max()
    bins = ((values - low) / (high - low).clamp(min=1e-30) * (MOST_POINTS - 1)).long()
    shares = torch.zeros(MOST_POINTS, device=values.device).index_add_(0, bins, costs)
    sums = torch.zeros(MOST_POINTS, device=values.device).index_add_(0, bins, costs * values)
    return sums / shares.clamp(min=1e-30), shares


def select_codebook_weights(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, int]]:
    """Yield the names of what becomes a codebook, and the bits of an index."""
    if config.scheme == "codebook":
        yield from ((name, config.index_bits) for name, _ in select_linears(model, config))
    for name, _ in select_embeddings(model, config):
        yield name, config.embedding_bits or config.index_bits


def compare_with_uniform(model: PreTrainedModel, quantized: PreTrainedModel) -> dict[str, float] | None:
    """Return what the codebooks of `quantized`, made of `model`, cost and lose; None where there are none.

    | key | meaning |
    | --- | --- |
    | bits_per_weight | of an entry, tables included |
    | error | squared, as a share of the squares of the weights |
    | uniform_error | the same, had they been rounded evenly in no less room |
    """
    books = {name: module for name, module in quantized.named_modules() if isinstance(module, Codebook)}
    if not books:
        return None
    stored = lost = lost_evenly = squares = 0.0
    for name, book in books.items():
        weight = model.get_parameter(f"{name}.weight").detach().float()
        stored += 8 * (book.indices.numel() + book.table.numel() * book.table.element_size())
        lost += float((weight - book.weight.float()).square().sum())
        lost_evenly += float((weight - quantize_uniformly(weight, book.bits, book.group)).square().sum())
        squares += float(weight.square().sum())
    entries = sum(book.rows * book.columns for book in books.values())
    return {
        "bits_per_weight": stored / entries,
        "error": lost / squares,
        "uniform_error": lost_evenly / squares,
    }


def quantize_uniformly(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Return `weight` (rows, columns) rounded to 2**bits - 1 even steps around zero, with scales of 32 bits.

    Each serves so few entries that the scales take as much room as the tables of a codebook of `group` rows; a row
    each, which takes more, where that does not divide.
    """
    rows, columns = weight.shape
    size = max(1, min(group, rows) * columns >> bits)
    parts = weight.reshape(-1, size if weight.numel() % size == 0 else columns)
    most = (1 << (bits - 1)) - 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-30) / most
    return ((parts / scale).round().clamp(-most, most) * scale).view_as(weight)
