# SPDX-License-Identifier: Apache-2.0
"""swctl: everything a person does to a running switch.

It starts fast: the compiled module, the server and the configuration models are not imported until a verb needs them.
"""

from __future__ import annotations

from switch.cli.entry import cli, main

__all__ = ["cli", "main"]
