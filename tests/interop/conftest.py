# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with peers we did not write."""

from __future__ import annotations

import pytest

from tests.interop import guest_image, needs
from tests.interop.guest_image import Image


@pytest.fixture(scope="session")
def image() -> Image:
    """The QEMU guest's kernel and initramfs."""
    return guest_image.build(needs.ROOT / "build/guest")


@pytest.fixture(scope="session")
def cpus() -> tuple[int, int]:
    """CPU of the switch, CPU of the guests."""
    return needs.two_cpus()
