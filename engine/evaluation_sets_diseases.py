"""Recipes of the sets of many diseases, one each per photograph: JSIEC and Retina."""

from engine.set_recipe import EvaluationSet

GROUP = "multiple diseases"
RETFOUND = "https://github.com/rmaphoh/RETFound_MAE/blob/main/BENCHMARK.md (links, splits)"
CATALOGUE = "https://github.com/pooyakhosravi/EyeDataHub website/docs/datasets (licence, counts)"
# the download's own folders, in the order of their numbers; what follows the number is the class
JSIEC_FOLDERS = """
0.0.Normal
0.1.Tessellated fundus
0.2.Large optic cup
0.3.DR1
1.0.DR2
1.1.DR3
2.0.BRVO
2.1.CRVO
3.RAO
4.Rhegmatogenous RD
5.0.CSCR
5.1.VKH disease
6.Maculopathy
7.ERM
8.MH
9.Pathological myopia
10.0.Possible glaucoma
10.1.Optic atrophy
11.Severe hypertensive retinopathy
12.Disc swelling and elevation
13.Dragged Disc
14.Congenital disc abnormality
15.0.Retinitis pigmentosa
15.1.Bietti crystalline dystrophy
16.Peripheral retinal degeneration and break
17.Myelinated nerve fiber
18.Vitreous particles
19.Fundus neoplasm
20.Massive hard exudates
21.Yellow-white spots-flecks
22.Cotton-wool spots
23.Vessel tortuosity
24.Chorioretinal atrophy-coloboma
25.Preretinal hemorrhage
26.Fibrosis
27.Laser Spots
28.Silicon oil in eye
29.0.Blur fundus without PDR
29.1.Blur fundus with suspected PDR
""".strip().splitlines()

JSIEC = EvaluationSet(
    name="jsiec",
    title="JSIEC",
    group=GROUP,
    task="multiclass",
    link="https://zenodo.org/records/3477553",
    # the record says open access without naming a licence
    licence=None,
    gigabytes=0.4,
    classes=tuple(name.lstrip("0123456789.") for name in JSIEC_FOLDERS),
    photographs=1000,
    layout="39 folders, 0.0.Normal to 29.1.Blur fundus with suspected PDR; or in train/val/test",
    folders=tuple((name,) for name in JSIEC_FOLDERS),
    sources=(RETFOUND, CATALOGUE, "https://doi.org/10.1038/s41467-021-25138-w (the paper)"),
)
RETINA = EvaluationSet(
    name="retina",
    title="Retina",
    group=GROUP,
    task="multiclass",
    link="https://www.kaggle.com/datasets/jr2ngb/cataractdataset",
    licence=None,
    gigabytes=0.1,
    classes=("normal", "cataract", "glaucoma", "retina disease"),
    photographs=601,
    layout=(
        "folders 1_normal, 2_cataract, 2_glaucoma and 3_retina_disease; or RETFound's "
        "train/val/test folders"
    ),
    folders=(
        ("1_normal", "anormal"),
        ("2_cataract", "bcataract"),
        ("2_glaucoma", "cglaucoma"),
        ("3_retina_disease", "ddretina_disease"),
    ),
    sources=(RETFOUND, CATALOGUE, "public loaders of jr2ngb/cataractdataset (class folders)"),
)
