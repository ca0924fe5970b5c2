"""`retclip eval` and `retclip predict`: how good a model is on labelled photographs, and its use.

SOURCE is a shard set's folder or a manifest; MODEL a run's folder or one of imported weights. What
an evaluation writes is in engine/assessment_files.py.
"""

from pathlib import Path

import typer
from rich.console import Console

from engine.commands import load_model

app = typer.Typer(no_args_is_help=True, help="Measure a model on labelled photographs.")

SOURCE = typer.Argument(..., help="Shard set's folder, or a manifest (CSV, JSONL).")
MODEL = typer.Option(..., help="Folder of a run or of imported weights.")
LABELS = typer.Option(
    ..., help="Column of class names; or columns of 0 and 1, with commas; X for left_X, right_X."
)
OUT = typer.Option(..., help="Folder for metrics.json, report.html and more.")
LEVEL = typer.Option("auto", help="auto, photograph, eye or patient.")
CLASSES = typer.Option(None, help="Classes in their order, with commas; else those that occur.")
ORDERED = typer.Option(False, help="The classes are grades: measure kappa.")
SPLIT = typer.Option("split", help="Column of train, validation or test.")
SEED = typer.Option(0, min=0, help="Of splits, draws and intervals.")
WORK = typer.Option(None, help="Folder to keep prepared photographs in; else a temporary one.")


@app.command()
def probe(
    source: Path = SOURCE,
    model: Path = MODEL,
    labels: str = LABELS,
    out: Path = OUT,
    level: str = LEVEL,
    classes: str = CLASSES,
    ordered: bool = ORDERED,
    split_column: str = SPLIT,
    seed: int = SEED,
    work: Path = WORK,
):
    """Train a linear layer on frozen features, measure it, and save it for `predict`."""
    from engine.classification import assess_probe

    choice = _choice(labels, level, classes, ordered, split_column, seed, work)
    trained, device = load_model(model)
    assessment = assess_probe(trained, source, choice, device=device)
    _write(assessment, out, trained, model, source, seed)


@app.command()
def fewshot(
    source: Path = SOURCE,
    model: Path = MODEL,
    labels: str = LABELS,
    out: Path = OUT,
    shots: str = typer.Option("1,5,10", help="Samples a class, with commas."),
    seeds: int = typer.Option(5, min=1, help="Draws of the samples."),
    level: str = LEVEL,
    classes: str = CLASSES,
    ordered: bool = ORDERED,
    split_column: str = SPLIT,
    seed: int = SEED,
    work: Path = WORK,
):
    """Train linear layers on k samples of each class: mean and spread over draws."""
    from engine.classification import assess_few_shot

    choice = _choice(labels, level, classes, ordered, split_column, seed, work)
    numbers = _numbers("shots", shots)
    trained, device = load_model(model)
    assessment = assess_few_shot(trained, source, choice, shots=numbers, seeds=seeds, device=device)
    _write(assessment, out, trained, model, source, seed)


@app.command()
def finetune(
    source: Path = SOURCE,
    model: Path = MODEL,
    labels: str = LABELS,
    out: Path = OUT,
    epochs: int = typer.Option(50, help="At most."),
    patience: int = typer.Option(10, help="Epochs without a better validation before it stops."),
    batch_size: int = typer.Option(16, help="Samples a step."),
    backbone_lr: float = typer.Option(2e-6, help="Learning rate of the image encoder."),
    head_lr: float = typer.Option(1e-3, help="Learning rate of the layer on top."),
    layer_decay: float = typer.Option(1.0, help="Factor on the rate from block to block below."),
    mixup: float = typer.Option(0.0, help="Of its Beta distribution, as 0.2; 0: none."),
    label_smoothing: float = typer.Option(0.0, help="As 0.1."),
    rotation: float = typer.Option(0.0, help="At most, in degrees, as 30."),
    seeds: int = typer.Option(1, min=1, help="Runs, whose mean and spread are reported."),
    official_protocol: bool = typer.Option(
        False, help="Also the official code's: softmax twice, best epoch on test; optimistic."
    ),
    level: str = LEVEL,
    classes: str = CLASSES,
    ordered: bool = ORDERED,
    split_column: str = SPLIT,
    seed: int = SEED,
    work: Path = WORK,
):
    """Train the image encoder with a linear layer on top, measure both, save them for `predict`."""
    from engine.finetune import FineTuning
    from engine.finetune_assessment import assess_finetune

    choice = _choice(labels, level, classes, ordered, split_column, seed, work)
    settings = FineTuning(
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        backbone_lr=backbone_lr,
        head_lr=head_lr,
        layer_decay=layer_decay,
        mixup=mixup,
        label_smoothing=label_smoothing,
        rotation=rotation,
        official=official_protocol,
    )
    trained, device = load_model(model)
    assessment = assess_finetune(trained, source, choice, settings, seeds=seeds, device=device)
    _write(assessment, out, trained, model, source, seed)


@app.command()
def zeroshot(
    source: Path = SOURCE,
    model: Path = MODEL,
    labels: str = LABELS,
    out: Path = OUT,
    prompts: Path = typer.Option(None, help="YAML of prompts by class; else the model's own."),
    level: str = LEVEL,
    classes: str = CLASSES,
    ordered: bool = ORDERED,
    split_column: str = SPLIT,
    seed: int = SEED,
    work: Path = WORK,
):
    """Compare photographs with prompts, each through the head of its eye; nothing is trained."""
    from engine.classification import assess_zero_shot
    from engine.pretrained import PROMPTS

    choice = _choice(labels, level, classes, ordered, split_column, seed, work)
    trained, device = load_model(model)
    path = prompts or model / PROMPTS
    assessment = assess_zero_shot(trained, source, choice, path, own=prompts is None, device=device)
    _write(assessment, out, trained, model, source, seed, prompts=path.name)


@app.command()
def retrieval(
    source: Path = SOURCE,
    model: Path = MODEL,
    out: Path = OUT,
    work: Path = WORK,
):
    """Find reports by photographs and photographs by reports: recall@k of each level."""
    from engine.level_retrieval import measure_retrieval
    from engine.patients import open_patients
    from engine.retrieval_files import write_retrieval

    trained, device = load_model(model)
    with open_patients(source, work=work, preparation=trained.preparation) as reader:
        found = measure_retrieval(trained, reader, device=device)
    write_retrieval(found, out, Console(), facts=_facts(trained, model, source))


@app.command()
def suite(
    folder: Path = typer.Argument(..., help="Folder with prepared sets in folders of their own."),
    model: Path = MODEL,
    out: Path = typer.Option(..., help="Folder for suite.json, suite.html, and each set's own."),
    methods: str = typer.Option("probe", help="probe, finetune or both, with a comma."),
    seeds: int = typer.Option(1, min=1, help="Runs of fine-tuning."),
    official_protocol: bool = typer.Option(False, help="As of eval finetune; optimistic."),
    seed: int = SEED,
    work: Path = WORK,
):
    """Evaluate on every prepared set, with published figures that could be sourced beside."""
    from engine.finetune import FineTuning
    from engine.suite import METHODS, SuitePlan, run_suite

    wanted = tuple(dict.fromkeys(_words(methods)))
    if not wanted or not set(wanted) <= set(METHODS):
        raise typer.BadParameter(f"methods is {methods!r}: give {' or '.join(METHODS)}, or both")
    trained, device = load_model(model)
    plan = SuitePlan(
        methods=wanted,
        settings=FineTuning(official=official_protocol),
        seeds=seeds,
        seed=seed,
        work=work,
    )
    facts = _facts(trained, model, folder)
    run_suite(trained, folder, out, plan, facts=facts, console=Console(), device=device)


def predict(
    manifest: Path = typer.Option(..., help="Manifest, shard set or folder of photographs."),
    classifier: Path = typer.Option(..., help="Folder that eval probe or finetune wrote."),
    model: Path = MODEL,
    out: Path = typer.Option(..., help="CSV table of probabilities to write."),
    work: Path = WORK,
):
    """Apply a saved classifier to photographs without labels."""
    from engine import predict as prediction
    from engine.classifier import load_classifier

    kept = load_classifier(classifier)
    trained, device = load_model(model)
    samples, probabilities, failed = prediction.predict(
        trained, kept, manifest, device=device, work=work
    )
    prediction.write_predictions(out, samples, kept.classes, kept.multi_label, probabilities)
    print(f"{len(samples)} samples, one for each {kept.level}, in {out}")
    if failed:
        print(f"{len(failed)} photographs cannot be decoded and are left out, the first:")
        print(f"  {failed[0]}")


def _choice(labels, level, classes, ordered, split_column, seed, work):
    from engine.labelled import LabelChoice

    names = None if classes is None else tuple(_words(classes))
    return LabelChoice(
        labels=tuple(_words(labels)),
        level=level,
        classes=names,
        ordered=ordered,
        split_column=split_column,
        seed=seed,
        work=work,
    )


def _words(text):
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name, text):
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise typer.BadParameter(f"{name} is {text!r}: give whole numbers from 1, as 1,5,10")
    return tuple(int(word) for word in words)


def _facts(trained, model, source):
    from engine.classifier import fingerprint
    from engine.results import machine

    return {
        "model": Path(model).resolve().name,
        "model_fingerprint": fingerprint(trained.model),
        "step": trained.step,
        "source": Path(source).name,
        "machine": machine(),
    }


def _write(assessment, out, trained, model, source, seed, **more):
    from engine.assessment_files import write_assessment

    facts = _facts(trained, model, source) | {"seed": seed} | more
    name = source.parent.name if source.name.startswith("manifest.") else source.stem
    write_assessment(assessment, out, Console(), title=name, facts=facts)
