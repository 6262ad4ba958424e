# SPDX-License-Identifier: Apache-2.0
"""Plain models that the real switch is compared with."""
