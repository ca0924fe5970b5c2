"""JSON that somebody else may have written, read into the types that its reader needs.

What a type does not allow is refused where the file is read: a number as text, a missing key, a
nesting deeper than any stack, half a surrogate pair. Behind that nobody has to doubt a value.
"""

from pydantic import TypeAdapter, ValidationError

# characters of a message: what a file holds may be long
LONGEST = 200


def checked_json(kind: TypeAdapter, data: bytes):
    """Return what `data` says as a value of `kind`; ValueError, one line with the place, else."""
    try:
        return kind.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())
        raise ValueError(message[:LONGEST]) from None
