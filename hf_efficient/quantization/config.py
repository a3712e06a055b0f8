"""Configuration of quantization."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import regex

from hf_efficient.errors import UserError
from hf_efficient.field_checks import check_field_types

INT8_SCHEMES = ("int8_static", "int8_dynamic", "int8_weight_only")
TORCHAO_SCHEMES = ("int8_dynamic", "int8_weight_only")
SCHEMES = (*INT8_SCHEMES, "codebook")
MAX_PATTERN_LENGTH = 1000
# For one pattern and one name; a usual one takes microseconds. Each pattern is tried on this name first.
MAX_MATCHING_SECONDS = 0.05
SAMPLE_NAME = "encoder.layer.10.attention.self.query_key_value.dense.weight"


@dataclass(frozen=True)
class QuantizationConfig:
    """How the weights of a model are quantized, and which of its modules stay in float.

    Raises UserError if a field is out of its range, a pattern is not a regular expression, or two fields contradict
    each other.
    """

    scheme: str | None = field(
        default="int8_static",
        metadata={
            "help": "int8_static: int8 weights and activations, whose ranges are computed from training data; "
            "int8_dynamic: a range for each token, found at run time, needs no data; int8_weight_only: int8 weights "
            "alone; codebook: weights are indices into tables found by k-means."
        },
    )
    bits: int | None = field(
        default=None, metadata={"help": "Bits of an index into a codebook, 2 to 8; by default 4."}
    )
    embedding_bits: int | None = field(
        default=None,
        metadata={
            "help": "Bits of the embedding tables: below 8 they become codebooks, whatever the scheme. By default 8 "
            "with an int8 scheme, and `bits` with scheme=codebook."
        },
    )
    codebook_rows: int = field(
        default=64, metadata={"help": "Rows of a weight matrix that share a codebook; 0: all of them."}
    )
    keep_packed: bool = field(
        default=False,
        metadata={"help": "Unpack codebooks at every use: slower, but memory stays as small as the file."},
    )
    quantize_embeddings: bool = field(
        default=True,
        metadata={"help": "Quantize embedding tables too; in a small encoder they hold half of the weights."},
    )
    aware: bool = field(
        default=False,
        metadata={"help": "Quantization-aware training: the forward pass of training rounds as the int8 model will."},
    )
    skip_modules: str = field(
        default="",
        metadata={"help": "Comma-separated regular expressions; modules whose name matches one stay in float."},
    )
    torchao: bool = field(
        default=False,
        metadata={
            "help": "Store int8 weights as torchao does: stock shapes load without remote code, but need torchao, and "
            "are fast only under torch.compile."
        },
    )
    compile: bool = field(
        default=False, metadata={"help": "Also measure the int8 model under torch.compile, for at most two minutes."}
    )

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise UserError(f"scheme={self.scheme!r} is unknown: give one of {', '.join(SCHEMES)}")
        for name in ("bits", "embedding_bits"):
            value = getattr(self, name)
            if value is not None and not 2 <= value <= 8:
                raise UserError(f"{name}={value} is out of range: give 2 to 8")
        if self.is_int8 and self.bits not in (None, 8):
            raise UserError(
                f"bits={self.bits} sets the bits of codebooks, and {self.scheme} has 8: give scheme='codebook', or "
                "embedding_bits for the embeddings alone"
            )
        if not self.quantize_embeddings and self.embedding_bits is not None:
            raise UserError(
                f"embedding_bits={self.embedding_bits} and quantize_embeddings=False contradict each other: give one"
            )
        if self.codebook_rows < 0:
            raise UserError(f"codebook_rows={self.codebook_rows} must not be negative: give 64, or 0 for all rows")
        if self.aware and self.scheme not in INT8_SCHEMES:
            raise UserError(
                f"aware=True trains for int8, and scheme is {self.scheme!r}: give scheme={' or '.join(INT8_SCHEMES)}"
            )
        if self.torchao and (self.scheme not in TORCHAO_SCHEMES or self.aware):
            raise UserError(
                f"torchao=True cannot be combined with scheme={self.scheme!r}{' and aware=True' * self.aware}: give "
                f"scheme={' or '.join(TORCHAO_SCHEMES)} without aware"
            )
        if len(self.skip_modules) > MAX_PATTERN_LENGTH:
            raise UserError(f"skip_modules has {len(self.skip_modules)} characters: give at most {MAX_PATTERN_LENGTH}")
        for pattern in self.skip_patterns:
            try:
                regex.compile(pattern)
            except (regex.error, RecursionError) as error:
                raise UserError(f"skip_modules={pattern!r} is not a regular expression: {error}") from error
            matches_any(pattern, [SAMPLE_NAME])

    @property
    def skip_patterns(self) -> tuple[str, ...]:
        """The regular expressions of `skip_modules`."""
        # Split at commas except those of a repetition such as {1,2}.
        return tuple(pattern.strip() for pattern in re.split(r",(?![^{]*\})", self.skip_modules) if pattern.strip())

    def skips(self, name: str) -> bool:
        """Whether the module called `name` stays in float. Raises UserError if a pattern takes too long."""
        return any(matches_any(pattern, [name]) for pattern in self.skip_patterns)

    @property
    def index_bits(self) -> int:
        """Bits of an index into a codebook of the layers."""
        return 4 if self.bits is None else self.bits

    @property
    def is_int8(self) -> bool:
        """Whether the Linears of the layers get int8 weights."""
        return self.scheme in INT8_SCHEMES

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges of activations are computed from calibration batches."""
        return self.scheme == "int8_static"

    @property
    def embeddings_are_codebooks(self) -> bool:
        """Whether embedding tables become codebooks."""
        return self.scheme == "codebook" or (self.embedding_bits or 8) < 8

    def describe(self) -> str:
        """Return one line on what is quantized, for a report."""
        if self.scheme == "codebook":
            return f"quantized to {self.index_bits}-bit codebooks; the task head stays in float"
        tables = f", embeddings to {self.embedding_bits}-bit codebooks" if self.embeddings_are_codebooks else ""
        library = " by torchao" if self.torchao else ""
        return f"quantized to int8 ({self.scheme}){library}{tables}; the task head stays in float"

    @property
    def title(self) -> str:
        """The name of the quantized model in a table."""
        return f"{self.index_bits}-bit codebook" if self.scheme == "codebook" else "8-bit"


def matches_any(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern of `skip_modules` is found in one of `names`. Raises UserError if matching takes too long."""
    try:
        return any(regex.search(pattern, name, timeout=MAX_MATCHING_SECONDS) for name in names)
    except TimeoutError as error:
        raise UserError(
            f"skip_modules={pattern!r} takes too long to match: repetitions within repetitions, such as (a+)+, try "
            "every way to divide a name; write it without them"
        ) from error
