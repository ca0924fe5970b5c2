"""The patients nearest to a text or a photograph, among features that `retclip embed` wrote.

Only what went through the same head is compared: a text through the heads of its rows, a photograph
with the rows of its own eye, or with patients. Similarity is the cosine, -1 to 1.

Shapes: R rows, D features; levels are left, right, patient.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.classifier import preprocessing_of, state_fingerprint
from engine.feature_files import FeatureTable
from engine.model import LEVELS
from engine.page import page_environment
from engine.page_gallery import thumbnail

RAW = "none"
# of an index, whatever else it was told to keep
_COLUMNS = ("patient_id", "exam_id", "eyes", "route", "photographs", "patient")


class SearchError(ValueError):
    """A search that cannot be made; the message says what to give instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One patient: place from 1, cosine, the row of the table and what it says."""

    place: int
    similarity: float
    row: int
    patient_id: str
    exam_id: str
    eyes: str
    route: str


def check_index(table: FeatureTable, trained, path) -> None:
    """Raise SearchError unless `table` holds this model's features behind its heads."""
    if table.facts.get("model") != state_fingerprint(trained.model):
        raise SearchError(
            f"{path}: holds another model's features; give --model the one it was embedded with"
        )
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing or not {*table.columns["route"]} <= {*LEVELS, RAW}:
        what = f"no column {missing[0]}" if missing else "a route that is no head"
        raise SearchError(f"{path}: its rows have {what}; embed again")
    if RAW in table.columns["route"]:
        raise SearchError(
            f"{path}: holds raw features, which no text can be compared with; embed again with "
            "--level patient"
        )
    theirs, ours = table.facts.get("preprocessing", {}), preprocessing_of(trained)
    differing = [name for name, value in ours.items() if theirs.get(name) != value]
    if differing:
        raise SearchError(
            f"{path}: was embedded with {differing[0]} {theirs.get(differing[0])}, the model's "
            f"folder says {ours[differing[0]]}; embed again"
        )


def nearest(table: FeatureTable, query: torch.Tensor, present, top: int) -> list[Hit]:
    """Return the `top` patients nearest to a query, best first, each by their best row.

    query: (3, D) unit features by level; present: 3 bool, which of them are there. SearchError
    where no row went through such a head.
    """
    routes = np.array([LEVELS.index(route) for route in table.columns["route"]])
    there = np.asarray(present)[routes]
    if not there.any():
        held = ", ".join(sorted(set(table.columns["route"])))
        raise SearchError(
            f"the index holds features of the heads {held}, and the photograph has none of those; "
            "say which eye it is, or embed with --level patient"
        )
    scores = np.full(len(table), -np.inf)
    for level in range(len(LEVELS)):
        rows = (routes == level) & there
        scores[rows] = table.features[rows] @ query[level].numpy()
    hits = {}
    for row in np.argsort(-scores, kind="stable").tolist():
        patient = table.columns["patient_id"][row]
        if len(hits) == top or scores[row] == -np.inf:
            break
        if patient not in hits:
            hits[patient] = _hit(table, row, len(hits) + 1, float(scores[row]))
    return list(hits.values())


def _hit(table, row, place, similarity):
    names = ("patient_id", "exam_id", "eyes", "route")
    values = {name: table.columns[name][row] for name in names}
    return Hit(place=place, similarity=similarity, row=row, **values)


def thumbnails(table: FeatureTable, hits: list[Hit], reader) -> list[list[str]]:
    """Return for each hit the `data:` addresses of its photographs' thumbnails.

    reader: the ShardReader that was embedded; SearchError where it is another.
    """
    if reader.info.sha256 != table.facts.get("shards"):
        raise SearchError(f"{reader.folder}: is not the shard set that was embedded")
    found = []
    for hit in hits:
        wanted = table.columns["photographs"][hit.row].split(";")
        patient = reader.patient(int(table.columns["patient"][hit.row]))
        photos = {
            photo.name: photo
            for visit in patient.examinations
            # the right eye first, as an examiner faces the patient
            for photo in (*visit.right, *visit.left, *visit.unknown)
        }
        found.append([thumbnail(reader.jpeg(photos[name])) for name in photos if name in wanted])
    return found


def write_search_page(path: Path, query: str, hits: list[Hit], images=None) -> None:
    """Write one HTML file of the hits.

    images: the gallery's thumbnails, patients' numbers beside them; None: neither, but the rows of
    the index, counted from 1.
    """
    page = page_environment().get_template("search.html.j2")
    shown = zip(hits, images or [()] * len(hits), strict=True)
    text = page.render(query=query, hits=list(shown), gallery=images is not None)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
