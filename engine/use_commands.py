"""`retclip embed`, `search`, `classify` and `weights`: a trained model put to use.

MODEL is a run's folder, or one that `retclip weights import` made.
"""

import json
import os
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.table import Table

from engine.commands import load_model
from engine.progress import ProgressLine

weights_app = typer.Typer(no_args_is_help=True, help="Published weights, in.")

MODEL = typer.Option(..., help="Folder of a run or of imported weights.")
Eye = Literal["auto", "left", "right", "unknown"]
EYE = typer.Option("auto", help="Of the photograph; auto reads it off a name like p1_left.jpg.")
_SHOWN_FAILURES = 3


@weights_app.command("import")
def import_weights(
    weights: Path = typer.Argument(..., help="RET-CLIP's checkpoint, ret-clip.pt."),
    vocab: Path = typer.Option(..., help="The vocab.txt that its text encoder was trained with."),
    to: Path = typer.Option(..., help="Folder to write; it needs nothing else to be used."),
    text_heads: int = typer.Option(None, min=1, help="Attention heads, where not 64 wide."),
):
    """Turn RET-CLIP's checkpoint into a model's folder; nothing in the file is executed."""
    from engine.weights_import import import_retclip

    folder = import_retclip(weights, vocab, to, text_heads=text_heads)
    print(f"model in {folder}: weights, vocabulary, preprocessing, prompts and a model card")


def embed(
    source: Path = typer.Argument(..., help="Shard set, manifest, folder of photographs, or one."),
    model: Path = MODEL,
    out: Path = typer.Option(..., help="File to write: .parquet, .npy or .safetensors."),
    level: Literal["patient", "examination", "photograph", "raw"] = typer.Option(
        "patient", help="What a row is; raw is a photograph before any head, not normalised."
    ),
    columns: str = typer.Option("", help="Manifest columns to take along, with commas."),
    work: Path = typer.Option(None, help="Folder to keep prepared photographs in, for a gallery."),
):
    """Write the features of all photographs to a file; a killed command goes on where it stood."""
    from dataclasses import replace

    from engine.embed import embed_source, remove_parts
    from engine.feature_files import check_name, write_features
    from engine.patients import open_patients

    check_name(out)
    trained, device = load_model(model)
    parts = out.with_name(out.name + ".parts")
    keep = tuple(name.strip() for name in columns.split(",") if name.strip())
    options = {"columns": keep, "preparation": trained.preparation}
    with open_patients(source, work=work or parts / "prepared", **options) as reader:
        if out.exists():
            # what was begun under this name is of no use, whichever features are there
            remove_parts(parts)
            _check_same(out, trained, reader, level)
            print(f"{out}: is there already, of the same model and photographs")
            return
        with ProgressLine("encoding photographs", unit="photographs") as advance:
            found = embed_source(
                trained, reader, parts, level=level, device=device, progress=advance
            )
        stays = reader.folder if work or reader.folder.resolve() == source.resolve() else None
        facts = found.table.facts | {"source": str(stays.resolve()) if stays else ""}
        files = write_features(out, replace(found.table, facts=facts))
    remove_parts(parts)
    _say_embedded(found, files)


def _check_same(out, trained, reader, level):
    """Raise FeatureFileError unless `out` holds these very features."""
    from engine.embed import facts_of
    from engine.feature_files import FeatureFileError, read_facts

    facts = read_facts(out)
    if any(facts.get(name) != value for name, value in facts_of(trained, reader, level).items()):
        raise FeatureFileError(
            f"{out}: holds features of another model, source, level or choice of columns; name "
            "another file or delete this one"
        )


def _say_embedded(found, files):
    if found.failed:
        print(f"{len(found.failed)} photographs could not be decoded and are left out:")
        for name in found.failed[:_SHOWN_FAILURES]:
            print(f"  {name}")
    rate = found.encoded / found.seconds if found.seconds else 0.0
    print(
        f"{len(found.table)} rows of {found.table.features.shape[1]} features from "
        f"{found.photographs} photographs, {found.encoded} encoded now "
        f"({rate:,.1f} photographs/s), in {', '.join(map(str, files))}"
    )


def search(
    query: str = typer.Argument(..., help="A text, or a photograph's file."),
    index: Path = typer.Option(..., help="File that retclip embed wrote."),
    model: Path = MODEL,
    top: int = typer.Option(10, min=1, help="How many patients."),
    eye: Eye = EYE,
    page: Path = typer.Option(None, help="Write an HTML page: cosines and rows of the index."),
    gallery: bool = typer.Option(
        False, help="With thumbnails and patients' numbers: the page contains patient data."
    ),
    source: Path = typer.Option(None, help="Shard set of the thumbnails, if it has moved."),
):
    """Find the patients nearest to a text or a photograph."""
    from engine import search as searching
    from engine.api import RetClip
    from engine.feature_files import read_features

    if gallery and page is None:
        raise searching.SearchError("--gallery: needs --page, the file to write thumbnails to")
    table = read_features(index)
    retclip = RetClip(*load_model(model))
    searching.check_index(table, retclip.trained, index)
    is_photograph = _is_photograph(query)
    if is_photograph:
        found = retclip.embed_images(**{_eye_of(query, eye): query})
        features, present = found.features[:, 0], found.present[:, 0].tolist()
    else:
        features, present = retclip.embed_text(query)[:, 0], [True] * 3
    hits = searching.nearest(table, features, present, top)
    Console().print(_hits_table(hits))
    if page is not None:
        images = _thumbnails(table, hits, source) if gallery else None
        # a photograph's name may be a patient's
        shown = "a photograph" if is_photograph and not gallery else query
        searching.write_search_page(page, shown, hits, images)
        what = "contains patient data" if gallery else "rows of the index, no patient data"
        print(f"{page}: {what}")


def _thumbnails(table, hits, source):
    from dataload.shards import ShardReader
    from engine.search import SearchError, thumbnails

    folder = source or table.facts.get("source")
    if not folder:
        raise SearchError(
            "the photographs that were embedded were not kept; embed with --work DIR, or name "
            "their shard set with --source"
        )
    return thumbnails(table, hits, ShardReader(Path(folder)))


def _is_photograph(query):
    from dataload.importers_folder import SUFFIXES

    # os.path: a long text is no file, where Path raises
    return Path(query).suffix.lower() in SUFFIXES or os.path.isfile(query)


def _eye_of(path, eye):
    """Return left, right or unknown: what was said, or what the file's name says."""
    from dataload.importers_folder import read_name
    from dataload.manifest_rows import RowError

    if eye != "auto":
        return eye
    try:
        return read_name(Path(path).stem)[1]
    except RowError:
        return "unknown"


def _hits_table(hits):
    table = Table(title="Nearest patients", title_justify="left")
    for heading, justify in (("", "right"), ("Cosine", "right"), ("Patient", "left")):
        table.add_column(heading, justify=justify, overflow="fold")
    for heading in ("Examination", "Eyes", "Head"):
        table.add_column(heading, overflow="fold")
    for hit in hits:
        figures = str(hit.place), f"{hit.similarity:.3f}"
        table.add_row(*figures, hit.patient_id, hit.exam_id or "-", hit.eyes, hit.route)
    return table


def classify(
    photograph: Path = typer.Argument(None, help="A photograph's file, of the eye --eye."),
    model: Path = MODEL,
    left: Path = typer.Option(None, help="The left eye's photograph, instead."),
    right: Path = typer.Option(None, help="The right eye's photograph, instead."),
    eye: Eye = EYE,
    prompts: Path = typer.Option(None, help="YAML, prompts by class; else the model's own."),
    prompt: list[str] = typer.Option([], help="A class of its own; give two or more."),
    classes: str = typer.Option("", help="Of the file's classes these alone, with commas."),
    language: Literal["all", "zh", "en"] = typer.Option("all", help="Of the file's prompts."),
    multi_label: bool = typer.Option(False, help="Each class yes or no, not one among all."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
):
    """Compare a photograph, or both eyes, with prompts: the probability of each class."""
    from engine.api import RetClip

    eyes = _eyes(photograph, left, right, eye)
    retclip = RetClip(*load_model(model))
    texts = _prompts(prompts, prompt, classes, language, model)
    found = retclip.zero_shot(**eyes, prompts=texts, multi_label=multi_label)
    values = dict(zip(found.classes, found.probabilities[0].tolist(), strict=True))
    if as_json:
        print(json.dumps({"head": found.route[0], "classes": values}, ensure_ascii=False))
        return
    table = Table(title=f"Through the {found.route[0]} head", title_justify="left")
    table.add_column("Class", overflow="fold")
    table.add_column("Probability", justify="right")
    for name, value in sorted(values.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


def _eyes(photograph, left, right, eye):
    pair = {"left": left, "right": right}
    given = {name: path for name, path in pair.items() if path is not None}
    if (photograph is None) == (not given):
        raise typer.BadParameter("give one photograph, or --left and --right (or one of them)")
    if given and eye != "auto":
        raise typer.BadParameter("--eye is of a single photograph; --left and --right say it")
    return given or {_eye_of(photograph, eye): photograph}


def _prompts(path, prompt, classes, language, model):
    """Return {class: {side: prompts}} of a file, of the model's own, or of the prompts given."""
    from engine.pretrained import PROMPTS
    from engine.prompt_classes import PromptError, read_prompts

    if prompt:
        if path is not None or classes:
            raise typer.BadParameter("give --prompt, or --prompts with --classes")
        return {text: {"positive": (text,)} for text in prompt}
    path = path or model / PROMPTS
    if not path.is_file() and path == model / PROMPTS:
        raise PromptError(f"{model}: has no {PROMPTS}; give --prompts FILE or --prompt TEXT twice")
    by_name = {one.name: one for one in read_prompts(path)}
    wanted = [name.strip() for name in classes.split(",") if name.strip()] or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        known = ", ".join(by_name)
        raise PromptError(f"{path}: has no class {unknown[0]!r}; its classes are {known}")
    return {name: _in_language(by_name[name], language, path) for name in wanted}


def _in_language(one, language, path):
    """Return {side: prompts} of a class, those of one language; PromptError where none is left."""
    from engine.prompt_classes import PromptError
    from engine.zeroshot import is_chinese

    sides = {"positive": one.positive, "negative": one.negative}
    if language == "all":
        return sides
    chosen = {
        side: tuple(text for text in texts if is_chinese(text) == (language == "zh"))
        for side, texts in sides.items()
    }
    if not chosen["positive"]:
        raise PromptError(f"{path}: class {one.name!r} has no prompt in language {language}")
    return chosen
