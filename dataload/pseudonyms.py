"""Pseudonyms of ids: HMAC-SHA256 under a secret key, so that sets made with one key can be joined.

Who holds the key can tell the pseudonym of an id and so find a patient again; nobody else can, nor
try out all numbers that an id may be, as they could with a plain hash. The key is read from a file
and written nowhere. (FIPS 198-1.)
"""

import hashlib
import hmac
import os
from pathlib import Path

FEWEST_KEY_BYTES = 16
# bits of a file's mode that let others than its owner at it
_OTHERS = 0o077


class KeyFileError(ValueError):
    """A key file cannot be used; the message says how to make one."""


class Pseudonyms:
    """The pseudonyms that one key gives: 64 hexadecimal digits for each id."""

    def __init__(self, key):
        """`key` is bytes, at least FEWEST_KEY_BYTES."""
        self._key = key

    def of_patient(self, patient_id):
        """Return the pseudonym of a patient_id: the HMAC of its UTF-8 bytes."""
        return self._of(patient_id)

    def of_examination(self, patient, exam_id):
        """Return that of an exam_id among those of `patient`, a pseudonym; of none, none.

        An exam_id that counts from 1 would else tell by how often its pseudonym comes.
        """
        return self._of(f"{patient}\0{exam_id}") if exam_id else ""

    def _of(self, text):
        return hmac.digest(self._key, text.encode("utf-8"), hashlib.sha256).hex()


def read_pseudonyms(path):
    """Return the Pseudonyms under the bytes of a key file, all of them, a line's end included.

    Raises KeyFileError when it is missing, short, or readable by others than its owner.
    """
    path = Path(path)
    how = f"make one with: (umask 077; openssl rand -hex 32 > {path})"
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        raise KeyFileError(f"{path}: no such key file; {how}") from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot read the key ({error.strerror})") from error
    if len(key.strip()) < FEWEST_KEY_BYTES:
        raise KeyFileError(
            f"{path}: holds {len(key.strip())} bytes, a key has {FEWEST_KEY_BYTES} or more; {how}"
        )
    if os.name == "posix" and mode & _OTHERS:
        raise KeyFileError(
            f"{path}: others may read this key (mode {mode & 0o777:04o}); chmod 600 {path}, or "
            f"{how}"
        )
    return Pseudonyms(key)
