"""`retclip demo` from photographs to the page, in miniature, rendered and on real photographs."""

import json
import sys

import pytest
from tiny_run import ROOT, run

DEMO = (sys.executable, "-m", "engine.cli", "demo")
# a few steps of a model that learns nothing: the stages are what is tested
QUICK = (
    "model.image_size=64",
    "model.vision.layers=1",
    "model.text.layers=1",
    "training.batch_size=8",
    "training.steps=3",
)


def demo(output, *words):
    """Run a short demo into `output`; return the completed process."""
    settings = [word for pair in QUICK for word in ("--set", pair)]
    recipe = ["--config", str(ROOT / "configs" / "demo.yaml")]
    return run([*DEMO, "--output", str(output), *recipe, *settings, *map(str, words)])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The finished process and folder of a rendered demo."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    return demo(output, "--patients", 40), output


def test_the_rendered_demo_runs_every_stage(rendered):
    done, output = rendered
    # three steps teach nothing, so the targets are missed, and the demo says so by its status
    assert done.returncode == 1, done.stderr
    assert "MISSED" in done.stdout
    for stage in ("retclip synth", "retclip shards build", "tokenizer train", "engine/train.py"):
        assert f"$ {stage}" in done.stdout or stage in done.stdout
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["patients"] == 4
    assert set(metrics["zero_shot"]) == {
        *("microaneurysms", "haemorrhages", "exudates", "cupping", "drusen")
    }
    assert metrics["facts"]["synthetic"] is True
    assert "http://" not in (output / "report.html").read_text().replace("http://www.w3.org", "")


def test_a_second_demo_reuses_what_the_first_left(rendered):
    before = (rendered[1] / "metrics.csv").read_bytes()
    done = demo(rendered[1], "--patients", 40)
    assert done.returncode == 1, done.stderr
    assert (rendered[1] / "metrics.csv").read_bytes() == before


def test_another_cohort_moves_the_first_aside(shared_fundus, rendered, tmp_path):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "demo.json").write_text("{}")
    (output / "precious.txt").write_text("kept")
    done = demo(output, "--manifest", shared_fundus / "patients.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo-1" / "precious.txt").read_text() == "kept"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["patients"] >= 4 and metrics["facts"]["synthetic"] is False
    assert (output / "report.html").stat().st_size > 50_000


def test_a_manifest_that_is_missing_is_one_line(tmp_path):
    done = demo(tmp_path / "demo", "--manifest", tmp_path / "absent.csv")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "absent.csv" in done.stderr


def test_a_wrong_manifest_or_a_folder_of_others_is_left_alone(tmp_path):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "demo.json").write_text("{}")
    done = demo(output, "--manifest", tmp_path / "absent.csv")
    assert done.returncode == 2 and "absent.csv" in done.stderr
    assert list(tmp_path.iterdir()) == [output]
    (output / "demo.json").rename(output / "thesis.txt")
    done = demo(output, "--patients", 40)
    assert done.returncode == 2 and "holds files that are no demo" in done.stderr
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]
