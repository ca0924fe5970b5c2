"""A model of step time on many GPUs, with its assumptions; nothing of it has been measured.

A step is computation, which grows with the patients of a GPU, and four exchanges that the engine
does not overlap with it: features of all ranks for the loss, their gradients back, parameter
gradients, and weights. The patients of a GPU stay the same, so the global batch grows with the
ranks, and the loss with it.

    python -m bench.scaling
    python -m bench.scaling --config configs/vit_l14.yaml --patients 256 --gpus 1 8 64 512

Legend: W ranks, B patients of a rank, P parameters, D the shared space, 3 levels.
"""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.flops import step_flops
from engine.config import load_config
from engine.model import LEVELS, DualEncoder

RECIPE = Path(__file__).resolve().parents[1] / "configs/retclip_vit_b16.yaml"
PATIENTS = 1024
GPUS = (1, 8, 64, 512)
# bytes of a value in fp32 and in half precision
SINGLE, HALF = 4, 2
# products of the fused loss over own rows and all columns: logits forward, again backward, and one
# for each side's gradient
LOSS_PASSES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What is assumed of machines and engine; bytes a second are those of one GPU."""

    flops: float = 790e12
    share: float = 0.50
    loss_share: float = 0.50
    gpus_per_node: int = 8
    within_node: float = 300e9
    between_nodes: float = 40e9
    call: float = 30e-6
    report_tokens: int = 40
    vocabulary: int = 21128

    def about(self):
        """Return one line that says all of it."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return (
            "{flops:.3g} FLOP/s of matrix products, {share:.0%} of it reached by the encoders and "
            "{loss_share:.0%} by the loss; {gpus_per_node} GPUs a node, {within_node:.3g} B/s to "
            "and from each within it and {between_nodes:.3g} B/s beyond; {call:.0e} s a "
            "collective; reports of {report_tokens} tokens, {vocabulary:,} words; no GPU waits "
            "for photographs or for another; nothing overlaps"
        ).format(**named)


def step_seconds(model, patients, ranks, cluster, parameters):
    """Return the seconds of one step by part.

    model: ModelConfig; patients: B of each rank; ranks: W; parameters: P.
    """
    everybody = ranks * patients
    flops = step_flops(model, [cluster.report_tokens] * patients)
    encoders = sum(flops[part] for part in ("images", "text", "heads"))
    products = 2 * LOSS_PASSES * len(LEVELS) * patients * everybody * model.embed_dim
    # of the text alone: image rows meet it where they are
    features = len(LEVELS) * everybody * model.embed_dim
    return {
        "encoders": encoders / (cluster.share * cluster.flops),
        "loss": products / (cluster.loss_share * cluster.flops),
        "features": _ring(features * HALF, ranks, cluster, len(LEVELS)),
        "their gradients": _ring(features * SINGLE, ranks, cluster, len(LEVELS)),
        "gradients": _ring(parameters * SINGLE, ranks, cluster, 1),
        "weights": _ring(parameters * SINGLE, ranks, cluster, 1),
    }


def _ring(size, ranks, cluster, calls):
    """Seconds of a gather or a reduce-scatter of `size` bytes in all, around a ring."""
    if ranks == 1:
        return 0.0
    alone = ranks <= cluster.gpus_per_node
    rate = cluster.within_node if alone else cluster.between_nodes
    return (ranks - 1) / ranks * size / rate + calls * cluster.call


def rows(config, patients, gpus, cluster):
    """Return a dictionary for each number of GPUs: seconds by part, speed and efficiency."""
    model = config.model
    parameters = count_parameters(model, cluster.vocabulary)
    found = []
    for ranks in gpus:
        parts = step_seconds(model, patients, ranks, cluster, parameters)
        seconds = sum(parts.values())
        found.append(
            {"gpus": ranks, "batch": ranks * patients, "seconds": seconds}
            | {"patients_per_s": ranks * patients / seconds, "parts": parts}
        )
    alone = sum(step_seconds(model, patients, 1, cluster, parameters).values())
    for row in found:
        row["efficiency"] = row["patients_per_s"] / (row["gpus"] * patients / alone)
    return found


def usual_rows():
    """Return `rows` of the paper's recipe at 1,024 patients a GPU, which the pages show."""
    return rows(load_config(RECIPE), PATIENTS, GPUS, Cluster())


def cells(found):
    """Return the headings and the lines of a table of `rows`, as texts."""
    lines = []
    for row in found:
        times = [f"{1e3 * seconds:,.1f}" for seconds in (*row["parts"].values(), row["seconds"])]
        speed = f"{row['patients_per_s']:,.0f}", f"{row['efficiency']:.0%}"
        lines.append([f"{row['gpus']:,}", f"{row['batch']:,}", *times, *speed])
    return ["GPUs", "batch", *found[0]["parts"], "step", "patients/s", "efficiency"], lines


def count_parameters(model, vocabulary):
    """Return the parameters of both encoders and heads, without making them."""
    text = replace(model.text, vocabulary_size=model.text.vocabulary_size or vocabulary)
    with torch.device("meta"):
        built = DualEncoder(replace(model, text=text))
    return sum(parameter.numel() for parameter in built.parameters())


def main(argv=None):
    """Print the table and what it assumes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="of each GPU in a step")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    for field in fields(Cluster):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=field.type, default=field.default)
    options = parser.parse_args(argv)
    cluster = Cluster(**{field.name: getattr(options, field.name) for field in fields(Cluster)})
    found = rows(load_config(options.config), options.patients, options.gpus, cluster)
    table = Table(title="modelled, not measured: milliseconds of a step by part")
    headings, lines = cells(found)
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    console = Console(width=120)
    console.print(table)
    console.print(f"assumed: {cluster.about()}", highlight=False)


if __name__ == "__main__":
    main()
