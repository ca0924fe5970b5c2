"""What was measured on a GPU is kept with the run: a restart computes in the same way.

RUN/measured.json holds the card's name and what was found on it; another card measures anew.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from dataload.checked_json import checked_json

FILE = "measured.json"
_VALUES = TypeAdapter(dict[str, Any])


def kept(run: Path, device) -> dict:
    """Return what was measured for this run on a card like `device`; {} where nothing was."""
    file = run / FILE
    try:
        found = checked_json(_VALUES, file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error}); remove it to measure anew") from None
    return found if found.get("device") == torch.cuda.get_device_name(device) else {}


def keep(run: Path, device, **values) -> None:
    """Add `values`, of JSON's types, to what the run keeps; for the main rank."""
    run.mkdir(parents=True, exist_ok=True)
    found = {"device": torch.cuda.get_device_name(device), **kept(run, device), **values}
    (run / FILE).write_text(json.dumps(found) + "\n")
