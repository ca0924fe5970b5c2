"""Tables of features on disk: Parquet, or an array (NPY, safetensors) with a CSV and a JSON beside.

A row is a photograph, an examination or a patient: who it is, and its feature. The facts say which
model made them from what, so that nothing else is ever compared with them.

Shapes: R rows, D features.
"""

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from dataload.checked_json import checked_json
from dataload.owner_only import owner_only
from engine.tensor_file import layout_of, write_tensors

SUFFIXES = (".parquet", ".npy", ".safetensors")
FEATURE = "feature"
FORMAT = "retclip-features"
VERSION = 1


class _Facts(TypedDict):
    """The facts that others look up; there are more."""

    __pydantic_config__ = ConfigDict(extra="allow")

    format: str
    version: int
    model: NotRequired[str]
    preprocessing: NotRequired[dict[str, Any]]


_FACTS = TypeAdapter(_Facts)


class FeatureFileError(ValueError):
    """A file of features cannot be written or read; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureTable:
    """R rows: features (R, D) float32, columns of R texts each, and JSON-able facts."""

    features: np.ndarray = field(repr=False)
    columns: dict[str, tuple[str, ...]] = field(repr=False)
    facts: dict

    def __len__(self):
        return len(self.features)


def check_name(path: Path) -> None:
    """Raise FeatureFileError unless such a file can be written here."""
    if path.suffix not in SUFFIXES:
        raise FeatureFileError(f"{path}: name a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        _parquet()


@owner_only()
def write_features(path: Path, table: FeatureTable) -> list[Path]:
    """Write a table; `path` appears last, when everything is whole. Return the files written."""
    path = Path(path)
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "version": VERSION, **table.facts}
    if path.suffix == ".parquet":
        _replace(path, lambda part: _write_parquet(part, table, facts))
        return [path]
    rows, record = _beside(path)
    _replace(rows, lambda part: _write_rows(part, table))
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    _replace(record, lambda part: part.write_text(text, encoding="utf-8"))
    _replace(path, lambda part: _write_array(part, path.suffix, table.features))
    return [path, rows, record]


def read_facts(path: Path) -> dict:
    """Return the facts of a table without its rows; FeatureFileError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise FeatureFileError(f"{path}: no such file; make it first (retclip embed)")
    check_name(path)
    try:
        if path.suffix == ".parquet":
            metadata = _parquet()[1].read_schema(path).metadata or {}
            facts = checked_json(_FACTS, metadata[FORMAT.encode()])
        else:
            facts = checked_json(_FACTS, _beside(path)[1].read_bytes())
        if facts.pop("format") != FORMAT or facts.pop("version") != VERSION:
            raise KeyError("format")
    # pyarrow's errors are ValueErrors and OSErrors
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise FeatureFileError(f"{path}: holds no features of retclip embed ({reason})") from None
    return facts


def read_features(path: Path) -> FeatureTable:
    """Read a table again; FeatureFileError where it is missing, damaged, or has lost its rows."""
    path = Path(path)
    facts = read_facts(path)
    try:
        if path.suffix == ".parquet":
            features, columns = _read_parquet(path)
        else:
            features, columns = _read_array(path), _read_rows(_beside(path)[0])
    except (OSError, ValueError, KeyError, NotImplementedError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise FeatureFileError(f"{path}: is damaged ({reason}); embed again") from None
    if features.ndim != 2 or features.dtype != np.float32:
        raise FeatureFileError(
            f"{path}: holds {features.ndim} dimensions of {features.dtype}, no features"
        )
    rows = {name: len(texts) for name, texts in columns.items()}
    if {*rows.values()} != {len(features)}:
        raise FeatureFileError(
            f"{path}: has {len(features)} features and {min(rows.values(), default=0)} rows "
            "beside; embed again"
        )
    return FeatureTable(features=features, columns=columns, facts=facts)


def _replace(path, write):
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


def _beside(path):
    """Return the paths of the rows and of the facts of an array."""
    return path.with_name(path.name + ".csv"), path.with_name(path.name + ".json")


def _parquet():
    """Return pyarrow and its Parquet module."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise FeatureFileError(
            'Parquet needs pyarrow: pip install "retclip-engine[parquet]", or name a file that '
            "ends in .npy or .safetensors"
        ) from None
    return pyarrow, pyarrow.parquet


def _write_parquet(path, table, facts):
    arrow, parquet = _parquet()
    values = arrow.array(np.ascontiguousarray(table.features).reshape(-1))
    columns = {name: arrow.array(texts) for name, texts in table.columns.items()}
    columns[FEATURE] = arrow.FixedSizeListArray.from_arrays(values, table.features.shape[1])
    metadata = {FORMAT: json.dumps(facts, ensure_ascii=False)}
    parquet.write_table(arrow.table(columns, metadata=metadata), path)


def _read_parquet(path):
    table = _parquet()[1].read_table(path)
    lists = table.column(FEATURE).combine_chunks()
    features = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    names = [name for name in table.column_names if name != FEATURE]
    return features, {name: tuple(table.column(name).to_pylist()) for name in names}


def _write_array(path, suffix, features):
    if suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, features)
        return
    tensors = {FEATURE: torch.from_numpy(features)}
    with path.open("wb") as file:
        write_tensors(file.write, layout_of(tensors), tensors.values())


def _read_array(path):
    if path.suffix == ".npy":
        # mapped first: a header may claim more than any memory holds
        try:
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        # numpy reads the header as a literal of Python's, which fails in any class of error
        except Exception as error:
            raise ValueError(f"no array: {error}") from None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)[FEATURE]
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _write_rows(path, table):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(zip(*table.columns.values(), strict=True))


def _read_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    if not {*map(len, rows)} <= {len(names)}:
        raise ValueError(f"{path.name} has rows of several lengths")
    return {name: tuple(row[place] for row in rows) for place, name in enumerate(names)}
