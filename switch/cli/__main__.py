# SPDX-License-Identifier: Apache-2.0
"""python -m switch.cli"""

from __future__ import annotations

import sys

from switch.cli.entry import main

sys.exit(main())
