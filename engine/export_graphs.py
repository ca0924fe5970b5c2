"""Both towers as graphs, ONNX or torch.export's, for any batch and any length of reports."""

import contextlib
import importlib
import json
import logging
import warnings
from dataclasses import asdict, dataclass

import torch

from engine.export_check import ExportError, largest_difference
from engine.export_towers import (
    ImageTower,
    TextTower,
    example_images,
    example_tokens,
    plain_copy,
)
from engine.model import LEVELS

NAMES = ("image", "text")
INTERFACE = "interface.json"
EXAMPLE_LENGTH = 16
# ONNX files hold at most 2 GB; above this, weights lie in a file beside them
LARGEST_ONNX = 3 << 29


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graph:
    """One tower to trace: example inputs, which of their sizes may change, and its output."""

    name: str
    tower: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    shapes: dict[str, dict]


def _graphs(model):
    config = model.config
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=config.text.max_positions)
    sizes = {"left": {0: batch}, "right": {0: batch}, "present": {1: batch}}
    tokens = example_tokens(config, min(EXAMPLE_LENGTH, config.text.max_positions))
    return (
        _Graph(name="image", tower=ImageTower(model), example=example_images(config), shapes=sizes),
        _Graph(
            name="text",
            tower=TextTower(model),
            example=(tokens,),
            shapes={"tokens": {0: batch, 1: length}},
        ),
    )


def _trace(graph):
    with torch.no_grad(), _quiet():
        return torch.export.export(graph.tower, graph.example, dynamic_shapes=graph.shapes)


@contextlib.contextmanager
def _quiet():
    """Keep the exporters' remarks on their own parts from a user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_onnx(trained, folder):
    """Write image.onnx, text.onnx and interface.json; return the largest difference."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _require(package)
    model = plain_copy(trained.model)
    for graph in _graphs(model):
        program = _trace(graph)
        with _quiet():
            written = torch.onnx.export(
                program,
                graph.example,
                dynamo=True,
                verbose=False,
                output_names=[graph.name],
                dynamic_shapes=graph.shapes,
            )
        weights = sum(value.nbytes for value in graph.tower.state_dict().values())
        written.save(folder / f"{graph.name}.onnx", external_data=weights > LARGEST_ONNX)
    difference = largest_difference(model, _onnx_runner(folder))
    _write_interface(trained, folder, ".onnx")
    return difference


def _onnx_runner(folder):
    import onnxruntime

    # Microsoft's builds for Windows report their use otherwise
    onnxruntime.disable_telemetry_events()
    sessions = {
        name: onnxruntime.InferenceSession(
            folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
        )
        for name in NAMES
    }

    def run(name, inputs):
        names = [each.name for each in sessions[name].get_inputs()]
        values = {key: value.numpy() for key, value in zip(names, inputs, strict=True)}
        return sessions[name].run(None, values)[0]

    return run


def _require(package):
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ExportError(
            f'this format needs {error.name}: pip install "retclip-engine[export]"'
        ) from None


def write_torch_export(trained, folder):
    """Write image.pt2, text.pt2 and interface.json; return the largest difference."""
    model = plain_copy(trained.model)
    for graph in _graphs(model):
        torch.export.save(_trace(graph), folder / f"{graph.name}.pt2")
    loaded = {name: torch.export.load(folder / f"{name}.pt2").module() for name in NAMES}

    def run(name, inputs):
        with torch.no_grad():
            return loaded[name](*inputs)

    difference = largest_difference(model, run)
    _write_interface(trained, folder, ".pt2")
    return difference


def _write_interface(trained, folder, suffix):
    """Write interface.json: what a program must know to use the two graphs."""
    model, data = trained.config.model, trained.config.data
    side = ["batch", 3, model.image_size, model.image_size]
    values = {
        "levels": list(LEVELS),
        "logit_scale": trained.model.logit_scale.detach().float().exp().tolist(),
        "image": {
            "file": f"image{suffix}",
            "left": {"shape": side, "type": "float32"},
            "right": {"shape": side, "type": "float32"},
            "present": {"shape": [2, "batch"], "type": "bool"},
            "output": {"shape": [3, "batch", model.embed_dim], "type": "float32"},
            "mean": list(data.mean),
            "std": list(data.std),
            "interpolation": data.interpolation,
            "preparation": asdict(trained.preparation),
        },
        "text": {
            "file": f"text{suffix}",
            "tokens": {"shape": ["batch", "length"], "type": "int64"},
            "output": {"shape": [3, "batch", model.embed_dim], "type": "float32"},
            "tokenizer": f"tokenizer{trained.tokenizer.path.suffix}",
            "context_length": data.context_length,
            "longest": model.text.max_positions,
            "padding": 0,
        },
    }
    text = json.dumps(values, indent=1)
    (folder / INTERFACE).write_text(text + "\n", encoding="utf-8")
