"""A cohort to train on, and the run itself: `engine/train.py` in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

from bench.harness import BenchError
from dataload.reports import SentencePieceTokenizer
from dataload.shards import ShardReader, build_shards
from dataload.synthetic import make_cohort
from engine.world import free_port

_ROOT = Path(__file__).resolve().parents[1]
# what `retclip tokenizer train` takes
_VOCABULARY = 8000


class TrainingFailed(BenchError):
    """The run did not end well; the message holds its last words."""


def build_cohort(work, patients, short_side, **packing):
    """Render patients, pack shards and learn a tokenizer under `work`.

    Returns the training patients' shards and the tokenizer; `packing` goes to build_shards.
    """
    manifest = make_cohort(work / "cohort", patients=patients)
    build_shards(manifest, work / "shards", short_side=short_side, **packing)
    shards, tokenizer = work / "shards" / "train", work / "tokenizer.model"
    reports = ShardReader(shards).reports_by_patient()
    SentencePieceTokenizer.train(reports, tokenizer, vocabulary_size=_VOCABULARY)
    return shards, tokenizer


def launcher_of(kind, ranks=1):
    """Return the words before `engine/train.py`: deepspeed on one GPU or the CPU, or Python.

    kind: type of the device; ranks: of this machine, where DeepSpeed is missing by torchrun.
    """
    tools = Path(sys.executable).parent
    port = ["--master_port", str(free_port())]
    if (tools / "deepspeed").exists():
        count = ["--num_gpus", str(ranks)] if kind == "cuda" or ranks > 1 else []
        return [str(tools / "deepspeed"), *count, *port]
    if ranks > 1:
        return [str(tools / "torchrun"), "--nproc_per_node", str(ranks), *port]
    return [sys.executable]


def run_training(run, options, keys, ranks=1):
    """Train into the folder `run`; return it and the launcher's name. Raises TrainingFailed."""
    launcher = launcher_of(options.device, ranks)
    words = ["--config", options.config, "--data", options.shards, "--tokenizer", options.tokenizer]
    words += ["--output", run, *(f"--{pair}" for pair in (*options.set, *keys))]
    start_training(launcher, words)
    return run, Path(launcher[0]).name


def start_training(launcher, words):
    """Run engine/train.py with these words to its end; TrainingFailed where that is none."""
    paths = filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [*launcher, str(_ROOT / "engine" / "train.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise TrainingFailed(f"training ended with {done.returncode}: {last_words(done.stdout)}")


def last_words(text):
    """Return the line that says what went wrong: an error of ours, or the last one there is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    named = [line for line in lines if "Error:" in line]
    return (ours or named or lines or ["no word"])[-1][:500]
