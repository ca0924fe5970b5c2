"""A trained model for use elsewhere: ONNX, torch.export, safetensors, RET-CLIP's own layout.

    retclip export RUN --to DIR --format onnx

onnx, torch-export   DIR/image.*, DIR/text.*: both towers, any batch, any report length
                     DIR/interface.json: inputs, outputs, what photographs and reports must be
safetensors          DIR/model.safetensors, config.json, README.md: Hugging Face's layout with a
                     model card; `load_pretrained` reads it too
official             DIR/ret-clip.pt: the layout that RET-CLIP's own code loads

What was written is loaded again and compared with the model; what differs is not kept. The folder
appears when it is whole.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataload.owner_only import owner_only
from engine.export_check import ExportError
from engine.export_folders import write_official, write_safetensors
from engine.export_graphs import write_onnx, write_torch_export


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written: the folder, its files' names, and the largest difference that was found.

    `difference` is that of the entries of unit features, None where a format holds the tensors
    themselves, which were compared bit by bit. `notes` say what its user must know.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float | None
    notes: tuple[str, ...] = ()


@owner_only()
def export_model(trained, to, form):
    """Write a TrainedModel under the new folder `to` in one of FORMATS; return Exported.

    Raises ExportError where the folder holds something, a package is missing, the layout has no
    place for this model, or what was written does not compute the same.
    """
    to = Path(to)
    if form not in FORMATS:
        raise ExportError(f"no format is named {form!r}; there are {', '.join(FORMATS)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"{to}: is there already; name another folder or delete it")
    part = to.with_name(to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _copy_tokenizer(trained, part)
        difference, notes = FORMATS[form](trained, part)
    except BaseException:
        shutil.rmtree(part)
        raise
    if to.exists():
        to.rmdir()
    os.replace(part, to)
    files = tuple(sorted(path.name for path in to.iterdir()))
    return Exported(folder=to, files=files, difference=difference, notes=notes)


def _copy_tokenizer(trained, folder):
    shutil.copyfile(trained.tokenizer.path, folder / f"tokenizer{trained.tokenizer.path.suffix}")


# each writes into a folder and returns (largest difference or None, notes)
FORMATS: dict[str, Callable] = {
    "onnx": lambda trained, folder: (write_onnx(trained, folder), ()),
    "torch-export": lambda trained, folder: (write_torch_export(trained, folder), ()),
    "safetensors": lambda trained, folder: (None, write_safetensors(trained, folder)),
    "official": lambda trained, folder: (None, write_official(trained, folder)),
}
