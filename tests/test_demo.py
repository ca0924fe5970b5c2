"""`retclip demo` from photographs to the page, in miniature, rendered and on real photographs.

The rendered one is watched: it turns to nobody on any network, and what it leaves is its owner's.
"""

import json
import subprocess
import sys

import pytest
from page_outline import check_page
from tiny_run import ROOT, environment, run
from watched_network import WatchedNetwork, can_trace, is_here, own_network

DEMO = (sys.executable, "-m", "engine.cli", "demo")
# a few steps of a model that learns nothing: the stages are what is tested
QUICK = (
    "model.image_size=64",
    "model.vision.layers=1",
    "model.text.layers=1",
    "training.batch_size=8",
    "training.steps=3",
)


def demo_command(output, *words):
    """Return the command of a short demo into `output`."""
    settings = [word for pair in QUICK for word in ("--set", pair)]
    recipe = ["--config", str(ROOT / "configs" / "demo.yaml")]
    return [*DEMO, "--output", str(output), *recipe, *settings, *map(str, words)]


def demo(output, *words):
    """Run a short demo into `output`; return the completed process."""
    return run(demo_command(output, *words))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """What the rendered demo did on the network."""
    return WatchedNetwork(tmp_path_factory.mktemp("network"))


def run_watched(network, command):
    """Run a command watched, in a shell that would let everybody read; return the process."""
    return subprocess.run(
        network.command(command),
        cwd=ROOT,
        env={**environment(), **network.environment},
        capture_output=True,
        text=True,
        timeout=300,
        umask=0o022,
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, network):
    """The finished process and folder of a rendered demo."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    return run_watched(network, demo_command(output, "--patients", 40)), output


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
    page = check_page(output / "report.html")
    # rendered patients are shown without being asked for
    assert "Patient by patient" in page and "contains patient data" not in page


def test_the_demo_turns_to_nobody(rendered, network):
    assert rendered[0].returncode == 1
    assert not [host for host in network.hosts_in_python() if not is_here(host)]


def test_libraries_turn_to_nobody_either(rendered, network):
    if not can_trace():
        pytest.skip("strace is not installed or may not be used: only Python's sockets were seen")
    assert not [address for address in network.addresses_in_kernel() if not is_here(address)]


def test_the_demo_needs_no_network(rendered):
    if not own_network():
        pytest.skip("this user may not make a network namespace (unshare --net)")
    # it ran in one: see WatchedNetwork.command
    assert rendered[0].returncode == 1 and (rendered[1] / "report.html").exists()


ASKS = """
import socket
for ask in (lambda: socket.getaddrinfo("retclip.invalid", 443),
            lambda: socket.create_connection(("192.0.2.1", 9), timeout=0.1)):
    try:
        ask()
    except OSError:
        pass
"""


def test_who_turns_to_somebody_is_seen(tmp_path):
    network = WatchedNetwork(tmp_path)
    done = run_watched(network, [sys.executable, "-c", ASKS])
    assert done.returncode == 0, done.stderr
    assert {"retclip.invalid", "192.0.2.1"} <= network.hosts_in_python()
    if can_trace():
        assert "192.0.2.1" in network.addresses_in_kernel()


def test_what_the_demo_leaves_is_its_owners_alone(rendered):
    made = [rendered[1], *rendered[1].rglob("*")]
    assert len(made) > 100
    assert not [path for path in made if path.stat().st_mode & 0o077]


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
    page = check_page(output / "report.html")
    # the user's own patients are not shown unasked
    assert "data:image/jpeg" not in page and "data:image/svg+xml" in page
    assert "without photographs and reports, which --gallery adds" in " ".join(done.stdout.split())


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
