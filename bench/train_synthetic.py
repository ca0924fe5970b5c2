"""The same recipe on batches that are in memory already: what the loader could cost at most."""

import json
import tempfile
from pathlib import Path

from bench.harness import in_fresh_process

# of one turn, by device type
_SECONDS, _TURNS = {"cuda": 3.0, "cpu": 2.0}, 5


def synthetic_row(options, trained):
    """Return bench.step's row of the engine at this batch, or one that says why there is none.

    Adds "of_synthetic" to the row `trained`: its speed relative to that one.
    """
    name = {"implementation": "bench.step", "input": "synthetic", "batch": options.batch}
    why = _why_not(options)
    if why is None:
        try:
            found = _engine_row(_record(options), options.batch)
        except (RuntimeError, OSError, ValueError) as error:
            found, why = None, str(error)
        if found is None:
            why = why or f"the record has no engine at B = {options.batch}"
    if why is not None:
        return name | {"note": why}
    kept = ("patients_per_s", "patients_per_s_iqr", "step_s", "repeats", "steps")
    trained["of_synthetic"] = trained["patients_per_s"] / found["patients_per_s"]
    return name | {key: found[key] for key in kept}


def _why_not(options):
    if options.synthetic == "none":
        return "not asked for"
    if options.ranks[0] > 1 and not options.synthetic:
        return "of one rank: give a record of as many by --synthetic FILE"
    return None


def _record(options):
    """A record of bench.step: the one given, or one made now."""
    if options.synthetic:
        return json.loads(Path(options.synthetic).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.json"
        words = ["--device", options.device, "--config", options.config, "--impl", "engine"]
        words += ["--batch", options.batch, "--seconds", _SECONDS[options.device]]
        words += ["--repeats", _TURNS, "--json", path]
        words += ["--set", *options.set] if options.set else []
        in_fresh_process("bench.train_synthetic", *words)
        return json.loads(path.read_text(encoding="utf-8"))


def _engine_row(record, batch):
    """The timed row of our engine on synthetic input at a batch size; None where it is missing."""
    for row in record["rows"]:
        asked = row["implementation"], row.get("input"), row.get("batch")
        if asked == ("engine", "synthetic", batch) and row.get("patients_per_s"):
            return row
    return None


if __name__ == "__main__":
    from bench.step import main

    print(json.dumps(str(main())))
