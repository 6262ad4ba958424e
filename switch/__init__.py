# SPDX-License-Identifier: Apache-2.0
"""A poll-mode software switch for virtual machines and containers: the control plane."""
