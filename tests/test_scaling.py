"""The model of many GPUs: its sums, its limits, and what it says of itself."""

import dataclasses

import pytest

from bench.scaling import Cluster, main, rows, step_seconds
from engine.config import load_config, parse_config

CONFIG = parse_config({"training": {"steps": 1}})
PAPER = load_config("configs/retclip_vit_b16.yaml")


def test_one_gpu_computes_and_exchanges_nothing():
    parts = step_seconds(CONFIG.model, 256, 1, Cluster(), 10**9)
    assert parts["encoders"] > 0 and parts["loss"] > 0
    assert not any(parts[name] for name in parts.keys() - {"encoders", "loss"})


def test_exchanges_are_bytes_over_bandwidth_and_calls():
    cluster = Cluster(call=1e-3, within_node=1e9, between_nodes=1e8, gpus_per_node=2)
    inside, outside = (step_seconds(CONFIG.model, 4, ranks, cluster, 10**6) for ranks in (2, 4))
    assert inside["weights"] == pytest.approx(1e-3 + 4e6 / 2 / 1e9)
    assert outside["gradients"] == pytest.approx(1e-3 + 4e6 * 3 / 4 / 1e8)
    # three levels of 16 patients' 512 features, a call for each level
    assert outside["features"] == pytest.approx(3e-3 + 3 * 16 * 512 * 2 * 3 / 4 / 1e8)


def test_the_paper_s_model_has_its_size_and_loses_speed_with_ranks():
    found = rows(PAPER, 1024, [1, 8, 64, 512], Cluster())
    efficiency = [row["efficiency"] for row in found]
    assert efficiency[0] == 1 and efficiency == sorted(efficiency, reverse=True)
    # notes of the published checkpoint: 191,871,235 parameters; 4 bytes of each travel
    seconds = found[1]["parts"]["weights"] - Cluster().call
    assert seconds * Cluster().within_node * 8 / 7 / 4 == pytest.approx(191_871_235, rel=1e-6)


def test_every_assumption_is_an_option_and_is_printed(capsys):
    words = [f"--{f.name.replace('_', '-')}={f.type(7)}" for f in dataclasses.fields(Cluster)]
    main(["--patients", "8", "--gpus", "1", "2", *words])
    said = " ".join(capsys.readouterr().out.split())
    assert "modelled, not measured" in said and "reports of 7 tokens, 7 words" in said
