# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure something: our own switch, shortly. No number is asserted, only that there are some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs: one for the switch, one for the load")
def test_a_short_run_of_our_own_switch(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", "--switch", "ours", "--rounds", "1", "--seconds", "0.2",
         "--json", str(file), "--case", "64-packed-inorder-1kpairs,9000-split,tso-split"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    assert set(results["cases"]) == {"64-packed-inorder-1kpairs", "9000-split", "tso-split"}
    for case in results["cases"].values():
        assert case["ours"]["mpps"] > 0
        assert case["ours"]["cycles"] > 0
    assert results["machine"]["cpus"] == str(os.cpu_count())
