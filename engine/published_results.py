"""Published figures of RET-CLIP on public sets: only those whose source could be read.

The paper's own tables (arXiv:2405.14137) could not be: the copies at hand end before them, the
official repository holds no results, and nothing is filled in from memory. What is here comes from
others who measured the published weights, with whatever is not known of their protocol said.
"""

from dataclasses import dataclass

# why the paper's column is empty
PAPER_MISSING = "the tables of arXiv:2405.14137 could not be read; add figures with their source"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFigure:
    """One figure: `value` of `metric` (a share of 1) on a set, by whom and under which protocol.

    `paper` tells whether RET-CLIP's authors published it; `source` is where it was read.
    """

    name: str
    metric: str
    value: float
    protocol: str
    paper: bool
    source: str


_RETMAE = (
    "OpenReview K5tcKEQaUr (ICLR 2026), linear probing table, as quoted in two public notes on it"
)
FIGURES = (
    PublishedFigure(
        name="idrid",
        metric="AUROC",
        value=0.898,
        protocol="linear probe; split not known",
        paper=False,
        source=_RETMAE,
    ),
    PublishedFigure(
        name="aptos2019",
        metric="AUROC",
        value=0.940,
        protocol="linear probe, out of distribution; split not known",
        paper=False,
        source=_RETMAE,
    ),
)


def figures_of(name):
    """Return the PublishedFigures of a set, none where none could be sourced."""
    return tuple(figure for figure in FIGURES if figure.name == name)
