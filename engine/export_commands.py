"""`retclip export`: a trained model as ONNX, torch.export, safetensors or RET-CLIP's own layout."""

from pathlib import Path
from typing import Literal

import typer


def export(
    model: Path = typer.Argument(..., help="Folder of a training run or of imported weights."),
    to: Path = typer.Option(..., help="New folder for the exported model."),
    form: Literal["onnx", "torch-export", "safetensors", "official"] = typer.Option(
        ..., "--format", help="onnx and torch-export: two graphs; the others: weights."
    ),
):
    """Write a model for use elsewhere, and check that it computes the same."""
    from engine.export import export_model
    from engine.pretrained import load_pretrained

    exported = export_model(load_pretrained(model), to, form)
    how = (
        "equal bit by bit"
        if exported.difference is None
        else f"largest difference from the model {exported.difference:.1e}"
    )
    print(f"{', '.join(exported.files)} in {exported.folder}; {how}")
    for note in exported.notes:
        print(f"note: {note}")
