"""The losses between the sentence embeddings of a student and its teacher, besides the distance of each text's two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_efficient.distillation.config import SIMILARITY_DISTANCES, DistillationConfig
from hf_efficient.distillation.losses import LossTerm, SumAndCount, cosine_distance
from hf_efficient.errors import UserError
from hf_efficient.models.sentence_modules import EMBEDDING, find_sentence_modules

# Divides similarities before a softmax: the nearest texts of a batch count most. Usual values lie from 0.02 to 0.1.
SIMILARITY_TEMPERATURE = 0.05
UNIFORMITY_SCALE = 2.0


class EmbeddingLosses:
    """The terms of the loss on sentence embeddings, with the weights of a config.

    Where the sizes of the embeddings differ, `projections` maps the student's to the teacher's for their distance.
    Dimensions of a Matryoshka teacher, `matryoshka_dimensions` in its config, are embeddings of their own.
    """

    def __init__(self, teacher: PreTrainedModel, config: DistillationConfig, projections: nn.ModuleDict) -> None:
        self.teacher, self.config, self.projections = teacher, config, projections
        self.prefix_sizes: tuple[int, ...] = ()

    def prepare(self, student: PreTrainedModel) -> None:
        """Create the projection, if it is needed and does not exist yet.

        Raises UserError if it is to be kept and not needed.
        """
        size, teacher_size = embedding_size(student), embedding_size(self.teacher)
        dimensions = getattr(self.teacher.config, "matryoshka_dimensions", None) or ()
        self.prefix_sizes = tuple(each for each in dimensions if each < teacher_size) if size == teacher_size else ()
        if size != teacher_size and EMBEDDING not in self.projections:
            self.projections[EMBEDDING] = nn.Linear(size, teacher_size, bias=False).to(student.device)
        if size == teacher_size and self.config.keep_projection:
            raise UserError(
                f"keep_projection=True, but the embeddings of student and teacher both have the size {size}, so there "
                "is no projection: leave it out"
            )

    def project(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the embeddings of the student in the size of the teacher's, under their name."""
        embeddings = outputs[EMBEDDING]
        if EMBEDDING in self.projections:
            embeddings = self.projections[EMBEDDING](embeddings.float())
        return {EMBEDDING: embeddings}

    def terms(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], weight: float, unit: str
    ) -> Iterator[LossTerm]:
        """Yield the terms of a batch.

        `weight` is that of the distance between embeddings, and `unit` what the sums are divided by: the texts.
        """
        config, embeddings, expected = self.config, student[EMBEDDING], teacher[EMBEDDING]
        if self.prefix_sizes and weight:
            sums = [cosine_distance(embeddings[:, :size], expected[:, :size])[0] for size in self.prefix_sizes]
            yield LossTerm("matryoshka_loss", weight, torch.stack(sums).mean(), unit)
        if config.similarity_weight:
            distance = SIMILARITY_DISTANCES[config.similarity_distance]
            yield LossTerm("similarity_loss", config.similarity_weight, distance(embeddings, expected)[0], unit)
        if config.uniformity_weight:
            yield LossTerm("uniformity_loss", config.uniformity_weight, uniformity_loss(embeddings)[0], unit)


def embedding_size(model: PreTrainedModel) -> int:
    """Return the size of the embeddings of a sentence embedder."""
    modules = find_sentence_modules(model)
    assert modules is not None
    return modules.size(model.config.hidden_size)


def similarity_order_loss(student: torch.Tensor, teacher: torch.Tensor) -> SumAndCount:
    """Kullback-Leibler divergence between the softened similarities of each text to the others of the batch.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student, teacher | (texts, size), (texts, teacher size) | embeddings |
    | returns | (), () | sum over the texts, and their number |

    Which texts are nearest counts most, not how near they are. It is multiplied by the temperature, so that its
    gradient has the size of that of a similarity. A batch of less than three texts has no order: the loss is 0.
    Source: Fang et al. 2021, "SEED: Self-supervised Distillation for Visual Representation", eq. 5, with the batch as
    queue.
    """
    if len(student) < 3:
        return student.sum() * 0.0, torch.tensor(len(student))
    own, expected = (
        F.log_softmax(_other_similarities(each) / SIMILARITY_TEMPERATURE, dim=-1) for each in (student, teacher)
    )
    divergence = F.kl_div(own, expected, reduction="sum", log_target=True)
    return divergence * SIMILARITY_TEMPERATURE, torch.tensor(len(student))


def similarity_error(student: torch.Tensor, teacher: torch.Tensor) -> SumAndCount:
    """Mean squared error of the similarities of each text to the others of the batch; arguments as above.

    Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", eq. 4, with cosines.
    """
    if len(student) < 2:
        return student.sum() * 0.0, torch.tensor(len(student))
    errors = (_other_similarities(student) - _other_similarities(teacher)).square().mean(-1)
    return errors.sum(), torch.tensor(len(student))


def uniformity_loss(embeddings: torch.Tensor) -> SumAndCount:
    """Logarithm of the mean Gaussian potential of all pairs of texts of the batch, times the number of texts.

    It is lowest, and negative, where embeddings (texts, size) are spread evenly over all directions.
    Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity",
    section 4.1.2.
    """
    count = len(embeddings)
    if count < 2:
        return embeddings.sum() * 0.0, torch.tensor(count)
    squared_distances = 2 - 2 * _other_similarities(embeddings)
    return (-UNIFORMITY_SCALE * squared_distances).exp().mean().log() * count, torch.tensor(count)


def _other_similarities(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarities (texts, texts - 1) of each text to the others."""
    vectors = F.normalize(embeddings.float(), dim=-1)
    similarities, count = vectors @ vectors.T, len(vectors)
    # A mask would be read from the device. Without the first element, the diagonal is the last of count + 1 columns.
    return similarities.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
