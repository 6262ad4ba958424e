# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes the real daemon, and every expression that we ship is asked of it."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.interop import needs, testpmd
from tests.interop.process import Process, wait_until
from tests.interop.switchd import Switchd, free_port, vhost_port
from tests.interop.test_testpmd import MAC_A, MAC_B, exchange
from tests.interop.testpmd import VirtioUser
from tests.unit.test_grafana import GRAFANA, expressions

pytestmark = pytest.mark.interop

# Silent on a healthy switch: nothing to sum while nothing is lost or refused.
MAY_BE_EMPTY = ("restart", "drop", "lose", "lost", "losses", "events", "$")


@dataclass
class Lab:
    switch: Switchd
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        found: list[dict[str, Any]] = body["data"]["result"]
        return found


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    program = needs.program("promtool", "prometheus")
    done = subprocess.run(
        [program, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def lab(module_folder: Path, cpus: tuple[int, int]) -> Iterator[Lab]:
    program = needs.program("prometheus", "prometheus")
    ports = [vhost_port(name, module_folder / f"{name}.sock") for name in ("a", "b")]
    with Switchd(module_folder, ports) as switch:
        listen = free_port()
        config = yaml.safe_load((GRAFANA / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(GRAFANA / "prometheus/rules.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{switch.metrics_port}"]
        file = module_folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = [
            program, f"--config.file={file}", f"--storage.tsdb.path={module_folder}/data",
            f"--web.listen-address=127.0.0.1:{listen}",
        ]  # fmt: skip
        process = Process(command, module_folder / "prometheus.log")
        try:
            made = Lab(switch, f"http://127.0.0.1:{listen}")

            def scraped() -> bool:
                process.check()
                try:
                    return bool(made.query('up{job="switch"} == 1'))
                except OSError:
                    return False

            wait_until("Prometheus has scraped the switch", scraped, 30.0)
            yield made
        finally:
            process.stop()


def test_the_exposition_is_well_formed(lab: Lab) -> None:
    promtool("check", "metrics", text=lab.switch.metrics_text())


def test_rules_and_configuration_are_sound() -> None:
    promtool("check", "config", GRAFANA / "prometheus/prometheus.yml")
    promtool("test", "rules", GRAFANA / "prometheus/rules-test.yml")


def test_every_expression_of_the_dashboards_and_rules_has_an_answer(
    lab: Lab, folder: Path, cpus: tuple[int, int]
) -> None:
    devices = [VirtioUser(lab.switch.folder / f"{name}.sock", mac) for name, mac in (("a", MAC_A), ("b", MAC_B))]
    with (
        testpmd.guest(devices[0], folder, cpus[1], MAC_B) as first,
        testpmd.guest(devices[1], folder, cpus[1], MAC_A) as second,
    ):
        lab.switch.wait_up("a", "b")
        exchange(first, second)
    sums = "sum(rate(switch_port_receive_frames_total[30s])) > 0"
    wait_until("Prometheus sees the frames", lambda: lab.query(sums), 20.0)
    empty = []
    for where, expression in expressions():
        concrete = expression.replace("$__rate_interval", "30s").replace("$instance", ".*").replace("$port", ".*")
        alert = where.startswith("Switch")
        if not lab.query(concrete) and not alert and not any(word in where.lower() for word in MAY_BE_EMPTY):
            empty.append(f"{where}: {concrete}")
    assert not empty, "\n".join(empty)
