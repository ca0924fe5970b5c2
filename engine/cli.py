"""The `retclip` command: cohorts, shards, tokenizers, evaluation and the demo.

Training is `deepspeed engine/train.py`; this command does everything before and after it.
"""

import sys
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.progress import Progress

from engine.commands import run_command

_SHOWN_REJECTS = 5

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Pre-train RET-CLIP on two fundus photographs and one report per patient.",
)
shards_app = typer.Typer(no_args_is_help=True, help="Build shard sets.")
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train tokenizers.")
app.add_typer(shards_app, name="shards")
app.add_typer(tokenizer_app, name="tokenizer")


@app.command()
def synth(
    folder: Path = typer.Argument(..., help="Where to write photos/ and patients.csv."),
    patients: int = typer.Option(2400, min=1, help="How many patients."),
    seed: int = typer.Option(0, min=0, help="Same seed, same bytes."),
    language: Literal["mixed", "zh", "en"] = typer.Option("mixed", help="Of the reports."),
    workers: int = typer.Option(None, min=1, help="Processes; all cores by default."),
):
    """Render a synthetic cohort: fundus photographs, lesions and the reports that name them."""
    from dataload.synthetic import make_cohort

    with _progress("rendering photographs") as advance:
        manifest = make_cohort(
            folder,
            patients=patients,
            seed=seed,
            language=language,
            workers=workers,
            progress=advance,
        )
    print(f"{patients} patients in {manifest}")


@shards_app.command("build")
def shards_build(
    manifest: Path = typer.Argument(..., help="CSV or JSONL: patient_id, left, right, report."),
    output: Path = typer.Argument(..., help="Folder for train/ and, with --holdout, test/."),
    short_side: int = typer.Option(512, min=16, help="Pixels of the shorter side in a shard."),
    crop: bool = typer.Option(True, help="Crop to the field of view."),
    holdout: float = typer.Option(0.0, min=0.0, max=0.9, help="Fraction of patients for test/."),
    keep_columns: str = typer.Option("", help="Manifest columns to keep, separated by commas."),
    seed: int = typer.Option(0, min=0, help="Of the split."),
    max_reject_fraction: float = typer.Option(0.2, min=0.0, max=1.0, help="Of photographs."),
    workers: int = typer.Option(None, min=1, help="Processes; all cores by default."),
):
    """Decode, check, crop and pack a manifest's photographs into shards."""
    from dataload.shards import build_shards

    with _progress("packing patients") as advance:
        summary = build_shards(
            manifest,
            output,
            keep_columns=tuple(name.strip() for name in keep_columns.split(",") if name.strip()),
            short_side=short_side,
            crop=crop,
            holdout=holdout,
            seed=seed,
            max_reject_fraction=max_reject_fraction,
            workers=workers,
            progress=advance,
        )
    _say(summary)


@tokenizer_app.command("train")
def tokenizer_train(
    shards: Path = typer.Argument(..., help="Shard set whose reports to learn from."),
    output: Path = typer.Argument(..., help="File to write, ending in .model."),
    vocabulary_size: int = typer.Option(8000, min=300, help="At most this many pieces."),
):
    """Train a SentencePiece tokenizer on a shard set's reports."""
    from dataload.reports import SentencePieceTokenizer
    from dataload.shards import ShardReader

    if output.suffix != ".model":
        raise ValueError(f"{output}: name a file that ends in .model")
    reports = ShardReader(shards).reports()
    tokenizer = SentencePieceTokenizer.train(reports, output, vocabulary_size=vocabulary_size)
    print(f"{tokenizer.vocabulary_size} pieces from {len(reports)} reports in {output}")


@app.command()
def evaluate(
    run: Path = typer.Argument(..., help="Folder of a training run."),
    data: Path = typer.Option(..., help="Shard set of held-out patients."),
    output: Path = typer.Option(None, help="Folder for metrics.json and report.html; the run's."),
    title: str = typer.Option("RET-CLIP", help="Headline of the page."),
    synthetic: bool = typer.Option(False, help="Say on the page that the patients are rendered."),
):
    """Report retrieval, zero-shot and losses on held-out patients, in numbers and as a page."""
    from engine.results import evaluate_run

    evaluate_run(run, data, output or run, title=title, console=Console(), synthetic=synthetic)


@app.command()
def demo(
    manifest: Path = typer.Option(None, help="Your own patients instead of a rendered cohort."),
    output: Path = typer.Option(Path("runs/demo"), help="Folder for everything."),
    config: Path = typer.Option(Path("configs/demo.yaml"), help="Recipe to train."),
    patients: int = typer.Option(2400, min=20, help="Size of the rendered cohort."),
    override: list[str] = typer.Option([], "--set", help="Recipe keys, as training.steps=50."),
):
    """From photographs to a page of results: synth, shards, tokenizer, train, evaluate."""
    from engine.demo import run_demo

    return run_demo(
        output=output, manifest=manifest, config=config, patients=patients, overrides=override
    )


def _say(summary):
    """Print what a build left, and the first photographs and rows that it could not use."""
    from dataload.rejects import read_rejects

    held_out = f" and {summary.test_patients} in {summary.test}" if summary.test else ""
    again = "already built: " if summary.reused else ""
    print(
        f"{again}{summary.train_patients} patients in {summary.train}{held_out}; "
        f"{summary.photographs} photographs, {summary.distinct_reports} distinct reports"
    )
    if summary.encoding == "gb18030":
        print("the manifest is not UTF-8 and was read as GB18030: are its reports Chinese?")
    if summary.rejects:
        rejects = read_rejects(summary.rejects_file)
        print(f"{summary.rejects} rejected, all in {summary.rejects_file}:")
        for reject in rejects[:_SHOWN_REJECTS]:
            print(f"  row {reject['row']}: {reject['reason']}")


class _progress:
    """A progress bar as a callback `advance(done, total)`; a line per tenth without a terminal."""

    def __init__(self, name):
        self.name = name
        self.bar = Progress(console=Console(stderr=True)) if sys.stderr.isatty() else None
        self.tenths = 0

    def __enter__(self):
        if self.bar:
            self.task = self.bar.add_task(self.name)
            self.bar.start()
        return self.advance

    def advance(self, done, total):
        """Show `done` of `total`."""
        if self.bar:
            self.bar.update(self.task, completed=done, total=total)
        elif total and done * 10 // total > self.tenths:
            self.tenths = done * 10 // total
            print(f"{self.name}: {done} of {total}", file=sys.stderr, flush=True)

    def __exit__(self, *exception):
        if self.bar:
            self.bar.stop()


def main(argv=None):
    """Entry point; returns the exit status."""
    return run_command(app, argv)


if __name__ == "__main__":
    sys.exit(main())
