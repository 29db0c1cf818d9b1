"""What to export: formats, precisions, bars, and how the model becomes an n-gram."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pfl_lm.export.formats.registry import FORMATS, NGRAM_FORMATS, format_of
from pfl_lm.validate import in_unit, within


@dataclass(frozen=True)
class NgramConfig:
    """How the model becomes an n-gram.

    Args:
        order: words of the longest n-gram, 2 or 3.
        megabytes: largest size of each file, in millions of bytes.
        words: words that the model writes, to average what it says after them.
        public_text: a store of public text that is counted as well, or None.
    """

    order: int = 3
    megabytes: float = 10.0
    words: int = 100_000
    public_text: Path | None = None

    def __post_init__(self) -> None:
        within(2, 3, order=self.order)
        within(0.1, 16, ngram_mb=self.megabytes)
        within(100, 10**6, ngram_words=self.words)


@dataclass(frozen=True)
class ExportConfig:
    """What to export.

    Args:
        formats, precisions: one or more of each; formats whose toolchain is missing are refused.
            ``arpa`` and ``aosp`` write the model as an n-gram, which has no precision.
        block_list: a text file of words never to suggest, or None.
        least_agreement: least share of positions at which a file suggests the same three words as
            torch; by precision, ``int4`` may have a bar of its own.
        train: add the graph of a round's local training, and the model's weights for it.
        personal: add the graph with which a keyboard learns from its owner (ONNX only).
        ngram: how the model becomes an n-gram, for the formats that are one.
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    precisions: tuple[str, ...] = ("fp32", "int8")
    block_list: Path | None = None
    least_agreement: float = 0.98
    least_agreement_int4: float = 0.90
    train: bool = True
    personal: bool = True
    ngram: NgramConfig = field(default_factory=NgramConfig)

    def __post_init__(self) -> None:
        for option, stated in (("formats", self.formats), ("precisions", self.precisions)):
            if not stated:
                raise ValueError(f"--{option} names none: name one or more, or leave it out")
        for name in self.graph_formats:
            if remedy := format_of(name).missing():
                raise ValueError(f"--formats {name}: {remedy}")
        known = {p for name in self.graph_formats for p in format_of(name).precisions}
        for precision in self.precisions if known else ():
            if precision not in known:
                raise ValueError(
                    f"--precisions {precision}: must be one of {', '.join(sorted(known))}"
                )
        in_unit(
            least_agreement=self.least_agreement,
            least_agreement_int4=self.least_agreement_int4,
        )

    @property
    def graph_formats(self) -> tuple[str, ...]:
        return tuple(name for name in self.formats if name not in NGRAM_FORMATS)

    @property
    def ngram_formats(self) -> tuple[str, ...]:
        return tuple(name for name in self.formats if name in NGRAM_FORMATS)

    def bar(self, precision: str) -> float:
        return self.least_agreement_int4 if precision == "int4" else self.least_agreement

    def predictors(self) -> list[tuple[str, str]]:
        """Formats and precisions of ``predict``, fp32 first."""
        return [
            (name, precision)
            for name in self.graph_formats
            for precision in self.precisions
            if precision in format_of(name).precisions
        ]
