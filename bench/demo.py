"""Record a finished demo: its figures, its times by stage, the machine.

python -m bench.demo runs/demo
"""

import argparse
import json
from pathlib import Path

import torch

from bench.record import make_record, write_record
from engine.config import load_config

FOLDERS = ("engine", "kernels", "dataload", "configs")


def rows_of(metrics: dict) -> list[dict]:
    """Return metrics.json's headline figures as rows of name, value and chance (or None)."""
    rows = []
    for way, found in metrics["retrieval"]["distinct"].items():
        rows += [
            {
                "name": f"recall@{k} {way}",
                "value": found[f"recall@{k}"],
                "chance": found[f"chance@{k}"],
            }
            for k in (1, 5, 10)
        ]
    for name, found in metrics["zero_shot"].items():
        rows.append({"name": f"zero-shot AUROC {name}", "value": found["auroc"], "chance": 0.5})
    mean = metrics["zero_shot_mean_auroc"]
    rows.append({"name": "zero-shot AUROC mean", "value": mean, "chance": 0.5})
    rows += [
        {"name": f"seconds {stage}", "value": value, "chance": None}
        for stage, value in metrics["facts"]["seconds"].items()
    ]
    return rows


def main(argv=None) -> int:
    """Write the record of one demo folder to bench/results/ and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    run = parser.parse_args(argv).run
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    config = load_config(run / "config.yaml")
    record = make_record(
        "demo",
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        rows_of(metrics),
        folders=FOLDERS,
        machine=metrics["facts"]["machine"],
        held_out_patients=metrics["patients"],
        distinct_reports=metrics["distinct_reports"],
        steps=metrics["facts"]["step"],
        batch_size=config.training.batch_size,
    )
    print(write_record(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
