# SPDX-License-Identifier: Apache-2.0
"""Turn a result file into a page: python -m bench.report bench/results/NAME.json writes NAME.md and NAME.svg (the chart
needs matplotlib)."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cases import MATRIX, parse_case
from bench.targets import TARGETS

CHART_CASES = (
    "64-split", "64-packed", "64-split-1kpairs", "512-split", "512-packed", "1518-split", "1518-packed",
    "64-split-burst4", "64-split-16ports", "64-split-32idle",
)  # fmt: skip
COLOURS = {"ours": "#1b6ca8", "ovs": "#c9622b", "testpmd": "#8a8a8a"}


def switches_of(case: Mapping[str, Any]) -> list[str]:
    return [name for name, value in case.items() if isinstance(value, Mapping) and name != "rounds_by_distance"]


def ordered(cases: Mapping[str, Any]) -> list[str]:
    rank = {name: number for number, name in enumerate(MATRIX)}
    return sorted(cases, key=lambda name: (rank.get(name, len(rank)), name))


def rate_rows(cases: Mapping[str, Any], kind: str) -> Iterator[str]:
    yield "| case | ours, Mpps | Gbit/s | cycles/frame | generator busy | ovs, Mpps | x | testpmd, Mpps | x | spread |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name in ordered(cases):
        case = cases[name]
        if parse_case(name).kind != kind or "ours" not in case:
            continue
        ours = case["ours"]
        busy = f"{ours['generator_busy']:.0%}" if ours["generator_busy"] is not None else "-"
        cells = [name, f"{ours['mpps']:.2f}", f"{ours['gbits']:.1f}", f"{ours['cycles']:.0f}", busy]
        for peer in ("ovs", "testpmd"):
            if peer in case:
                cells += [f"{case[peer]['mpps']:.2f}", f"{case[peer]['ratio']:.2f}"]
            else:
                cells += ["-", "-"]
        cells.append(f"{max(case[label]['spread'] for label in switches_of(case)):.1%}")
        yield f"| {' | '.join(cells)} |"


def far_rows(cases: Mapping[str, Any]) -> Iterator[str]:
    """Of cases that were measured with near and with far CPUs: what far ones gave. None: no lines."""
    far = [name for name in ordered(cases) if "far" in cases[name].get("ours", {})]
    if not far:
        return
    yield from ("## With far CPUs", "", "Rounds of the same runs in which the two CPUs shared no last-level cache.", "")
    yield "| case | rounds | ours, Mpps | Gbit/s | cycles/frame | ovs, Mpps | x | testpmd, Mpps | x |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in far:
        case = cases[name]
        ours = case["ours"]["far"]
        cells = [
            name,
            str(len(ours["mpps_rounds"])),
            f"{ours['mpps']:.2f}",
            f"{ours['gbits']:.1f}",
            f"{ours['cycles']:.0f}",
        ]
        for peer in ("ovs", "testpmd"):
            its = case.get(peer, {}).get("far")
            cells += [f"{its['mpps']:.2f}", f"{its['ratio']:.2f}"] if its else ["-", "-"]
        yield f"| {' | '.join(cells)} |"
    yield ""


def distance_line(cases: Mapping[str, Any]) -> Iterator[str]:
    by_sort: dict[str, list[str]] = {}
    for name in ordered(cases):
        if sort := cases[name].get("distance"):
            by_sort.setdefault(sort, []).append(name)
    if by_sort:
        told = [
            f"near in {len(by_sort.pop('near', []))} cases",
            *(f"{sort}: {', '.join(names)}" for sort, names in by_sort.items()),
        ]
        yield f"- distance of the two CPUs in the rounds that count: {'; '.join(told)}"


def latency_rows(cases: Mapping[str, Any]) -> Iterator[str]:
    yield "| case | load | ours, p50 / p99 / p99.9 us | ovs | testpmd |"
    yield "|---|---|---|---|---|"
    for name in ordered(cases):
        case = cases[name]
        if parse_case(name).kind != "latency":
            continue
        for load in case.get("ours", {}):
            cells = [name, load]
            for label in ("ours", "ovs", "testpmd"):
                point = case.get(label, {}).get(load)
                text = " / ".join(f"{point[key]:.2f}" for key in ("p50", "p99", "p999")) if point else "-"
                cells.append(f"{text} ({point['mpps']:.2f} Mpps)" if point and "own" in load else text)
            yield f"| {' | '.join(cells)} |"


def other_rows(cases: Mapping[str, Any]) -> Iterator[str]:
    for name in ordered(cases):
        ours = cases[name].get("ours", {})
        if parse_case(name).kind == "idle" and ours:
            first = ours["first_frame_us"]
            yield (
                f"- Idle: {ours['cpu_share']:.2%} of a CPU; first frame after a pause of 50 ms: "
                f"p50 {first['p50']} us, p99 {first['p99']} us ({ours['first_frames']} frames). "
                f"A Python process that waits on an eventfd of that CPU woke after {ours['wake_us']} us."
            )
        if parse_case(name).kind == "disturb":
            for what, one in ours.items():
                yield (
                    f"- While {what} ({one['done']} times, {one['each_ms']} ms each): {one['lost']} of {one['sent']} "
                    f"frames lost, latency p50 {one['p50']} us, p99 {one['p99']} us."
                )


def target_rows(cases: Mapping[str, Any]) -> Iterator[str]:
    yield "| target | bound | measured | |"
    yield "|---|---|---|---|"
    for target in TARGETS:
        value = target.value(cases)
        bound = f"{'at least' if target.at_least else 'at most'} {target.bound:g} {target.unit}".strip()
        if value is None:
            yield f"| {target.what} | {bound} | not measured | |"
        else:
            verdict = "reached" if target.reached(value) else "**missed**"
            yield f"| {target.what} | {bound} | {value:.3g} | {verdict} |"


def builds_of(cases: Mapping[str, Any]) -> list[str]:
    """Each build of ours that cases were measured with, the one of most cases first; of the others the cases, too."""
    by_build: dict[str, list[str]] = {}
    for name in ordered(cases):
        by_build.setdefault(cases[name]["build"], []).append(name)
    first, *others = sorted(by_build, key=lambda build: -len(by_build[build]))
    return [first, *(f"{build} ({', '.join(by_build[build])})" for build in others)]


def page(results: Mapping[str, Any], name: str, chart: bool) -> str:
    cases = results["cases"]
    lines = ["# Results", "", "Made by `python -m bench.report`; how to read it: [README](../README.md).", ""]
    lines += [f"- {key}: {value}" for key, value in sorted(results["machine"].items())]
    lines += [f"- version of {key}: {value}" for key, value in sorted(results["versions"].items()) if key != "ours"]
    lines += [f"- version of ours: {text}" for text in builds_of(cases)]
    lines += distance_line(cases)
    noisy = sum(case[label].get("still_noisy_rounds", 0) for case in cases.values() for label in switches_of(case))
    again = sum(case[label].get("noisy_rounds", 0) for case in cases.values() for label in switches_of(case))
    lines += [
        f"- rounds measured again because of others' CPU time or steal time: {again}; noisy to the end: {noisy}",
        "",
    ]
    if chart:
        lines += [f"![Rates]({name}.svg)", ""]
    lines += ["## Rates", "", *rate_rows(cases, "rate"), "", *far_rows(cases), "## DPDK's own guests, closed loop", ""]
    lines += [*rate_rows(cases, "loop"), "", "## Latency", "", *latency_rows(cases), "", "## Idle and disturbed", ""]
    lines += [*other_rows(cases), "", "## Targets", "", *target_rows(cases), ""]
    return "\n".join(lines)


def draw(results: Mapping[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    from matplotlib import pyplot

    cases = [name for name in CHART_CASES if name in results["cases"]]
    figure, axes = pyplot.subplots(figsize=(10, 0.5 * len(cases) + 1.4), layout="constrained")
    for offset, (label, colour) in enumerate(COLOURS.items()):
        values = [results["cases"][name].get(label, {}).get("mpps", 0) for name in cases]
        places = [number + (offset - 1) * 0.27 for number in range(len(cases))]
        bars = axes.barh(places, values, 0.27, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], padding=2, fontsize=8)
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.set_xlabel("million frames a second, both directions together, one core")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1 or given[0].startswith("-"):
        print("usage: python -m bench.report bench/results/NAME.json", file=sys.stderr)
        return 2
    file = Path(given[0])
    results = json.loads(file.read_text())
    chart = importlib.util.find_spec("matplotlib") is not None
    if chart:
        draw(results, file.with_suffix(".svg"))
    else:
        print("no matplotlib: no chart", file=sys.stderr)
    text = page(results, file.stem, chart or file.with_suffix(".svg").exists())
    file.with_suffix(".md").write_text(text)
    print("\n".join(target_rows(results["cases"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
