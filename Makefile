# SPDX-License-Identifier: Apache-2.0
# `make run` and `make test` are each enough on a fresh Debian 12 or Ubuntu machine, as root or not: tools/setup.sh brings
# what is missing (or says what to install) and everything made lands in .venv and build/.
#
#   make run [DURATION=10]   a switch with two guests that exchange traffic, and a live table of rates
#   make test                every test: C++ under sanitizers, fuzzing, lint, pytest with real peers
#   make unit                C++ tests and the pytest suites that need no peer
#   make check               lint and types only
#   make bench [QUICK=1] [CASES='64-*,512-split'] [RESULTS=bench/results/NAME.json]
#                            rates and latencies beside OVS-DPDK and testpmd (25 minutes; QUICK: 3)
#   make fuzz [TIME=600]     every fuzz target for TIME seconds
#   make clean               remove build/ and .venv
.DEFAULT_GOAL := help
.PHONY: help run test unit check bench fuzz clean

DURATION ?= 0
TIME ?= 600
QUICK ?=
CASES ?=
RESULTS ?= bench/results/$(if $(QUICK),quick,local).json

help:
	@sed -n 's/^#   //p' Makefile

run:
	@tools/setup.sh run
	@.venv/bin/python -m switch.demo --duration $(DURATION)

test:
	@tools/setup.sh test
	@.venv/bin/python tools/run_tests.py all

unit:
	@tools/setup.sh test
	@.venv/bin/python tools/run_tests.py unit

check:
	@tools/setup.sh check
	@.venv/bin/python tools/run_tests.py check

bench:
	@tools/setup.sh bench
	@.venv/bin/python -m bench.run $(if $(QUICK),--quick --rounds 5) $(if $(CASES),--case '$(CASES)') --json $(RESULTS)
	@.venv/bin/python -m bench.report $(RESULTS)

fuzz:
	@tools/setup.sh test
	@.venv/bin/python tools/run_tests.py fuzz --seconds $(TIME)

clean:
	rm -rf build .venv
