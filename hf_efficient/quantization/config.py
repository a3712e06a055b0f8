"""Which form a model's weights are stored in: the settings of quantization."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hf_efficient.errors import UserError

INT8_SCHEMES = ("int8_dynamic", "int8_weight_only")
SCHEMES = (*INT8_SCHEMES, "codebook")


@dataclass(frozen=True)
class QuantizationConfig:
    """Which quantized form a model gets, and which of its parts stay in float.

    Raises ValueError: a field is out of its range, a pattern is no regular expression, or the fields contradict.
    """

    scheme: str | None = field(
        default="int8_dynamic",
        metadata={
            "help": "int8_dynamic: 8-bit weights a channel and activations a token; int8_weight_only: weights alone; "
            "codebook: weights are indices into tables found by k-means."
        },
    )
    bits: int | None = field(
        default=None, metadata={"help": "Bits of an index into a codebook, 2 to 8; 4 when left out."}
    )
    embedding_bits: int | None = field(
        default=None,
        metadata={
            "help": "Bits of the embedding tables: below 8 they are codebooks whatever the scheme. Left out: 8 under "
            "an 8-bit scheme, `bits` under codebook."
        },
    )
    codebook_rows: int = field(
        default=64, metadata={"help": "Rows of a weight that share a codebook; 0: all of them."}
    )
    keep_packed: bool = field(
        default=False,
        metadata={"help": "Unpack codebooks at every use: slower, but memory stays as small as the file."},
    )
    quantize_embeddings: bool = field(
        default=True, metadata={"help": "Quantize embedding tables too: they are half of a small encoder."}
    )
    aware: bool = field(
        default=False, metadata={"help": "Train the model to live with 8 bits: it rounds in training as it will then."}
    )
    skip_modules: str = field(
        default="",
        metadata={"help": "Comma separated regular expressions; modules with a matching name stay in float."},
    )
    compile: bool = field(
        default=True,
        metadata={
            "help": "Also measure the 8-bit model under torch.compile, without which it saves memory but no time."
        },
    )

    def __post_init__(self) -> None:
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise UserError(f"scheme={self.scheme!r} is unknown: give one of {', '.join(SCHEMES)}")
        for name in ("bits", "embedding_bits"):
            value = getattr(self, name)
            if value is not None and not 2 <= value <= 8:
                raise UserError(f"{name}={value} is out of range: give 2 to 8")
        if self.is_int8 and self.bits not in (None, 8):
            raise UserError(
                f"bits={self.bits} is for codebooks, {self.scheme} has 8: give scheme='codebook', or embedding_bits "
                "for the embeddings alone"
            )
        if not self.quantize_embeddings and self.embedding_bits is not None:
            raise UserError(
                f"embedding_bits={self.embedding_bits} and quantize_embeddings=False contradict each other: give one"
            )
        if self.codebook_rows < 0:
            raise UserError(f"codebook_rows={self.codebook_rows} must not be negative: give 64, or 0 for all rows")
        if self.aware and self.scheme not in INT8_SCHEMES:
            raise UserError(
                f"aware=True trains for 8 bits, scheme is {self.scheme!r}: give scheme, {' or '.join(INT8_SCHEMES)}"
            )
        for pattern in self.skip_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"skip_modules={pattern!r} is not a regular expression: {error}") from error

    @property
    def skip_patterns(self) -> tuple[str, ...]:
        """The regular expressions of `skip_modules`."""
        # Not at the comma of a repetition, {1,2}.
        return tuple(pattern.strip() for pattern in re.split(r",(?![^{]*\})", self.skip_modules) if pattern.strip())

    def skips(self, name: str) -> bool:
        """Whether the module called `name` stays in float."""
        return any(re.search(pattern, name) for pattern in self.skip_patterns)

    @property
    def index_bits(self) -> int:
        """Bits of an index into a codebook of the layers."""
        return 4 if self.bits is None else self.bits

    @property
    def is_int8(self) -> bool:
        """Whether Linears become integers with a scale."""
        return self.scheme in INT8_SCHEMES

    @property
    def embeddings_are_codebooks(self) -> bool:
        """Whether embedding tables become indices into tables."""
        return self.scheme == "codebook" or (self.embedding_bits or 8) < 8

    def describe(self) -> str:
        """Return what is done, for a report."""
        if self.scheme == "codebook":
            return f"stored as indices of {self.index_bits} bits into codebooks, task head in float"
        tables = f", embeddings in codebooks of {self.embedding_bits} bits" if self.embeddings_are_codebooks else ""
        return f"quantized to 8 bits ({self.scheme}){tables}, task head in float"

    @property
    def title(self) -> str:
        """What to call the result in a table."""
        return f"{self.index_bits}-bit codebook" if self.scheme == "codebook" else "8-bit"
