# SPDX-License-Identifier: Apache-2.0
"""What runs inside a machine with a kernel of its own (tests/interop/machine.py); pytest does not collect it."""
