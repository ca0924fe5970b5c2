"""The settings of a build: checked before anything is read, and told in dataset.json."""

from dataclasses import asdict, dataclass
from pathlib import Path

from dataload.fundus import FIELD_VERSION
from dataload.manifest_rows import COLUMNS
from dataload.photographs import PREPARATION_VERSION, Preparation
from dataload.shard_reader import ShardError
from dataload.splits import split_by_chance, split_by_column

# what becomes of reports that hold what names people: no build, other words, or nothing
IDENTIFIERS = ("stop", "redact", "allow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that decides the bytes of a build, and how it is run."""

    manifest: Path
    output: Path
    keep_columns: tuple[str, ...]
    reports: bool
    identifiers: str
    pseudonymise: Path | None
    preparation: Preparation
    patients_per_shard: int
    holdout: float
    validation: float
    split_column: str | None
    seed: int
    workers: int | None
    max_reject_fraction: float

    def __post_init__(self):
        if self.patients_per_shard < 1:
            raise ShardError(f"patients_per_shard is {self.patients_per_shard}; write 1 or more")
        for name in ("holdout", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise ShardError(
                    f"{name} is {getattr(self, name)}; write a share from 0 to below 1"
                )
        if self.holdout + self.validation >= 1:
            raise ShardError("holdout and validation together leave nobody to train on")
        if self.split_column and (self.holdout or self.validation):
            raise ShardError("split_column says who is held out; set holdout and validation to 0")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ShardError(
                f"max_reject_fraction is {self.max_reject_fraction}; write a share from 0 to 1"
            )
        if self.workers is not None and self.workers < 1:
            raise ShardError(f"workers is {self.workers}; write 1 or more")
        if self.identifiers not in IDENTIFIERS:
            raise ShardError(f"identifiers is {self.identifiers!r}; write stop, redact or allow")
        for name in self.columns:
            if name.casefold() in COLUMNS:
                raise ShardError(
                    f"{name} is no column to keep: what shards hold of it, they hold already"
                )
        key, output = self.pseudonymise, self.output.resolve()
        if key is not None and key.resolve().is_relative_to(output):
            raise ShardError(f"{key}: lies in the output folder; keep the key elsewhere")

    @property
    def columns(self):
        """The manifest's columns that enter a shard: those to keep, and the one of the split."""
        split = (self.split_column,) if self.split_column else ()
        return tuple(dict.fromkeys((*self.keep_columns, *split)))

    def describe(self):
        """Return what dataset.json says about the preparation."""
        kept = self.preparation.keep_original
        return {
            **asdict(self.preparation),
            "encoding": "original, without metadata" if kept else "baseline JPEG 4:2:0",
            "preparation_version": PREPARATION_VERSION,
            "field_version": FIELD_VERSION,
            "patients_per_shard": self.patients_per_shard,
            "holdout": self.holdout,
            "validation": self.validation,
            "split_column": self.split_column,
            "seed": self.seed,
            "identifiers": self.identifiers,
            "pseudonymised": self.pseudonymise is not None,
        }

    def split(self, contents):
        """Return {split: [record numbers]}, train last."""
        if self.split_column:
            return split_by_column(contents, self.split_column)
        return split_by_chance(
            contents, test=self.holdout, validation=self.validation, seed=self.seed
        )
