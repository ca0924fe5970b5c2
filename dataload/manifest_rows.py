"""The rows of a table on disk: CSV or JSONL in any of the usual encodings, one dictionary a row.

Nothing here knows what a patient is. A row that cannot be read becomes a RowError in its place,
and rows are numbered by their first line in the file, as an editor shows it.
"""

import codecs
import csv
import json

COLUMNS = ("patient_id", "exam_id", "left", "right", "image", "eye", "report")
CHUNK = 1 << 20
FIELD_LIMIT = 1 << 20


class ManifestError(ValueError):
    """The manifest as a whole cannot be used: no such file, no needed column, no patient left."""


class RowError(ValueError):
    """One row cannot be used."""


def encoding_of(path):
    """Return the encoding that decodes the whole file (utf-8-sig, gb18030 or utf-16).

    Judged in constant memory. Raises ManifestError when there is no such file or no such encoding.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; a manifest is a CSV or JSONL file")
    with path.open("rb") as file:
        marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    found = "no whole UTF-16" if marked else "neither UTF-8 nor GB18030"
    raise ManifestError(f"{path}: is {found} text; save it as CSV (UTF-8)")


def read_rows(path, encoding, keep_columns, needed=("patient_id", "report")):
    """Yield (row, {casefolded column: value} or RowError) of each row that is not empty.

    `keep_columns` must be among the columns, and `needed`. Raises ManifestError when the file is
    no such table or lacks one of them.
    """
    with path.open(encoding=encoding, newline="") as file:
        first = file.read(CHUNK).lstrip()[:1]
        file.seek(0)
        if first == "[":
            raise ManifestError(f"{path}: is one JSON array; write one object per line (JSONL)")
        rows = _jsonl_rows if first == "{" else _csv_rows
        yield from rows(file, path, keep_columns, needed)


def _check_columns(path, columns, keep_columns, needed):
    """Raise ManifestError when a needed or kept column is not among `columns` (casefolded)."""
    found = f"columns found: {', '.join(columns) or 'none'}"
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ManifestError(f"{path}: no column {' and no column '.join(missing)}; {found}")
    if not {"left", "right", "image"} & set(columns):
        raise ManifestError(f"{path}: needs a column left, right or image; {found}")
    for name in keep_columns:
        if name.casefold() not in columns:
            raise ManifestError(f"{path}: has no column {name!r} to keep; {found}")


def _csv_rows(file, path, keep_columns, needed):
    """Yield (row, fields or RowError) of a delimited table; the delimiter is read off line 1."""
    header_line = file.readline()
    delimiter = max(",\t;", key=lambda mark: _has_patient_column(header_line, mark))
    file.seek(0)
    previous_limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        reader = csv.reader(file, delimiter=delimiter)
        columns = _header(reader, path)
        _check_columns(path, columns, keep_columns, needed)
        for name in (*COLUMNS, *map(str.casefold, keep_columns)):
            if columns.count(name) > 1:
                raise ManifestError(f"{path}: has two columns named {name}; keep one")
        yield from named_rows(reader, columns)
    finally:
        csv.field_size_limit(previous_limit)


def _header(reader, path):
    try:
        return [name.strip().casefold() for name in next(reader, [])]
    except csv.Error as error:
        raise ManifestError(f"{path}: its header is not CSV ({error})") from None


def named_rows(reader, columns):
    """Yield (row, {column: value} or RowError) of what a csv.reader has behind its header."""
    while True:
        row = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield row, RowError(f"is not CSV ({error}); is a quotation mark left open?")
            continue
        if any(value.strip() for value in values):
            yield row, _name_values(columns, values)


def _has_patient_column(line, delimiter):
    return "patient_id" in [name.strip(' "\r\n').casefold() for name in line.split(delimiter)]


def _name_values(columns, values):
    extra = [value for value in values[len(columns) :] if value.strip()]
    if extra:
        return RowError(
            f"has {len(values)} fields where the header names {len(columns)} columns; "
            "put a report that holds a comma in quotation marks"
        )
    values = values + [""] * (len(columns) - len(values))
    return dict(zip(columns, values, strict=False))


def _jsonl_rows(file, path, keep_columns, needed):
    """Yield (row, fields or RowError) of a file with one JSON object per line."""
    columns = {}
    for row, fields in json_objects(file):
        if not isinstance(fields, RowError):
            columns |= dict.fromkeys(fields)
        yield row, fields
    _check_columns(path, list(columns), keep_columns, needed)


def json_objects(file):
    """Yield (row, {casefolded name: value} or RowError) of each line that is not empty."""
    for row, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield row, RowError(f"is not JSON ({error}); write one object per line")
            continue
        if isinstance(fields, dict):
            yield row, {_whole(name).casefold(): value for name, value in fields.items()}
        else:
            kind = type(fields).__name__
            message = f"is a JSON {kind}, which is not a JSON object; write one object per line"
            yield row, RowError(message)


def text_of(fields, name):
    """Return a field as stripped text; numbers become text, null and absence become ''."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        # never the value: this goes into files, and may be an id or a report
        raise RowError(f"{name} is a {type(value).__name__}; write a text")
    if isinstance(value, float) and name == "patient_id":
        raise RowError("patient_id is a number with a point; write a text in quotation marks")
    return _whole(str(value))


def _whole(text):
    """Strip a text; JSON can spell halves of surrogate pairs, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def names_of(fields, name):
    """Return the file names in a field: `;` between them, or a list in JSON."""
    value = fields.get(name)
    if isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise RowError(f"{name} lists more than texts; write a list of file names")
        items = map(_whole, value)
    else:
        items = text_of(fields, name).split(";")
    return list(dict.fromkeys(item.strip() for item in items if item.strip()))
