"""A model's folder with random weights, for tests of what is done with models."""

import yaml
from safetensors.torch import save_file
from tiny_cohort import tiny_report
from tiny_mixed import RECIPE, tiny_model

from dataload.photographs import Preparation
from dataload.reports import SentencePieceTokenizer
from engine.config import save_config
from engine.pretrained import save_preprocessing

PREPARATION = Preparation(short_side=64)


def write_tiny_trained(folder, seed=0, name="tiny"):
    """Write a model's folder, with a tokenizer of the tiny cohort's reports; return it."""
    folder.mkdir(parents=True)
    reports = [tiny_report(number) for number in range(40)]
    tokenizer = SentencePieceTokenizer.train(
        reports, folder / "tokenizer.model", vocabulary_size=400
    )
    model, config = tiny_model(tokenizer.vocabulary_size, seed, data=RECIPE["data"])
    save_file(model.state_dict(), folder / "model.safetensors")
    save_config(config, folder / "config.yaml")
    save_preprocessing(folder, name, PREPARATION)
    prompts = {"normal": ["{eye}: no abnormality."], "glaucoma": ["Suspect glaucoma in {eye}."]}
    (folder / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    return folder
