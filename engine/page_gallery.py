"""The gallery of the results page: a few held-out patients and the reports that they retrieved.

The choice is neither hand-picked nor random: patients with distinct reports are ranked by the place
of their own report and taken at equal steps from best to worst, so that the share of hits among
them is the share in the whole set. One patient with a single eye is added where there is one.

Shapes: N patients, C candidate reports, D shared space; levels are left, right, patient.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from engine.model import LEVELS
from engine.retrieval import distinct_patients

EXAMPLES = 8
RETRIEVED = 3
# pixels of a thumbnail's longer side
THUMBNAIL = 224
# similarities held at one time: 2^22 float32 are 16 MiB
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One eye: `address` of its thumbnail or None with the reason, and its labelled findings.

    findings: names of those present; None where nothing is labelled.
    """

    eye: str
    address: str | None
    missing: str
    findings: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieved:
    """A report that the photographs found; similarity is a cosine, -1..1."""

    place: int
    text: str
    similarity: float
    is_own: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A patient of the gallery; photographs right eye first, as an examiner faces the patient."""

    patient_id: str
    level: str
    one_eye: bool
    photographs: tuple[Photograph, ...]
    report: str
    rank: int
    candidates: int
    similarity: float
    retrieved: tuple[Retrieved, ...]

    @property
    def is_hit(self) -> bool:
        """Whether the own report is first, or among those shown of more than are shown."""
        return self.rank == 1 or self.rank <= RETRIEVED < self.candidates


def choose_examples(embeddings, present, examinations, reader, findings) -> list[Example]:
    """Return up to eight examples, best rank first.

    Args:
        embeddings: engine.evaluation.Embeddings of N patients.
        present: (3, N) bool, who counts at which level.
        examinations: N, as engine.evaluation.examinations_of returns them.
        reader: the ShardReader of the photographs.
        findings: names whose label columns are shown beside the photographs.
    """
    candidates = distinct_patients(embeddings.report_id, present.any(dim=0))
    both = _distinct_or_all(embeddings.report_id, present[0] & present[1])
    alone = _distinct_or_all(embeddings.report_id, present[0] ^ present[1])
    ranked_both = _ranked(embeddings, present, both, candidates)
    ranked_alone = _ranked(embeddings, present, alone, candidates)
    chosen = _equal_steps(ranked_both, EXAMPLES - bool(ranked_alone))
    if ranked_alone:
        chosen += _equal_steps(ranked_alone, max(1, EXAMPLES - len(chosen)), middle=bool(chosen))
    return [
        _example(embeddings, present, examinations, reader, findings, candidates, patient, rank)
        for rank, patient in sorted(chosen)
    ]


def _distinct_or_all(report_id, eligible):
    """Patients (M,) of distinct reports, or all where there are fewer than a gallery holds."""
    distinct = distinct_patients(report_id, eligible)
    return distinct if len(distinct) >= EXAMPLES else eligible.nonzero().flatten()


def _level(present, patient):
    """Index of the level that stands for a patient: the patient's, or the only eye's."""
    levels = (LEVELS.index("patient"), 0, 1)
    return next(level for level in levels if present[level, patient])


def _ranked(embeddings, present, patients, candidates):
    """Return (rank of the own report, patient), best first; ties count against the patient."""
    ranked = []
    rows = max(1, _CHUNK_ELEMENTS // max(1, len(candidates)))
    for part in patients.split(rows):
        for level in range(3):
            at_level = [int(p) for p in part if _level(present, p) == level]
            if not at_level:
                continue
            scores = embeddings.image[level, at_level] @ embeddings.text[level, candidates].T
            own = embeddings.report_id[at_level, None] == embeddings.report_id[None, candidates]
            best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
            ranks = 1 + ((scores >= best) & ~own).sum(dim=1)
            ranked += zip(ranks.tolist(), at_level, strict=True)
    return sorted(ranked)


def _equal_steps(ranked, number, middle=False):
    if middle:
        return [ranked[len(ranked) // 2]]
    places = np.linspace(0, len(ranked) - 1, min(number, len(ranked)))
    return [ranked[round(place)] for place in places]


def _example(embeddings, present, examinations, reader, findings, candidates, patient, rank):
    level = _level(present, patient)
    scores = embeddings.text[level, candidates] @ embeddings.image[level, patient]
    own = embeddings.report_id[candidates] == embeddings.report_id[patient]
    first = scores.argsort(descending=True, stable=True)[:RETRIEVED].tolist()
    examination = examinations[patient]
    shown = ((1, "right"), (0, "left"))
    return Example(
        patient_id=reader.patient(int(embeddings.index[patient])).patient_id,
        level=LEVELS[level],
        one_eye=bool(present[0, patient] != present[1, patient]),
        photographs=tuple(
            _photograph(reader, examination, eye, bool(present[row, patient]), findings)
            for row, eye in shown
        ),
        report=examination.report,
        rank=rank,
        candidates=len(candidates),
        similarity=float(scores[own].max()),
        retrieved=tuple(
            Retrieved(
                place=place,
                text=examinations[int(candidates[which])].report,
                similarity=float(scores[which]),
                is_own=bool(own[which]),
            )
            for place, which in enumerate(first, start=1)
        ),
    )


def _photograph(reader, examination, eye, is_present, findings):
    photographs = getattr(examination, eye)
    address, missing = None, "not photographed"
    if photographs:
        address = thumbnail(reader.jpeg(photographs[0])) if is_present else None
        missing = "photograph cannot be read"
    values = {name: examination.columns.get(f"{eye}_{name}", "").strip() for name in findings}
    labelled = any(values.values())
    return Photograph(
        eye=eye,
        address=address,
        missing=missing,
        findings=tuple(name for name, value in values.items() if value in ("1", "1.0"))
        if labelled
        else None,
    )


def thumbnail(jpeg: np.ndarray) -> str:
    """Re-encode a photograph, (bytes,) uint8, as a `data:` address of at most 224 x 224 pixels."""
    with Image.open(io.BytesIO(jpeg.tobytes())) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
