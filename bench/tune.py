"""Find the fastest tiles of the Triton loss on this GPU and write them as its architecture's table.

Every candidate is judged against the "torch" backend first, at an uneven batch size, too. All run
at the smallest size; only the best go on to the larger ones, and the best by geometric mean over
the sizes wins. What was measured lands in bench/results/.

    python -m bench.tune loss

Shapes: K levels, B patients, D features.
"""

import argparse
import math
import time

import torch
from rich.console import Console
from rich.table import Table

from bench import gpu
from bench.harness import time_interleaved
from bench.measure import attempt
from bench.record import make_record, write_record
from bench.truth import DATA, DTYPES, errors, make_inputs
from kernels import tripartite_loss

_MEASURED = ("kernels", "bench/*.py")
# uneven in every tile size, several tiles long
UNEVEN = 1023
# of float16 operands against float32 arithmetic; a tile that counts one column of UNEVEN too many
# moves the loss by more
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-4, 0.05
_SETTINGS = ("sizes", "levels", "width", "scale", "data", "dtype", "repeats", "keep")


def tune_loss(tuning, options, device, backend="triton"):
    """Return rows, one per candidate and size, and the best candidate; None if none was right.

    `tuning` offers candidates() and override(choice) as kernels.tuning does.
    """
    choices = list(enumerate(tuning.candidates()))
    cases = [_case(size, options, device) for size in (UNEVEN, options.sizes[0])]
    rows = [{"candidate": index, "choice": repr(choice), "size": None} for index, choice in choices]
    deadline = time.monotonic() + options.budget
    for index, choice in choices:
        if time.monotonic() > deadline:
            rows[index]["note"] = f"not tried: {options.budget} s are spent, --budget gives more"
        else:
            attempt(rows[index], _check, tuning, choice, cases, backend)
    right = [(index, choice) for index, choice in choices if "note" not in rows[index]]
    del cases
    scores = {index: [] for index, _ in right}
    for size in options.sizes:
        inputs = make_inputs(size, options, device)
        found = _time(tuning, right, inputs, options, device, backend)
        unit = 2 * size**2 * options.width * options.levels
        for index, (forward, backward) in found.items():
            seconds = forward + backward
            rows.append(
                {"candidate": index, "choice": rows[index]["choice"], "size": size}
                | {"forward_s": forward, "backward_s": backward, "flops": 4 * unit / seconds}
            )
            scores[index].append(seconds)
        # the few that go on; sizes count alike, as logarithms
        right = sorted(right, key=lambda entry: _score(scores[entry[0]]))[: options.keep]
    return rows, (right[0][1] if right else None)


def _score(seconds):
    return sum(map(math.log, seconds))


def _run(inputs, backend):
    total = tripartite_loss(*inputs, backend=backend).total
    return total.detach(), torch.autograd.grad(total, inputs)


def _case(size, options, device):
    """Inputs of one size, and their loss and gradients by the "torch" backend."""
    inputs = make_inputs(size, options, device)
    loss, gradients = _run(inputs, "torch")
    return inputs, (loss.item(), [gradient.double() for gradient in gradients])


def _check(tuning, choice, cases, backend):
    """The largest errors over the cases, the loss's absolute; a note if they are no rounding."""
    losses, gradients = [], []
    for inputs, truth in cases:
        with tuning.override(choice):
            found = errors(_run(inputs, backend), truth)
        losses.append(found.pop("loss_error"))
        gradients += found.values()
    # not below, rather than above: nan is neither
    right = all(error < LOSS_TOLERANCE for error in losses)
    right = right and all(error < GRADIENT_TOLERANCE for error in gradients)
    row = {"loss_error": max(losses), "gradient_error": max(gradients)}
    if right:
        return row
    return {"note": f"wrong: loss off by {max(losses):.1e}, gradients by {max(gradients):.1%}"}


def _time(tuning, choices, inputs, options, device, backend):
    """Median seconds of forward and of backward alone, by candidate."""
    runs = {}
    for index, choice in choices:
        runs[index, "forward"] = _forward(tuning, choice, inputs, backend)
        runs[index, "backward"] = _backward(tuning, choice, inputs, backend)
    times = time_interleaved(runs, repeats=options.repeats, device=device)
    return {
        index: tuple(times[index, part]["total_s"] for part in ("forward", "backward"))
        for index, _ in choices
    }


def _forward(tuning, choice, inputs, backend):
    def run(lap):
        with tuning.override(choice):
            tripartite_loss(*inputs, backend=backend)

    return run


def _backward(tuning, choice, inputs, backend):
    with tuning.override(choice):
        total = tripartite_loss(*inputs, backend=backend).total

    def run(lap):
        with tuning.override(choice):
            torch.autograd.grad(total, inputs, retain_graph=True)

    return run


def show(rows):
    """Print the rows, the fastest first at every size."""
    table = Table(title="tiles of the Triton loss")
    for heading in ("B", "candidate", "forward ms", "backward ms", "TFLOP/s as 4 units", "choice"):
        table.add_column(heading, justify="left" if heading == "choice" else "right")
    timed = [row for row in rows if row["size"]]
    for row in sorted(timed, key=lambda row: (row["size"], row["forward_s"] + row["backward_s"])):
        table.add_row(
            f"{row['size']:,}",
            str(row["candidate"]),
            f"{row['forward_s'] * 1e3:.3f}",
            f"{row['backward_s'] * 1e3:.3f}",
            f"{row['flops'] / 1e12:.0f}",
            row["choice"],
        )
    console = Console(width=200)
    console.print(table)
    for row in rows:
        if "note" in row:
            line = f"candidate {row['candidate']}: {row['note']} {row['choice']}"
            console.print(line, markup=False, highlight=False)


def parse(argv=None):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("loss",))
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--width", type=int, default=512, help="features")
    parser.add_argument("--scale", type=float, default=14.3, help="logit scale")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the features")
    parser.add_argument("--data", choices=DATA, default="random")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--keep", type=int, default=8, help="candidates that go on to a larger B")
    parser.add_argument("--budget", type=float, default=300, help="seconds to compile and judge")
    parser.add_argument("--output", help="JSON file; default bench/results/")
    return parser.parse_args(argv)


def main(argv=None):
    """Tune, print, write the record and the table; 2 without a GPU, 1 if no candidate is right."""
    options = parse(argv)
    if not torch.cuda.is_available():
        print("tune: torch sees no CUDA GPU here, nothing was tuned")
        return 2
    from kernels import tuning

    device = torch.device("cuda")
    with gpu.clock_log(device) as clocks:
        rows, best = tune_loss(tuning, options, device)
        ceiling = gpu.gemm_ceiling(device)
    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings |= {"best": repr(best), "ceiling_flops": ceiling, "clocks": clocks}
    record = make_record("tune", device, rows, folders=_MEASURED, **settings)
    path = write_record(record, options.output)
    show(rows)
    print(f"written to {path}")
    if best is None:
        print("tune: no candidate gave the right loss, the table stays as it is")
        return 1
    source = f"{record.command}, {record.device}, {record.created[:10]}, {path.name}"
    print(f"written to {tuning.write_table(tuning.architecture(device), best, source)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
