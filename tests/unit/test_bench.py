# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own arithmetic, names and files; tests/system/test_bench.py measures something with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import cases, distance, numbers, report, run
from bench.measure import Outcome
from bench.process import BenchError
from bench.switches import Needs, make_switch
from bench.targets import TARGETS, Target

BOUNDS = [0, 1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "64-split",
            {"size": 64, "packed": False, "pairs": 1, "ports": 2, "idle": 0, "touch": "whole", "kind": "rate"},
        ),
        ("1518-packed-inorder-nomrg", {"size": 1518, "packed": True, "in_order": True, "mergeable": False}),
        ("64-split-1kpairs-burst4-ring1024", {"pairs": 1024, "burst": 4, "ring": 1024}),
        ("64-split-512kpairs", {"pairs": 524288}),
        ("64-split-16ports-32idle", {"ports": 16, "idle": 32}),
        ("64-packed-never-latency", {"touch": "never", "kind": "latency"}),
        ("tso-split", {"size": 65226, "gso": 1448, "window": 6}),
        ("9000-split", {"size": 9000, "window": 38}),
        ("9000-split-nomrg", {"size": 9000, "window": 0}),
    ],
)
def test_a_case_is_what_its_name_says(name: str, expected: dict[str, Any]) -> None:
    case = cases.parse_case(name)
    assert {key: getattr(case, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("64", "begins with a size"), ("fast-split", "begins with a size"), ("64-round", "begins with a size"),
        ("59-split", "60 to 65535"), ("64-split-huge", "'huge' is none of"), ("64-split-3ports", "even"),
    ],
)  # fmt: skip
def test_a_name_that_means_nothing_is_refused(name: str, says: str) -> None:
    with pytest.raises(cases.CaseError, match=says):
        cases.parse_case(name)


@pytest.mark.parametrize("name", [*cases.MATRIX, *cases.QUICK, *report.CHART_CASES])
def test_every_case_of_the_matrix_means_something(name: str) -> None:
    assert cases.parse_case(name).name == name
    assert name in cases.MATRIX


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["b*"], ["b-1", "b-2"]),
        (["b-2", "a"], ["b-2", "a"]),
        (["64-split-ring512"], ["64-split-ring512"]),  # not of the matrix, but with a meaning
        (["a", "a"], ["a"]),
    ],
)
def test_cases_are_chosen_by_pattern_or_by_name(patterns: list[str], chosen: list[str]) -> None:
    assert cases.choose(patterns, ["a", "b-1", "b-2"]) == chosen


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 4, 0, 0, 0], 0.5, 2.5),  # the middle of 2..3
        ([1, 1, 1, 1, 0, 0], 0.5, 1.0),
        ([99, 0, 0, 0, 0, 1], 0.99, 0.0),
        ([99, 0, 0, 0, 0, 1], 0.999, 16.0),
    ],
)
def test_percentiles_of_a_histogram(counts: list[int], share: float, expected: float) -> None:
    assert numbers.percentile(counts, BOUNDS, share) == expected


def test_an_empty_histogram_has_no_percentile() -> None:
    assert math.isnan(numbers.percentile([0] * 6, BOUNDS, 0.5))


def test_ratios_are_taken_round_by_round() -> None:
    assert numbers.ratios([10.0, 20.0, 30.0], [5.0, 10.0, 10.0]) == [2.0, 2.0, 3.0]
    assert numbers.spread([9.0, 10.0, 12.0]) == pytest.approx(0.3)
    assert numbers.difference([5, 7], [1, 7]) == [4, 0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rounds", "0"], "--rounds"), (["--seconds", "0"], "--seconds"), (["--case", "64-x"], "64-x"),
        (["--switch", ","], "--switch is empty"),
    ],
)  # fmt: skip
def test_bad_arguments_are_explained(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.parse_arguments(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_arguments_in_lists() -> None:
    given = run.parse_arguments(["--case", "64-split,64-packed", "--case", "512-*", "--switch", "ours=/a,ovs"])
    assert given.cases == ["64-split", "64-packed", "512-split", "512-packed"]
    assert given.switches == ["ours=/a", "ovs"]
    assert run.parse_arguments(["--quick"]).cases == list(cases.QUICK)
    assert run.parse_arguments([]).cases == list(cases.MATRIX)


@pytest.mark.parametrize(("text", "label"), [("ours", "ours"), ("ovs", "ovs"), ("testpmd", "testpmd")])
def test_a_switch_is_made_from_its_name(text: str, label: str) -> None:
    assert make_switch(text, 1).label == label


@pytest.mark.parametrize(
    ("text", "says"), [("vpp", "no switch 'vpp'"), ("ours=/nowhere", "no .venv"), ("ovs=/x", "no switch")]
)
def test_a_switch_that_is_not_there_is_refused(text: str, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        make_switch(text, 1)


def test_peers_are_left_out_of_what_they_cannot_do() -> None:
    many, offloads, ports = Needs(2, 1 << 20), Needs(2, 2, offloads=True), Needs(64, 64)
    assert [make_switch(name, 1).able(many) for name in ("ours", "ovs", "testpmd")] == [True, False, True]
    assert [make_switch(name, 1).able(offloads) for name in ("ours", "ovs", "testpmd")] == [True, True, False]
    assert [make_switch(name, 1).able(ports) for name in ("ours", "ovs", "testpmd")] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "switches", "labels"),
    [
        ("64-split", "ours ovs", ["ours", "ovs"]),
        ("64-split-32idle", "ours ovs", ["ours", "plain", "ovs"]),
        ("64-packed-1kpairs", "ours", ["ours", "plain"]),
        ("64-packed-1kpairs", "ovs ours", ["ovs", "ours"]),
    ],
)
def test_many_addresses_and_idle_ports_are_told_against_the_plain_case(
    name: str, switches: str, labels: list[str]
) -> None:
    case = cases.parse_case(name)
    contenders, others = run.with_plain(case, [make_switch(switch, 1) for switch in switches.split()])
    assert [switch.label for switch in contenders] == labels
    assert {label: (one.pairs, one.idle, one.packed) for label, one in others.items()} == (
        {"plain": (1, 0, case.packed)} if "plain" in labels else {}
    )


def test_results_of_several_runs_are_merged(tmp_path: Path) -> None:
    file = tmp_path / "results/all.json"
    old = {"machine": {"cpu": "old"}, "versions": {"ours": "1", "ovs": "3"}}
    run.merge(file, old, {"a": {"ours": 1}, "b": {"ours": 2}})
    run.merge(file, {"machine": {"cpu": "new"}, "versions": {"ours": "2"}}, {"b": {"ours": 3}})
    assert json.loads(file.read_text()) == {
        "machine": {"cpu": "new"},
        "versions": {"ours": "2", "ovs": "3"},
        "cases": {"a": {"ours": 1}, "b": {"ours": 3}},
    }
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("target", "value", "reached"),
    [
        (Target("rate", 2.5, True, ("a", "ovs", "ratio")), 2.6, True),
        (Target("rate", 2.7, True, ("a", "ovs", "ratio")), 2.6, False),
        (Target("cost", 1.5, False, ("b", "ours", "cycles"), ("a", "ours", "cycles")), 2.0, False),
        (Target("missing", 1, True, ("c", "ours", "ratio")), None, None),
    ],
)
def test_targets_are_read_from_results(target: Target, value: float | None, reached: bool | None) -> None:
    results = {"a": {"ours": {"cycles": 40}, "ovs": {"ratio": 2.6}}, "b": {"ours": {"cycles": 80}}}
    assert target.value(results) == value
    assert value is None or target.reached(value) is reached


def test_every_target_is_about_a_case_of_the_matrix() -> None:
    assert {path[0] for target in TARGETS for path in (target.top, target.bottom) if path} <= set(cases.MATRIX)


@pytest.mark.parametrize("file", sorted((Path(run.__file__).parent / "results").glob("*.json")), ids=lambda f: f.stem)
def test_kept_results_make_the_page_beside_them(file: Path) -> None:
    chart = file.with_suffix(".svg").exists()
    assert report.page(json.loads(file.read_text()), file.stem, chart) == file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("distances", "common", "counts"),
    [
        ({"ours": ["near"] * 3, "ovs": ["near"] * 3}, ["near"] * 3, "near"),
        ({"ours": ["far"] * 4 + ["near"] * 2, "ovs": ["far"] * 4 + ["near"] * 2}, ["far"] * 4 + ["near"] * 2, "far"),
        ({"ours": ["near", "far", "far", "far"], "ovs": ["near"] * 4}, ["near"] + ["moved"] * 3, "moved"),
        ({"ours": ["near"] * 3 + ["far"] * 9}, ["near"] * 3 + ["far"] * 9, "near"),
        ({"ours": [], "ovs": []}, [], "moved"),
    ],
    ids=["all near", "mostly far", "moved between turns", "three near are enough", "not looked at"],
)
def test_rounds_of_one_distance_count(distances: dict[str, list[str]], common: list[str], counts: str) -> None:
    assert distance.common(distances) == common
    assert distance.sort_that_counts(common) == counts


def test_near_and_far_rounds_are_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    def outcome(mpps: list[float], places: list[str]) -> Outcome:
        ones = [1.0] * len(mpps)
        return Outcome(mpps, ones, ones, ones, ones, ones, ones, distance=places)

    places = ["near"] * 3 + ["far"] * 3
    outcomes = {"ours": outcome([40, 41, 42, 4, 4, 4], places), "ovs": outcome([10, 10, 10, 2, 2, 2], places)}
    kept = run.keep_by_distance(outcomes)
    assert (kept["ours"]["mpps"], kept["ovs"]["ratio"]) == (41, 4.1)
    assert (kept["ours"]["far"]["mpps"], kept["ovs"]["far"]["ratio"]) == (4, 2)
    assert (kept["distance"], kept["rounds_by_distance"]) == ("near", {"near": 3, "far": 3})
    assert "far, 3 rounds:" in capsys.readouterr().out
    rows = list(report.far_rows({"64-split": kept}))
    assert rows[-2] == "| 64-split | 3 | 4.00 | 1.0 | 1 | 2.00 | 2.00 | - | - |"
