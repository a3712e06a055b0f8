"""Codebook quantization: every few rows of a weight share a table of values that k-means finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models.codebook import Codebook, pack
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.module_selection import select_embeddings, select_linears
from hf_efficient.quantization.quantized_model import build_quantized_model

MAX_KMEANS_POINTS = 2048


def quantize_codebook(
    model: PreTrainedModel, config: QuantizationConfig, importance: Mapping[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """Return a copy of `model` whose weights are indices into codebooks; with an int8 scheme, its embeddings alone.

    `importance` maps names of weights to the cost of an error of each entry, in the shape of the weight; weights that
    it does not name have equal costs.

    Raises UserError if no weight would be quantized, UnsupportedModelError if the family of `model` is unknown.
    """
    bits = dict(select_codebook_weights(model, config))
    if len(bits) == 0:
        raise UserError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    importance = {} if importance is None else importance
    weights, codebooks = model.state_dict(), {}
    for name, index_bits in bits.items():
        weight = weights.pop(f"{prefix}{name}.weight")
        group = min(config.codebook_rows or len(weight), len(weight))
        indices, table = fit_codebook(weight, index_bits, group, importance.get(f"{prefix}{name}.weight"))
        weights[f"{prefix}{name}.indices"] = pack(indices.flatten(), index_bits)
        weights[f"{prefix}{name}.table"] = table.to(weight.dtype)
        codebooks[name] = {"bits": index_bits, "group": group, "keep_packed": config.keep_packed}
    return build_quantized_model(model, weights, codebooks=codebooks)


def fit_codebook(
    weight: torch.Tensor, bits: int, group: int, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codebooks of a weight, each shared by `group` rows.

    | argument | shape | meaning |
    | --- | --- | --- |
    | weight | (rows, columns) | values to quantize |
    | importance | (rows, columns) | weight of the squared error of each entry; None: equal |
    | returns | (rows, columns), uint8 | index of each entry |
    | | (groups, 2**bits) | values of each codebook, ascending |

    Source: Han et al. 2016, "Deep Compression", section 3; weighted as in Choi et al. 2017, "Towards the Limit of
    Network Quantization", eq. 9.
    """
    fitted = [
        _fit_group(rows, 1 << bits, None if importance is None else importance[start : start + group].float())
        for start, rows in zip(range(0, len(weight), group), torch.split(weight.detach().float(), group), strict=True)
    ]
    return torch.cat([indices for indices, _ in fitted]), torch.stack([table for _, table in fitted])


def _fit_group(values: torch.Tensor, count: int, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices, in the shape of `values`, and a table (count,) of the values that they stand for."""
    from sklearn.cluster import KMeans

    flat = values.flatten()
    costs = torch.ones_like(flat) if importance is None or not importance.any() else importance.flatten()
    points, point_weights = _histogram_points(flat, costs)
    is_used = point_weights > 0
    points, point_weights = points[is_used], point_weights[is_used]
    clusters = min(count, len(points))
    kmeans = KMeans(clusters, n_init=2, random_state=0, max_iter=100)
    kmeans.fit(points[:, None].double().cpu().numpy(), sample_weight=point_weights.double().cpu().numpy())
    table = torch.as_tensor(kmeans.cluster_centers_[:, 0], dtype=torch.float32).sort().values.to(flat.device)
    for _ in range(2):  # two steps of k-means on the entries, which the bins only approximate
        indices = _nearest(flat, table)
        total = torch.zeros_like(table).index_add_(0, indices, costs)
        mean = torch.zeros_like(table).index_add_(0, indices, costs * flat) / total
        table = torch.where(total > 0, mean, table).sort().values
    table = torch.cat([table, table[-1:].expand(count - clusters)])
    return _nearest(flat, table[:clusters]).to(torch.uint8).view_as(values), table


def _nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest of the ascending values of `table` for each of `values`."""
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)


def _histogram_points(values: torch.Tensor, costs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at most `MAX_KMEANS_POINTS` points with weights for k-means: the means of the bins of a histogram."""
    if len(values) <= MAX_KMEANS_POINTS:
        return values, costs
    low, high = values.min(), values.max()
    bins = ((values - low) / (high - low).clamp(min=1e-30) * (MAX_KMEANS_POINTS - 1)).long()
    bin_weights = torch.zeros(MAX_KMEANS_POINTS, device=values.device).index_add_(0, bins, costs)
    sums = torch.zeros(MAX_KMEANS_POINTS, device=values.device).index_add_(0, bins, costs * values)
    return sums / bin_weights.clamp(min=1e-30), bin_weights


def select_codebook_weights(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, int]]:
    """Yield the names of the modules that become codebooks, with the bits of an index."""
    if config.scheme == "codebook":
        yield from ((name, config.index_bits) for name, _ in select_linears(model, config))
    for name, _ in select_embeddings(model, config):
        yield name, config.embedding_bits or config.index_bits


def compare_with_uniform(model: PreTrainedModel, quantized: PreTrainedModel) -> dict[str, float] | None:
    """Return size and error of the codebooks of `quantized`, made from `model`; None if it has none.

    | key | meaning |
    | --- | --- |
    | bits_per_weight | average bits of a weight, tables included |
    | error | squared error, relative to the sum of the squared weights |
    | uniform_error | the same for uniform quantization of at least that size |
    """
    codebooks = {name: module for name, module in quantized.named_modules() if isinstance(module, Codebook)}
    if len(codebooks) == 0:
        return None
    stored_bits = squared_error = uniform_squared_error = squares = 0.0
    for name, codebook in codebooks.items():
        weight = model.get_parameter(f"{name}.weight").detach().float()
        uniform = quantize_uniformly(weight, codebook.bits, codebook.group)
        stored_bits += 8 * (codebook.indices.numel() + codebook.table.numel() * codebook.table.element_size())
        squared_error += float((weight - codebook.weight.float()).square().sum())
        uniform_squared_error += float((weight - uniform).square().sum())
        squares += float(weight.square().sum())
    entries = sum(codebook.rows * codebook.columns for codebook in codebooks.values())
    return {
        "bits_per_weight": stored_bits / entries,
        "error": squared_error / squares,
        "uniform_error": uniform_squared_error / squares,
    }


def quantize_uniformly(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Return `weight` (rows, columns) rounded to 2**bits - 1 equidistant values around zero, with scales of 32 bits.

    A scale is shared by as many entries as make all scales together as large as the tables of codebooks of `group`
    rows; by a row, which takes more space, where that number does not divide the weight.
    """
    rows, columns = weight.shape
    size = max(1, min(group, rows) * columns >> bits)
    parts = weight.reshape(-1, size if weight.numel() % size == 0 else columns)
    limit = (1 << (bits - 1)) - 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-30) / limit
    return ((parts / scale).round().clamp(-limit, limit) * scale).view_as(weight)
