# SPDX-License-Identifier: Apache-2.0
"""Small statistics: medians, spreads, percentiles of histograms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round: what drifts in both cancels out."""
    return [mine / other for mine, other in zip(ours, theirs, strict=False) if other]


def percentile(counts: Sequence[int], bounds: Sequence[int], share: float) -> float:
    """The value below which `share` of a histogram lies: the middle of the bucket it falls into. NaN when empty."""
    total = sum(counts)
    if not total:
        return float("nan")
    wanted = share * total
    seen = 0
    for index, count in enumerate(counts):
        seen += count
        if seen >= wanted and count:
            upper = bounds[index + 1] if index + 1 < len(bounds) else bounds[index] + 1
            return (bounds[index] + upper - 1) / 2
    return float(bounds[-1])


def difference(after: Sequence[int], before: Sequence[int]) -> list[int]:
    return [end - start for end, start in zip(after, before, strict=True)]
