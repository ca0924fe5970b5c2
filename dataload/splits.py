"""Which patients train, validate and test: by chance or by a column, a patient never in two.

Chance is a hash of (seed, patient_id), so that who is held out does not depend on the order of
the manifest.
"""

import hashlib

from dataload.shard_reader import ShardError

SPLITS = ("train", "validation", "test")
# what other tables call the three
SPLIT_NAMES = {split: split for split in SPLITS}
SPLIT_NAMES |= {"training": "train", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {"dev": "validation", "testing": "test"}


def split_by_chance(manifest, *, test, validation, seed):
    """Return {split: [record numbers]} with these shares of patients set aside, each at least one.

    A split whose share is 0 is left out. Raises ShardError where too few patients are left.
    """
    shares = {
        split: share for split, share in (("test", test), ("validation", validation)) if share
    }
    total = len(manifest.records)
    if total < 1 + len(shares):
        raise ShardError(
            f"{manifest.path}: {total} patient(s) cannot be split into {1 + len(shares)} sets; "
            "set holdout and validation to 0"
        )
    drawn = []
    if shares:
        drawn = sorted(
            range(total), key=lambda number: _draw(seed, manifest.records[number].patient_id)
        )
    splits, first = {}, 0
    for later, (split, share) in enumerate(shares.items(), start=1):
        room = total - first - 1 - (len(shares) - later)
        count = min(max(round(share * total), 1), room)
        splits[split] = sorted(drawn[first : first + count])
        first += count
    splits["train"] = sorted(drawn[first:]) if shares else range(total)
    return splits


def _draw(seed, patient_id):
    text = f"{seed}\0{patient_id}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text).digest()


def split_by_column(manifest, column):
    """Return {split: [record numbers]} by a kept column that says train, validation or test.

    Raises ShardError that names the row where it says anything else, or where two examinations of
    a patient say different things, and where nobody is left to train on.
    """
    splits = {"test": [], "validation": [], "train": []}
    for number, record in enumerate(manifest.records):
        first = record.examinations[0]
        named = {_named(manifest, column, visit) for visit in record.examinations}
        if len(named) > 1:
            raise ShardError(
                f"{manifest.path}: row {first.row}: patient {record.patient_id!r} is in "
                f"{' and '.join(sorted(named))}; a patient belongs to one split"
            )
        splits[named.pop()].append(number)
    if not splits["train"]:
        raise ShardError(f"{manifest.path}: column {column!r} names nobody for train")
    return {split: numbers for split, numbers in splits.items() if numbers}


def _named(manifest, column, visit):
    value = visit.columns[column]
    try:
        return SPLIT_NAMES[value.casefold()]
    except KeyError:
        raise ShardError(
            f"{manifest.path}: row {visit.row}: {column} is {value!r}; "
            f"write {', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
        ) from None
