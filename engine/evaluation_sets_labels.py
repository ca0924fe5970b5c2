"""Recipes of the sets with several labels at a time: RFMiD and ODIR-5K."""

import csv
import tempfile
from pathlib import Path

from dataload.importers import ImportFailed
from dataload.importers_odir import LABELS as ODIR_LABELS
from dataload.importers_odir import import_odir
from dataload.manifest_rows import text_of
from engine.set_recipe import DatasetError, EvaluationSet, LabelledExamination, several_labels

GROUP = "multiple labels"
CATALOGUE = "https://github.com/pooyakhosravi/EyeDataHub website/docs/datasets (licence, counts)"
RISK, OTHER = "Disease_Risk", "OTHER"
# the table's columns, in its order; the challenge scored the first 27 and the rest as OTHER
DISEASES = {
    "DR": "diabetic retinopathy",
    "ARMD": "age-related macular degeneration",
    "MH": "media haze",
    "DN": "drusen",
    "MYA": "myopia",
    "BRVO": "branch retinal vein occlusion",
    "TSLN": "tessellation",
    "ERM": "epiretinal membrane",
    "LS": "laser scars",
    "MS": "macular scar",
    "CSR": "central serous retinopathy",
    "ODC": "optic disc cupping",
    "CRVO": "central retinal vein occlusion",
    "TV": "tortuous vessels",
    "AH": "asteroid hyalosis",
    "ODP": "optic disc pallor",
    "ODE": "optic disc edema",
    "ST": "optociliary shunt",
    "AION": "anterior ischemic optic neuropathy",
    "PT": "parafoveal telangiectasia",
    "RT": "retinal traction",
    "RS": "retinitis",
    "CRS": "chorioretinitis",
    "EDN": "exudation",
    "RPEC": "retinal pigment epithelium changes",
    "MHL": "macular hole",
    "RP": "retinitis pigmentosa",
    OTHER: "other disease",
}
SCORED = tuple(name for name in DISEASES if name != OTHER)
RARE = (
    *("CWS", "CB", "ODPM", "PRH", "MNF", "HR", "CRAO", "TD", "CME"),
    *("PTCR", "CF", "VH", "MCA", "VS", "BRAO", "PLQ", "HPED", "CL"),
)
# split, the end of the label table's name, words in the name of the photographs' folder
RFMID_PARTS = (
    ("train", "RFMiD_Training_Labels.csv", ("training",)),
    ("validation", "RFMiD_Validation_Labels.csv", ("validation", "evaluation")),
    ("test", "RFMiD_Testing_Labels.csv", ("testing", "test")),
)
# split, a word in the folder's name; the set as its authors distribute it
ODIR_PARTS = (("train", "training"), ("validation", "off-site"), ("test", "on-site"))
ODIR_TRAINING_TABLE = "ODIR-5K_Training_Annotations(Updated)_V2.xlsx"


def read_rfmid(raw):
    """Yield RFMiD's photographs by its own three splits."""
    for split, name, words in RFMID_PARTS:
        table = raw.table(name)
        photographs = {}
        for word in words:
            photographs = photographs or raw.named_photographs(parent=word)
        for row, fields in raw.rows(table, ("ID", RISK, *SCORED)):
            stem = text_of(fields, "id")
            path = raw.find(photographs, stem, row, table)
            labels = _rfmid_labels(raw, fields, row, table)
            if path is not None and labels is not None:
                yield LabelledExamination(
                    patient_id=f"{split}-{stem}",
                    exam_id=stem,
                    image=path,
                    report=several_labels(DISEASES, labels),
                    split=split,
                    labels=labels,
                )


def _rfmid_labels(raw, fields, row, table):
    """Return the label columns of a row, or None, noted; OTHER is any of the rare ones."""
    # the challenge's own table has OTHER in place of the rare ones
    columns = [RISK, *SCORED, *(name for name in (*RARE, OTHER) if name.casefold() in fields)]
    values = {name: raw.number(fields, name, 2, row, table) for name in columns}
    if None in values.values():
        return None
    values.setdefault(OTHER, int(any(values.get(name) for name in RARE)))
    return {name: str(value) for name, value in values.items()}


def read_odir(raw):
    """Yield ODIR-5K's patients: all three parts, or the training part alone without splits."""
    parts = [
        (split, raw.table("(English).xlsx", ".xlsx", ".csv", under=word, optional=True), word)
        for split, word in ODIR_PARTS
    ]
    if any(table is None for _, table, _ in parts):
        parts = [("", raw.table(ODIR_TRAINING_TABLE, "full_df.csv"), "training")]
        raw.expect(photographs=ODIR.splits["train"], patients=ODIR.splits["train"] // 2)
        raw.warn("the labelled test parts are not there: splits are drawn from the training part")
    for split, table, word in parts:
        yield from _odir_part(raw, split, table, _photograph_folder(raw, word))


def _photograph_folder(raw, word):
    folders = {path.parent for path in raw.named_photographs(under=word).values()}
    if not folders:
        raise DatasetError(f"{raw.folder}: no folder named like {word!r} holds photographs")
    if len(folders) > 1:
        first, second = sorted(folders)[:2]
        raise DatasetError(f"{raw.folder}: photographs are in {first} and in {second}; keep one")
    return folders.pop()


def _odir_part(raw, split, table, folder):
    """Yield a part's patients as `retclip import odir` reads them; its problems become ours."""
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch, "odir.csv")
        try:
            summary = import_odir(table, folder, manifest)
        except ImportFailed as error:
            raise DatasetError(str(error).splitlines()[0]) from None
        rows = _csv_rows(manifest)
        for problem in _csv_rows(summary.problems_file):
            reason, patient_id = problem["reason"], problem["patient_id"]
            raw.reject(problem["row"], problem["file"], reason, patient_id)
        for row in rows:
            eyes = {
                eye: Path(scratch, row[eye]).resolve() if row[eye] else None
                for eye in ("left", "right")
            }
            raw.named += sum(path is not None for path in eyes.values())
            yield LabelledExamination(
                patient_id=row["patient_id"],
                report=row["report"],
                split=split,
                labels={name: row[name] for name in ODIR_LABELS.values()},
                **eyes,
            )


def _csv_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


RFMID = EvaluationSet(
    name="rfmid",
    title="RFMiD",
    group=GROUP,
    task="multilabel",
    link="https://ieee-dataport.org/open-access/retinal-fundus-multi-disease-image-dataset-rfmid",
    # of the mirror on Kaggle (andrewmvd/retinal-disease-classification)
    licence="CC BY-SA 4.0 (a mirror's statement)",
    gigabytes=1.5,
    classes=tuple(DISEASES.values()),
    labels=tuple(DISEASES),
    other_labels=(RISK, *RARE),
    photographs=3200,
    splits={"train": 1920, "validation": 640, "test": 640},
    layout=(
        "RFMiD_{Training,Validation,Testing}_Labels.csv and *.png in folders named for training, "
        "validation (evaluation) and test"
    ),
    read=read_rfmid,
    sources=(
        CATALOGUE,
        "https://github.com/jusiro/FLAIR local_data/prepare_partitions.py (files, columns, names)",
        "https://github.com/sStonemason/RET-CLIP, bdcaa9f, evaluation/eval_RFMID.py (28 labels)",
        "http://mdpi.com/2306-5729/6/2/14 (the data descriptor)",
    ),
)
ODIR = EvaluationSet(
    name="odir5k",
    title="ODIR-5K",
    group=GROUP,
    task="multilabel",
    link="https://github.com/nkicsl/OIA-ODIR",
    licence=None,
    classes=tuple(ODIR_LABELS.values()),
    labels=tuple(ODIR_LABELS.values()),
    photographs=10000,
    patients=5000,
    splits={"train": 7000, "validation": 1000, "test": 2000},
    layout=(
        "{Training,Off-site Test,On-site Test} Set/{Images,Annotation}; or, without labelled "
        f"tests, {ODIR_TRAINING_TABLE} and ODIR-5K_Training_Dataset/"
    ),
    read=read_odir,
    sources=(
        "https://odir2019.grand-challenge.org/dataset/ (link)",
        "public loaders of OIA-ODIR (folders, 3,500 + 500 + 1,000 patients, off-site validates)",
    ),
)
