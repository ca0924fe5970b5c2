"""The `retclip` command: cohorts, shards, tokenizers, evaluation and the demo.

Training is `deepspeed engine/train.py`; this command does everything before and after it.
"""

import sys
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console

from engine import (
    datasets_commands,
    doctor,
    eval_commands,
    export_commands,
    manifest_commands,
    shards_commands,
    use_commands,
)
from engine.commands import require_training, run_command
from engine.progress import ProgressLine

GALLERY = typer.Option(False, help="Show photographs and reports: the page contains patient data.")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train tokenizers.")


@app.callback()
def choose_device(
    device: Literal["auto", "cpu"] = typer.Option("auto", help="cpu: leave the GPUs alone."),
):
    """Pre-train RET-CLIP on two fundus photographs and one report per patient."""
    if device == "cpu":
        # torch, which most commands import only when they need it
        from engine.devices import hide_gpus

        hide_gpus()


app.add_typer(shards_commands.app, name="shards")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(manifest_commands.app, name="manifest")
app.add_typer(manifest_commands.import_app, name="import")
app.add_typer(datasets_commands.app, name="datasets")
app.command()(export_commands.export)
app.command("doctor")(doctor.doctor)
app.add_typer(eval_commands.app, name="eval")
app.command("predict")(eval_commands.predict)
app.command("embed")(use_commands.embed)
app.command("search")(use_commands.search)
app.command("classify")(use_commands.classify)
app.add_typer(use_commands.weights_app, name="weights")


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

    with ProgressLine("rendering photographs") as advance:
        manifest = make_cohort(
            folder,
            patients=patients,
            seed=seed,
            language=language,
            workers=workers,
            progress=advance,
        )
    print(f"{patients} patients in {manifest}")


@tokenizer_app.command("train")
def tokenizer_train(
    shards: Path = typer.Argument(..., help="Shard set whose reports to learn from."),
    output: Path = typer.Argument(..., help="File to write, ending in .model."),
    vocabulary_size: int = typer.Option(8000, min=300, help="At most this many pieces."),
    min_patients: int = typer.Option(
        20, min=1, help="Whose reports hold each piece of several characters, at least."
    ),
):
    """Train a SentencePiece tokenizer on a shard set's reports.

    Its vocabulary travels with the weights: digits stand alone, and what few patients' reports
    hold, a name for one, is no piece of it.
    """
    from dataload.reports import SentencePieceTokenizer
    from dataload.shards import ShardReader

    if output.suffix != ".model":
        raise ValueError(f"{output}: name a file that ends in .model")
    patients = ShardReader(shards).reports_by_patient()
    tokenizer = SentencePieceTokenizer.train(
        patients, output, vocabulary_size=vocabulary_size, min_patients=min_patients
    )
    count = sum(map(len, patients))
    print(f"{tokenizer.vocabulary_size} pieces from {count} reports in {output}")
    if len(patients) < min_patients:
        print(f"{len(patients)} patients are fewer than {min_patients}: its pieces are characters")


@app.command()
def evaluate(
    run: Path = typer.Argument(..., help="Folder of a training run."),
    data: Path = typer.Option(..., help="Shard set of held-out patients."),
    output: Path = typer.Option(None, help="Folder for metrics.json and report.html; the run's."),
    weights: Literal["newest", "average", "best"] = typer.Option(
        "newest", help="Of the newest checkpoint, their moving average, or best on validation."
    ),
    title: str = typer.Option("RET-CLIP", help="Headline of the page."),
    gallery: bool = GALLERY,
):
    """Report retrieval, zero-shot and losses on held-out patients, in numbers and as a page."""
    from engine.results import evaluate_run

    evaluate_run(
        run,
        data,
        output or run,
        title=title,
        console=Console(),
        weights=weights,
        gallery=gallery,
    )


@app.command()
def demo(
    manifest: Path = typer.Option(None, help="Your own patients instead of a rendered cohort."),
    output: Path = typer.Option(Path("runs/demo"), help="Folder for everything."),
    config: Path = typer.Option(Path("configs/demo.yaml"), help="Recipe to train."),
    patients: int = typer.Option(2400, min=20, help="Size of the rendered cohort."),
    override: list[str] = typer.Option([], "--set", help="Recipe keys, as training.steps=50."),
    gallery: bool = GALLERY,
    pseudonymise: Path = shards_commands.PSEUDONYMISE,
    redact: bool = shards_commands.REDACT,
    allow_identifiers: bool = shards_commands.ALLOW_IDENTIFIERS,
):
    """From photographs to a page of results: synth, shards, tokenizer, train, evaluate."""
    from engine.demo import run_demo
    from engine.devices import check_training_device

    # before a cohort is rendered for nothing
    require_training()
    check_training_device()
    shard_options = [] if pseudonymise is None else ["--pseudonymise", pseudonymise]
    shard_options += ["--redact"] if redact else []
    shard_options += ["--allow-identifiers"] if allow_identifiers else []
    return run_demo(
        output=output,
        manifest=manifest,
        config=config,
        patients=patients,
        overrides=override,
        gallery=gallery,
        shard_options=shard_options,
    )


def main(argv=None):
    """Entry point; returns the exit status."""
    return run_command(app, argv)


if __name__ == "__main__":
    sys.exit(main())
