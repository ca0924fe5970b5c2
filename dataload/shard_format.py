"""What the JSON of a shard set may say, for readers: a shard set may come from others.

Sides are pixels, sizes bytes. Keys that are not named here are let through.
"""

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field

# pydantic does not take the one of typing before Python 3.12
from typing_extensions import TypedDict

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
# JPEG's own limit is 65,535
Side = Annotated[int, Field(ge=1, le=1 << 16)]
ReportId = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
# in the set's own folder, nowhere else
TarName = Annotated[str, Field(pattern=r"^\w[\w.-]*\.tar$", max_length=100)]


class FormatEntry(TypedDict):
    """What of dataset.json says which program may read it."""

    format: str
    version: int


class ShardEntry(TypedDict):
    """A shard, as dataset.json lists it."""

    name: TarName
    bytes: Count
    sha256: str
    index_sha256: str
    patients: Count
    photographs: Count


class Largest(TypedDict):
    """Of all photographs of a set: memory for decoding is set aside for it."""

    width: Side
    height: Side
    bytes: Count


class Preprocessing(TypedDict):
    """How the photographs were prepared; more is told than is named here."""

    __pydantic_config__ = ConfigDict(extra="allow")

    short_side: Side
    crop: bool
    quality: Count
    keep_original: bool
    # sets of before reports were searched say nothing of it
    identifiers: NotRequired[Literal["stop", "redact", "allow"]]
    identifiers_found: NotRequired[dict[str, Count]]
    pseudonymised: NotRequired[bool]


class PhotographEntry(TypedDict):
    """A photograph in the description of its patient; `region` is (x0, y0, x1, y1)."""

    file: str
    eye: Literal["left", "right", "unknown"]
    width: Side
    height: Side
    region: tuple[Count, Count, Side, Side]


class ExaminationEntry(TypedDict):
    """An examination in the description of its patient."""

    exam_id: str
    report: str
    report_id: ReportId
    mirrored_report: str
    mirrored_report_id: ReportId
    columns: dict[str, str]
    photographs: list[PhotographEntry]


class PatientEntry(TypedDict):
    """The description of a patient, the json of a sample."""

    patient_id: str
    examinations: list[ExaminationEntry]
