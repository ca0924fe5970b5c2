"""Time, peak memory and error of the tripartite loss against the eager form of O(B^2) memory.

Forward and backward of three levels; errors against float64. Every number lands in bench/results/.

    python -m bench.loss --device cpu --sizes 1024 4096 8192

Shapes: K levels, B patients, D features.
"""

import argparse
import json

import torch
from rich.console import Console
from rich.table import Table

from bench.harness import in_fresh_process, peak_memory, time_interleaved
from bench.record import make_record, write_record
from kernels import tripartite_loss

GIB = 1 << 30
_MEASURED = ("kernels", "bench/loss.py", "bench/harness.py")


def eager_loss(image, text, logit_scale):
    """The loss as PyTorch users write it, of (K, B, D): full logits, cross-entropy both ways."""
    own = torch.arange(image.shape[1], device=image.device)
    cross_entropy = torch.nn.functional.cross_entropy
    total = 0
    for level in range(len(image)):
        logits = logit_scale[level] * image[level] @ text[level].T
        total = total + (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    return total


def torch_loss(image, text, logit_scale):
    """Ours in bounded memory."""
    return tripartite_loss(image, text, logit_scale, backend="torch").total


IMPLEMENTATIONS = {"eager": eager_loss, "torch": torch_loss}


def make_inputs(size, options, device):
    """Leaves image, text (K, B, D), whose own pairs have cosines near 0.3, and logit_scale (K,)."""
    generator = torch.Generator().manual_seed(0)
    shape = options.levels, size, options.width
    image = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    other = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(other.add_(image, alpha=0.3), dim=-1)
    scale = torch.full((options.levels,), options.scale)
    return [tensor.to(device).requires_grad_() for tensor in (image, text, scale)]


def _run(loss, inputs):
    """A callable of one forward and backward that reports when forward is done."""

    def run(lap):
        total = loss(*inputs)
        lap("forward")
        return total.detach(), torch.autograd.grad(total, inputs)

    return run


def exact(inputs):
    """Loss and gradients of `inputs` in float64, one level at a time: O(B^2) memory of a level."""
    wide = [tensor.detach().double() for tensor in inputs]
    total, gradients = 0.0, [torch.empty_like(tensor) for tensor in wide]
    for level in range(len(wide[0])):
        leaves = [tensor[level].clone().requires_grad_() for tensor in wide]
        logits = leaves[2] * (leaves[0] @ leaves[1].T)
        both = logits.logsumexp(1) + logits.logsumexp(0) - 2 * logits.diagonal()
        term = both.mean() / 2
        found = torch.autograd.grad(term, leaves)
        total += term.item()
        for gradient, part in zip(gradients, found, strict=True):
            gradient[level] = part
    return total, gradients


def errors(result, truth):
    """Absolute error of the loss and relative L2 error of each gradient, as a dictionary."""
    loss, gradients = result
    found = {"loss_error": abs(loss.item() - truth[0])}
    for name, gradient, right in zip(("image", "text", "scale"), gradients, truth[1], strict=True):
        found[f"{name}_gradient_error"] = ((gradient - right).norm() / right.norm()).item()
    return found


def measure(size, options, device):
    """Rows of one batch size: every implementation that may run at it."""
    limit = options.eager_limit
    names = [name for name in IMPLEMENTATIONS if name != "eager" or size <= limit]
    inputs = make_inputs(size, options, device)
    runs = {name: _run(IMPLEMENTATIONS[name], inputs) for name in names}
    # memory first: in fresh processes, while this one is small
    peaks = {name: _peak(name, size, options, device) for name in names}
    times = time_interleaved(runs, repeats=options.repeats, device=device)
    truth = exact(inputs) if size <= limit else None
    rows = []
    for name in names:
        row = {"implementation": name, "size": size, "peak_bytes": peaks[name], **times[name]}
        if truth:
            row |= errors(runs[name](lambda lap: None), truth)
        rows.append(row)
    if "eager" not in names:
        note = f"not run above {limit}"
        rows.insert(0, {"implementation": "eager", "size": size, "note": note})
    return rows


def _peak(name, size, options, device):
    """Peak bytes above the inputs, gradients included."""
    shared = f"--device {device} --levels {options.levels} --width {options.width}".split()
    shared += ["--scale", str(options.scale), "--threads", str(torch.get_num_threads())]
    return in_fresh_process("bench.loss", *shared, "--sizes", size, "--peak-of", name)


def print_peak(options, device):
    """Measure one implementation at one size in this process and print the bytes."""
    loss = IMPLEMENTATIONS[options.peak_of]
    # loads the libraries, whose memory is not the loss's
    _run(loss, make_inputs(64, options, device))(lambda lap: None)
    run = _run(loss, make_inputs(options.sizes[0], options, device))
    print(json.dumps(peak_memory(run, device)))


def show(rows):
    """Print the rows as a table, with each implementation's ratio to eager at the same size."""
    table = Table(title="tripartite loss, forward + backward")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    eager = {row["size"]: row for row in rows if row["implementation"] == "eager"}
    for row in rows:
        base = eager[row["size"]]
        table.add_row(
            str(row["size"]),
            row["implementation"] + (f" ({row['note']})" if "note" in row else ""),
            _number(row.get("forward_s"), ".3f"),
            _number(row.get("total_s"), ".3f"),
            _share(row, base, "total_s"),
            _number(row.get("cpu_s"), ".3f"),
            _share(row, base, "cpu_s"),
            _number(row.get("peak_bytes") and row["peak_bytes"] / GIB, ".3f"),
            _share(row, base, "peak_bytes"),
            *(_number(row.get(f"{name}_error"), ".1e") for name in _ERRORS),
        )
    Console(width=140).print(table)


_HEADINGS = ("B", "loss", "forward s", "total s", "of eager", "cpu s", "of eager")
_HEADINGS += ("peak GiB", "of eager", "error", "d image", "d text", "d scale")
_ERRORS = ("loss", "image_gradient", "text_gradient", "scale_gradient")


def _number(value, form):
    return "-" if value is None else format(value, form)


def _share(row, base, key):
    return f"{row[key] / base[key]:.0%}" if row.get(key) and base.get(key) else "-"


def parse(argv=None):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m bench.loss", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--width", type=int, default=512, help="features")
    parser.add_argument("--scale", type=float, default=14.3, help="logit scale")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the CPU; default all")
    parser.add_argument("--eager-limit", type=int, default=8192, help="largest B for eager")
    parser.add_argument("--output", help="JSON file; default bench/results/")
    parser.add_argument("--peak-of", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    """Measure, print a table, write a record."""
    options = parse(argv)
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak_of:
        print_peak(options, device)
        return
    rows = [row for size in options.sizes for row in measure(size, options, device)]
    show(rows)
    settings = {name: getattr(options, name) for name in ("levels", "width", "scale", "repeats")}
    path = write_record(
        make_record("loss", device, rows, folders=_MEASURED, **settings), options.output
    )
    Console().print(f"written to {path}")


if __name__ == "__main__":
    main()
