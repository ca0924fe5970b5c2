"""Reports as token ids: sentencepiece trained on the cohort, or BERT's WordPiece vocabulary.

Both tokenizers give `[CLS] ids [SEP]` padded with 0. A report's identity is a hash of its
normalised text: reports that differ in width, case or spacing alone are the same report.
Shapes: N reports, L context length in tokens.
"""

import hashlib
import io
import os
import re
import unicodedata
from pathlib import Path

import numpy as np

from dataload.rare_pieces import rare_pieces, without_pieces

PAD_ID = 0
UNK_ID = 1
CLS_ID = 2
SEP_ID = 3
# pad, unknown, CLS, SEP, and one piece for each byte
FIXED_PIECES = 4 + 256
# a piece that fewer people's reports hold may be the name or number of one of them
MIN_PATIENTS = 20
# what BERT's own code does with longer words: they become [UNK]
MAX_WORD_CHARACTERS = 200
TRAINING = {
    "model_type": "unigram",
    "hard_vocab_limit": False,
    "byte_fallback": True,
    # numbers are spelt, never learnt
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc_cf",
    "pad_id": PAD_ID,
    "unk_id": UNK_ID,
    "bos_id": CLS_ID,
    "eos_id": SEP_ID,
    "pad_piece": "[PAD]",
    "unk_piece": "[UNK]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    # bytes; sentencepiece drops longer sentences, and a report counts as one
    "max_sentence_length": 1 << 20,
    # the threads' sums are added in order, so a fixed number keeps training repeatable
    "num_threads": 2,
    # errors alone: they are raised as well
    "minloglevel": 2,
}


def normalise_report(text):
    """Return a report's text as it is compared: NFKC, case folded, single spaces.

    Characters that show nothing (controls, zero-width marks) are left out, and so are halves of
    surrogate pairs. Normalising twice changes nothing.
    """
    previous = None
    # folding can undo a normal form and the other way round; this settles in a few rounds
    while text != previous:
        previous = text
        text = unicodedata.normalize("NFKC", text).casefold()
        if not text.isprintable():
            text = "".join(filter(_shows, text))
        text = " ".join(text.split())
    return text


def _shows(character):
    return character.isspace() or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def report_id(text):
    """Return the identity of a report: a signed 64-bit hash of its normalised text."""
    digest = hashlib.blake2b(normalise_report(text).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def pad_reports(ids, context_length, cls_id, sep_id):
    """Return (tokens (N, L), lengths (N,)), int64, of lists of ids: cut to L - 2, padded with 0.

    ValueError if `context_length` is below 3, which leaves no room for a report.
    """
    _check_context_length(context_length)
    tokens = np.full((len(ids), context_length), PAD_ID, np.int64)
    lengths = np.zeros(len(ids), np.int64)
    for row, report in enumerate(ids):
        kept = report[: context_length - 2]
        lengths[row] = len(kept) + 2
        tokens[row, : lengths[row]] = [cls_id, *kept, sep_id]
    return tokens, lengths


def _check_context_length(context_length):
    if context_length < 3:
        raise ValueError(f"context_length is {context_length}; write 3 or more tokens")


def _read_model(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the tokenizer ({error.strerror})") from None


def _normalised(reports):
    """Return a patient's reports, a list or one text, normalised and without empty ones."""
    reports = [reports] if isinstance(reports, str) else reports
    return [report for report in map(normalise_report, reports) if report]


def _processor_of(model):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _train_model(reports, vocabulary_size, character_coverage):
    """Return the bytes of a sentencepiece model trained on normalised reports."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(reports),
            model_writer=model,
            vocab_size=vocabulary_size,
            character_coverage=character_coverage,
            **TRAINING,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if match := re.search(r"required_chars\. \d+ vs (\d+)", reason):
            raise ValueError(
                f"vocabulary_size is {vocabulary_size}; these reports' characters alone need "
                f"{match[1]} (or lower character_coverage)"
            ) from error
        raise ValueError(f"sentencepiece cannot train on these reports: {reason}") from error
    return model.getvalue()


class SentencePieceTokenizer:
    """A unigram sentencepiece model with byte fallback: pad 0, unknown 1, CLS 2, SEP 3."""

    kind = "sentencepiece"
    pad_id = PAD_ID
    cls_id = CLS_ID
    sep_id = SEP_ID

    def __init__(self, path):
        """Load a model file; raise ValueError when it is missing, damaged or numbered otherwise."""
        self.path = Path(path)
        data = _read_model(self.path)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        try:
            self._processor = _processor_of(data)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path}: is not a sentencepiece model") from error
        processor = self._processor
        ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if ids != (PAD_ID, UNK_ID, CLS_ID, SEP_ID):
            raise ValueError(
                f"{self.path}: has pad, unknown, CLS, SEP as {ids}; they must be 0, 1, 2, 3 "
                "(train one with: retclip tokenizer train)"
            )

    @classmethod
    def load(cls, path):
        """Return the tokenizer in a model file."""
        return cls(path)

    @classmethod
    def train(
        cls,
        patients,
        path,
        *,
        vocabulary_size,
        character_coverage=0.9995,
        min_patients=MIN_PATIENTS,
    ):
        """Train on the reports of an iterable of patients, save to `path`, return the tokenizer.

        A patient is a list of reports, or one report. `vocabulary_size` is an upper limit: a small
        cohort gives fewer pieces. Digits are pieces of their own, and no piece of several
        characters is kept that occurs in the reports of fewer than `min_patients` patients. Raises
        ValueError when `vocabulary_size` is below what every vocabulary holds, when
        `min_patients` is below 1, or when there is no text.
        """
        if min_patients < 1:
            raise ValueError(f"min_patients is {min_patients}; write 1 or more")
        if vocabulary_size <= FIXED_PIECES:
            raise ValueError(
                f"vocabulary_size is {vocabulary_size}; write more than {FIXED_PIECES}, "
                "which special and byte pieces take"
            )
        patients = [_normalised(reports) for reports in patients]
        reports = [report for reports in patients for report in reports]
        if not reports:
            raise ValueError("a tokenizer needs at least one report that is not empty")
        model = _train_model(reports, vocabulary_size, character_coverage)
        rare = rare_pieces(_processor_of(model), patients, min_patients)
        model = without_pieces(model, rare)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(model)
        os.replace(temporary, path)
        return cls(path)

    @property
    def vocabulary_size(self):
        """Number of pieces."""
        return self._processor.get_piece_size()

    def ids(self, texts):
        """Return the ids of each report of a list, without CLS and SEP, as long as it is."""
        return self._processor.encode([normalise_report(text) for text in texts], out_type=int)

    def encode(self, texts, context_length):
        """Return (tokens (N, L) int64, lengths (N,) int64) of a list of reports."""
        return pad_reports(self.ids(texts), context_length, self.cls_id, self.sep_id)


class WordPieceTokenizer:
    """BERT's WordPiece over the user's vocab.txt, as RET-CLIP's loader uses it."""

    kind = "wordpiece"
    pad_id = PAD_ID

    def __init__(self, path):
        """Load vocab.txt; raise ValueError when it is missing or not BERT's."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        self.path = Path(path)
        data = _read_model(self.path)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        try:
            # not splitlines(): some entries of BERT's vocabulary are Unicode line separators
            lines = data.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: is not a UTF-8 vocab.txt") from None
        vocabulary = {line.strip(): number for number, line in enumerate(lines)}
        missing = [name for name in ("[CLS]", "[SEP]", "[UNK]") if name not in vocabulary]
        if vocabulary.get("[PAD]") != PAD_ID or missing:
            raise ValueError(
                f"{self.path}: is not a BERT vocab.txt: its first line must be [PAD], and [CLS], "
                "[SEP] and [UNK] must be in it"
            )
        self.vocabulary_size = len(lines)
        self.cls_id, self.sep_id = vocabulary["[CLS]"], vocabulary["[SEP]"]
        model = models.WordPiece(
            vocabulary, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS
        )
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def token_id(self, token):
        """Return the number of an entry such as "[MASK]", or None where there is no such entry."""
        return self._tokenizer.token_to_id(token)

    def ids(self, texts):
        """Return the ids of each report of a list, without CLS and SEP, as long as it is."""
        return [self._tokenizer.encode(_straighten(text)).ids for text in texts]

    def encode(self, texts, context_length):
        """Return (tokens (N, L) int64, lengths (N,) int64) of a list of reports."""
        return pad_reports(self.ids(texts), context_length, self.cls_id, self.sep_id)


def _straighten(text):
    """Lower the case and straighten curly double quotes, as the official data loader does."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub("[\u201c\u201d]", '"', text.lower())


def load_tokenizer(path):
    """Return the tokenizer in a file: `.model` is sentencepiece, `.txt` a BERT vocabulary."""
    path = Path(path)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.suffix == ".txt":
        return WordPieceTokenizer(path)
    raise ValueError(f"{path}: a tokenizer is a sentencepiece .model file or a BERT vocab.txt")
