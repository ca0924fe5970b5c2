"""What is done about people's identities while a manifest is read, and what was found of them.

Ids become pseudonyms where they come in, so that no later stage and no message knows them. Reports
are searched for what names people; it is replaced or only counted. What was found is told by kind
and row, never by its text.
"""

import csv
import io
from array import array

from dataload.identifiers import find_identifiers, redact_identifiers
from dataload.shard_writer import write_atomically

IDENTIFIERS_FILE = "identifiers.csv"
# rows that a message names
SHOWN_ROWS = 10


def counts_in_words(found):
    """Return counts of values by kind as words: 1 name, 2 doctors."""
    return ", ".join(f"{count:,} {kind}{'s' * (count > 1)}" for kind, count in found.items())


class Identities:
    """Ids and reports of a manifest on their way in; `found` counts values by kind."""

    def __init__(self, *, pseudonyms=None, redact=False):
        """`pseudonyms`: what ids become, None to leave them; `redact`: replace what is found."""
        self._pseudonyms, self._redact = pseudonyms, redact
        # by kind: the row of each value, packed, for a manifest may hold one in every row
        self._rows = {}

    def patient(self, patient_id):
        """Return the patient_id to go on with; an empty one stays empty."""
        if self._pseudonyms is None or not patient_id:
            return patient_id
        return self._pseudonyms.of_patient(patient_id)

    def examination(self, patient, exam_id):
        """Return the exam_id to go on with, of a patient as `patient` returned it."""
        if self._pseudonyms is None:
            return exam_id
        return self._pseudonyms.of_examination(patient, exam_id)

    def report(self, row, text):
        """Return the report to go on with, and count what names people in it."""
        if self._redact:
            text, kinds = redact_identifiers(text)
        else:
            kinds = [identifier.kind for identifier in find_identifiers(text)]
        for kind in kinds:
            self._rows.setdefault(kind, array("Q")).append(row)
        return text

    @property
    def found(self):
        """How many values of each kind were found."""
        return {kind: len(self._rows[kind]) for kind in sorted(self._rows)}

    def rows(self):
        """Return the numbers of the rows in which something was found, in order."""
        return sorted(set().union(*self._rows.values()))

    def describe(self):
        """Return in words what was found where: kinds with counts, and the first rows."""
        rows = self.rows()
        first = ", ".join(map(str, rows[:SHOWN_ROWS]))
        more = f" and {len(rows) - SHOWN_ROWS:,} more" if len(rows) > SHOWN_ROWS else ""
        named = f"row{'s' if len(rows) > 1 else ''} {first}{more}"
        return f"{counts_in_words(self.found)} in {named}"

    def write(self, path):
        """Write row and kind of everything found as CSV; without a finding there is no file."""
        lines = sorted({(row, kind) for kind, rows in self._rows.items() for row in rows})
        if not lines:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("row", "kind"))
        writer.writerows(lines)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.getvalue().encode("ascii"))
