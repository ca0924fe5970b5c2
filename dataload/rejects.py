"""What could not be used of a manifest: rejects.csv, and the share that may be lost at most."""

import csv
import io
import os
from dataclasses import asdict, replace

from dataload.records import NOTHING_LEFT, Problem
from dataload.shard_reader import ShardError
from dataload.shard_writer import write_atomically

REJECT_COLUMNS = ("row", "patient_id", "file", "kind", "reason")


def read_rejects(path):
    """Return a rejects.csv as dictionaries by REJECT_COLUMNS; none where there is no file.

    `kind` is "rejected" for what is left out, "warning" for what was taken and is doubtful.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Rejects:
    """Lines of rejects.csv, and the share of photographs that they stand for."""

    def __init__(self, path, contents, max_fraction, *, name_files=True):
        """Begin with the Manifest's problems; `max_fraction` of its photographs may be lost.

        Without `name_files` no photograph is named, as names often hold ids: the row leads to it.
        """
        self.path = path
        self.max_fraction = max_fraction
        self.name_files = name_files
        self.manifest = contents.path
        self.base = contents.path.absolute().parent
        self.lines = [self._tell(problem) for problem in contents.problems]
        self.warnings = []
        self.named = contents.photographs_named
        self.lost = sum(problem.photographs for problem in contents.problems)

    def take(self, record, results):
        """Return the results with None for each rejected photograph, which becomes a line."""
        kept = iter(results)
        usable = []
        for examination in record.examinations:
            for eye, path in examination.photographs():
                result = next(kept)
                rejected = isinstance(result, str)
                usable.append(None if rejected else result)
                reason = result if rejected else result.doubt
                if reason:
                    self._add(record, examination, eye, path, reason, rejected)
        if not any(usable):
            row = record.examinations[0].row
            message = f"{NOTHING_LEFT} {record.patient_id!r} is left"
            self.lines.append(Problem(row=row, message=message, patient_id=record.patient_id))
        self.check()
        return usable

    def _tell(self, problem):
        """Return a Problem as it is written down."""
        if self.name_files or not problem.file:
            return problem
        message = problem.message.replace(f" {problem.file!r}", "")
        return replace(problem, message=message, file="")

    def _add(self, record, examination, eye, path, reason, rejected):
        name = os.path.relpath(path, self.base)
        line = Problem(
            row=examination.row,
            message=f"{eye} photograph {name!r} {reason}",
            patient_id=record.patient_id,
            file=name,
            photographs=int(rejected),
        )
        (self.lines if rejected else self.warnings).append(self._tell(line))
        self.lost += line.photographs

    def position(self):
        """Return how many lines and warnings there are, for `since`."""
        return len(self.lines), len(self.warnings)

    def since(self, position):
        """Return the lines and warnings added after `position`, as JSON takes them."""
        lines, warnings = position
        return {
            "rejected": [asdict(line) for line in self.lines[lines:]],
            "warnings": [asdict(line) for line in self.warnings[warnings:]],
        }

    def take_over(self, noted):
        """Add what `since` gave in an earlier run."""
        lines = [Problem(**line) for line in noted["rejected"]]
        self.lines += lines
        self.warnings += [Problem(**line) for line in noted["warnings"]]
        self.lost += sum(line.photographs for line in lines)
        self.check()

    def check(self):
        """Raise ShardError once more is lost than is allowed."""
        if self.lost <= self.max_fraction * self.named:
            return
        self.write()
        raise ShardError(
            f"{self.manifest}: {self.lost} of {self.named} photographs cannot be used, more "
            f"than max_reject_fraction {self.max_fraction} allows; the first is in "
            f"{min(self.lines, key=lambda line: line.row)}; all are in {self.path}"
        )

    def write(self):
        """Write rejects.csv in the order of the manifest's rows."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(REJECT_COLUMNS)
        kinds = [(line, "rejected") for line in self.lines]
        kinds += [(line, "warning") for line in self.warnings]
        for line, kind in sorted(kinds, key=lambda pair: pair[0].row):
            writer.writerow((line.row, line.patient_id, line.file, kind, line.message))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue().encode("utf-8", "replace"))
