"""YAML as plain values: whatever is wrong with a text is one kind of error.

PyYAML lets the errors of numbers, dates and deep nesting through as they come, and its merge key
(`<<`) can make a few lines into more pairs than any memory holds.
"""

import reprlib

import yaml

# pairs of one mapping: no recipe and no file of prompts comes near
MOST_PAIRS = 10_000


class _Loader(yaml.SafeLoader):
    """Plain values alone, no objects; mappings of a size that a person may have meant."""

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        if len(node.value) > MOST_PAIRS:
            raise yaml.constructor.ConstructorError(problem=f"more than {MOST_PAIRS} pairs")


def parse_yaml(text: str):
    """Return the value of a YAML text; yaml.YAMLError where it is none, for any reason."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


def shown(value) -> str:
    """Return a value in a few words; aliases (`*name`) can make it too large to be written out."""
    words = reprlib.Repr()
    words.maxlevel = 2
    return words.repr(value)
