"""RET-CLIP's published weights as a folder that needs nothing else to be used.

The checkpoint is read as tensors alone, so that nothing in it is executed, and written as
safetensors under this engine's names, beside its vocabulary, a recipe with its sizes, how the
authors prepared photographs, and prompts to begin with. The folder appears when it is whole.

    retclip weights import ret-clip.pt --vocab vocab.txt --to models/ret-clip
"""

import hashlib
import os
import shutil
from pathlib import Path

import yaml

from dataload.photographs import Preparation
from dataload.reports import WordPieceTokenizer
from engine.checkpoint import WEIGHTS
from engine.config import Config, DataConfig, TrainingConfig, save_config
from engine.pretrained import PROMPTS, save_preprocessing
from engine.run_folder import CONFIG
from engine.starter_prompts import STARTER_PROMPTS, STARTER_PROMPTS_HEADER
from engine.tensor_file import layout_of, write_tensors
from engine.weight_names import WeightsError
from engine.weights import load_retclip, read_state, unwrap

# the authors squash whole frames to a square: no crop, no padding
PREPROCESSING_NAME = "retclip-2024"
PREPARATION = Preparation(crop=False, short_side=512)
CONTEXT_LENGTH = 100
# where BERT's published vocabularies, Chinese and English, have their special tokens
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
WORDS = "bert.embeddings.word_embeddings.weight"
CARD = """# RET-CLIP weights, imported

Imported from `{source}` ({parameters:,} parameters, SHA-256 `{digest}`), a checkpoint in the
layout of the official RET-CLIP code (arXiv:2405.14137, github.com/sStonemason/RET-CLIP). The
values are those of the file; names and container are this engine's.

**Licence: none came with the weights.** Their repository names none either. Ask the authors before
you use them for more than looking, or pass them on.

- Image encoder: {image_size} px, patches of {patch} px, {vision_layers} layers, width {width}.
- Text encoder: {text_layers} layers, width {text_width}, vocabulary of {vocabulary:,} entries in
  `tokenizer.txt`, {context} tokens at most.
- Shared space: {dim} dimensions; heads for the left eye, the right eye and the patient.
- Photographs (`{preprocessing}`): the whole frame, uncropped, squashed to {image_size} x
  {image_size} px (bicubic), mean and deviation of OpenAI's CLIP.
- A left photograph goes through the left head and is compared with prompts about the left eye, a
  right one through the right head; two eyes, and one photograph of an unknown eye (taken twice),
  go through the patient head.
- `prompts.yaml` holds prompts to begin with. They are this engine's wording, not the authors'.

Not a medical device. Scores are similarities, not findings.
"""


def import_retclip(weights, vocabulary, output, *, text_heads=None) -> Path:
    """Write a model's folder `output` of a RET-CLIP checkpoint and its vocab.txt; return it.

    text_heads: attention heads of the text encoder, where they are not 64 wide. Raises WeightsError
    where the checkpoint or the vocabulary does not fit, or `output` holds something; one line.
    """
    weights, output = Path(weights), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise WeightsError(f"{output}: is there already; name another folder or delete it")
    state = read_state(weights)
    official = unwrap(state)
    if WORDS not in official:
        raise WeightsError(
            f"{weights}: has no {WORDS}; a RET-CLIP checkpoint in the official layout is needed"
        )
    tokenizer = _check_vocabulary(vocabulary, len(official[WORDS]))
    try:
        model = load_retclip(state, text_heads=text_heads)
    # sizes that no model can have fail the recipe's own checks
    except ValueError as error:
        raise WeightsError(f"{weights}: {' '.join(str(error).split())}") from None
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write(part, weights, model, tokenizer)
    if output.exists():
        output.rmdir()
    os.replace(part, output)
    return output


def _write(folder, weights, model, tokenizer):
    length = min(CONTEXT_LENGTH, model.config.text.max_positions)
    config = Config(
        model=model.config,
        data=DataConfig(context_length=length, one_eye="duplicate"),
        training=TrainingConfig(epochs=10),
    )
    tensors = model.state_dict()
    layout = layout_of(tensors)
    with (folder / WEIGHTS).open("wb") as file:
        write_tensors(file.write, layout, (tensors[name] for name in layout))
    shutil.copyfile(tokenizer.path, folder / "tokenizer.txt")
    save_config(config, folder / CONFIG)
    save_preprocessing(folder, PREPROCESSING_NAME, PREPARATION)
    _write_prompts(folder / PROMPTS)
    (folder / "README.md").write_text(_card(weights, config, tensors), encoding="utf-8")


def _check_vocabulary(path, size):
    try:
        tokenizer = WordPieceTokenizer(path)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if tokenizer.vocabulary_size != size:
        raise WeightsError(
            f"{path}: has {tokenizer.vocabulary_size} entries, the weights' text encoder has "
            f"{size}: give the vocab.txt that it was trained with"
        )
    for token, number in SPECIAL_TOKENS.items():
        if tokenizer.token_id(token) != number:
            raise WeightsError(
                f"{path}: has {token} as entry {tokenizer.token_id(token)}, BERT's vocabularies "
                f"have it as {number}: give the vocab.txt that the weights were trained with"
            )
    return tokenizer


def _write_prompts(path):
    text = yaml.safe_dump(STARTER_PROMPTS, allow_unicode=True, sort_keys=False, width=100)
    path.write_text(STARTER_PROMPTS_HEADER + text, encoding="utf-8")


def _card(weights, config, tensors):
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    model = config.model
    return CARD.format(
        source=weights.name,
        digest=digest,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        image_size=model.image_size,
        patch=model.vision.patch_size,
        vision_layers=model.vision.layers,
        width=model.vision.width,
        text_layers=model.text.layers,
        text_width=model.text.width,
        vocabulary=model.text.vocabulary_size,
        context=config.data.context_length,
        dim=model.embed_dim,
        preprocessing=PREPROCESSING_NAME,
    )
