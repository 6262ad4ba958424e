# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: this switch beside OVS-DPDK and testpmd, interleaved, under one load. See bench/README.md."""
