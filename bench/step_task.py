"""What a training step is asked to do, the same for every implementation: recipe, weights, batches.

Synthetic batches lie on the device: normal noise for photographs, random tokens in reports of 16 to
64 tokens, 40 on average as clinical ones have, drawn from one seed. Shards come decoded through our
loader, for all implementations alike.

Legend: B patients, L the context length, S the side of an image.
"""

import contextlib
import dataclasses
import itertools
from pathlib import Path

import torch

from dataload.batch import Batch, pack_reports
from engine import optim
from engine.build import DTYPES
from engine.config import Config
from engine.loading import loader_settings
from engine.model import DualEncoder
from engine.weights import initialise
from engine.world import World, resolve_precision

SHORTEST, LONGEST = 16, 64
# of RoBERTa-wwm-ext, where no tokenizer says otherwise
VOCABULARY = 21128
# batches of synthetic reports that take turns
VARIANTS = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One case: a recipe with its batch size, vocabulary and constant rate settled, and a World.

    `runtime` is "deepspeed" or "stand-in"; `complete` says that every patient has both eyes.
    """

    config: Config
    world: World
    runtime: str
    complete: bool
    # checkout of the official code, if there is one
    retclip: Path | None = None
    quick: bool = False

    @property
    def device(self):
        """The torch device."""
        return self.world.device

    @property
    def patients(self):
        """B, the patients of a step."""
        return self.config.training.batch_size

    @property
    def dtype(self):
        """The dtype of products under the recipe's precision."""
        return DTYPES[resolve_precision(self.config.training.precision, self.device)]

    def autocast(self):
        """A context in which products have `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def first_weights(self):
        """Return the state dict that engine/build.py starts from."""
        torch.manual_seed(self.config.seed)
        model = DualEncoder(self.config.model)
        initialise(model, self.config.init)
        return model.state_dict()


def settled(config, batch_size, vocabulary=None):
    """Return a recipe with B = `batch_size`, a vocabulary, and warm-up's first rate throughout.

    The weights then stay as they are at the start, whoever trains them, and however long.
    """
    text = config.model.text
    size = vocabulary or text.vocabulary_size or VOCABULARY
    text = dataclasses.replace(text, vocabulary_size=size)
    rate = optim.learning_rate(0, config.optimizer, steps=1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, text=text),
        optimizer=dataclasses.replace(config.optimizer, lr=rate),
        training=dataclasses.replace(config.training, batch_size=batch_size),
    )


class SyntheticBatches:
    """An endless stream of made-up batches; `lengths` are the reports' of one of them."""

    # steps before a streak is timed
    lead = 1

    def __init__(self, config, device, seed=0):
        generator = torch.Generator().manual_seed(seed)
        patients, side = config.training.batch_size, config.model.image_size
        noise = torch.Generator(device).manual_seed(seed)
        shape = (2, patients, 3, side, side)
        eyes = torch.randn(shape, generator=noise, device=device)
        reports = [_reports(config, generator) for _ in range(VARIANTS)]
        self.lengths = reports[0][1].tolist()
        index = torch.arange(patients)
        present = torch.ones(2, patients, dtype=torch.bool)
        rest = {"present_eyes": present, "report_id": index + 1, "index": index}
        rest |= {"left": eyes[0], "right": eyes[1]}
        batches = [
            Batch(tokens=tokens, lengths=lengths, packed=pack_reports(tokens, lengths), **rest)
            for tokens, lengths in reports
        ]
        # the photographs are there already and are shared
        self._endless = itertools.cycle([batch.to(device) for batch in batches])

    def __next__(self):
        return next(self._endless)

    def close(self):
        """Nothing is open."""


def _reports(config, generator):
    """Tokens (B, L) int64, padded with 0, and lengths (B,) int64."""
    patients, longest = config.training.batch_size, config.data.context_length
    lengths = torch.randint(SHORTEST, LONGEST + 1, (patients,), generator=generator)
    lengths = lengths.clamp(max=longest)
    vocabulary = config.model.text.vocabulary_size
    tokens = torch.randint(1, vocabulary, (patients, longest), generator=generator)
    tokens[torch.arange(longest) >= lengths[:, None]] = 0
    return tokens, lengths


class ShardBatches:
    """An endless stream of whole batches decoded from shards; `lengths` are the first one's.

    ValueError where the shards have fewer patients than a batch.
    """

    # as many as the loader works ahead, so that a streak begins and ends in the same state
    lead = 3

    def __init__(self, config, device, shards, words):
        from dataload.loader import build_loader
        from dataload.shards import ShardReader

        reader, patients = ShardReader(shards), config.training.batch_size
        # the last batch of an epoch is filled up with absent patients
        whole = len(reader) // patients
        if not whole:
            raise ValueError(f"{shards} has {len(reader)} patients, fewer than a batch: {patients}")
        self._device = device
        self._loader = build_loader(
            reader,
            tokenizer=words,
            batch_size=patients,
            training=True,
            seed=config.seed,
            device=device,
            **loader_settings(config),
        )
        self._endless = itertools.chain.from_iterable(
            itertools.islice(self._loader.epoch(number), whole) for number in itertools.count()
        )
        self.lengths = next(self).lengths.tolist()

    def __next__(self):
        return next(self._endless).to(self._device)

    def close(self):
        """End the loader's threads."""
        self._endless = None
        self._loader.close()
