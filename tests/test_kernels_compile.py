"""The very kernels that ship, compiled for every architecture that has a table, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from kernels import tuning

COMPILER = Path(__file__).with_name("kernel_compiler.py")
# bytes of shared memory that one block of threads may have (CUDA programming guide, table of
# compute capabilities)
SHARED_BYTES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
SMALLEST = "smallest tiles on sm_86"


def architectures():
    return [*tuning.tables(), SMALLEST]


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_shipped_kernels_compile_well(name):
    if name == "sm_100" and triton.__version__ < "3.7":
        pytest.skip("triton 3.6 crashes where it compiles for sm_100")
    target = "sm_86" if name == SMALLEST else name
    choice = tuning.SMALLEST if name == SMALLEST else tuning.tables()[name]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(COMPILER), target, json.dumps(tuning.to_dict(choice))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    found = {(row["kernel"], row["variant"]) for row in rows}
    assert {"other_sums_kernel", "weights_kernel", "online_sums_kernel", "gradient_kernel"} <= {
        kernel for kernel, _ in found
    }
    assert ("stored_weights_kernel", "plain") in found
    limit = SHARED_BYTES[int(target.removeprefix("sm_"))] << 10
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= limit, row
        assert not row["serialised"], row
        multiplies = row["kernel"] in ("other_sums_kernel", "online_sums_kernel", "weights_kernel")
        assert row["tensor_cores"] == multiplies, row


def test_every_table_names_its_source_and_fits_the_operands():
    entries = json.loads(tuning.TABLES.read_text(encoding="utf-8"))
    assert set(entries) == {f"sm_{capability}" for capability in SHARED_BYTES}
    for entry in entries.values():
        assert entry["source"]
        for tile in entry["choice"].values():
            if isinstance(tile, dict):
                # operands are padded to 256 rows and 64 features, and loads have no masks
                assert 256 % tile["rows"] == 256 % tile["columns"] == 64 % tile["depth"] == 0
