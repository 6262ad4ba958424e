# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes the real daemon, and every expression that we ship is asked of it."""

from __future__ import annotations

import contextlib
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
from tests.support.pki import Pki
from tests.unit.test_grafana import GRAFANA, expressions

pytestmark = pytest.mark.interop

# Silent on a healthy switch: nothing to sum while nothing is lost or refused.
MAY_BE_EMPTY = ("restart", "drop", "lose", "lost", "losses", "events", "$")


@dataclass
class Lab:
    switch: Switchd
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        return answers(self.url, expression)


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    program = needs.program("promtool", "prometheus")
    done = subprocess.run(
        [program, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Process, str]]:
    """One that runs with this configuration, and its address."""
    program = needs.program("prometheus", "prometheus")
    listen = free_port()
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    command = [
        program, f"--config.file={file}", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{listen}",
    ]  # fmt: skip
    process = Process(command, folder / "prometheus.log")
    try:
        yield process, f"http://127.0.0.1:{listen}"
    finally:
        process.stop()


def asked(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=10) as answer:
        body = json.load(answer)
    assert body["status"] == "success", body
    return body["data"]


def answers(url: str, expression: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked(url, f"query?{urllib.parse.urlencode({'query': expression})}")["result"]
    return found


@pytest.fixture(scope="module")
def lab(module_folder: Path, cpus: tuple[int, int]) -> Iterator[Lab]:
    ports = [vhost_port(name, module_folder / f"{name}.sock") for name in ("a", "b")]
    config = yaml.safe_load((GRAFANA / "prometheus/prometheus.yml").read_text())
    config["rule_files"] = [str(GRAFANA / "prometheus/rules.yml")]
    with Switchd(module_folder, ports) as switch:
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{switch.metrics_port}"]
        with prometheus(module_folder, config) as (process, url):
            made = Lab(switch, url)

            def scraped() -> bool:
                process.check()
                try:
                    return bool(made.query('up{job="switch"} == 1'))
                except OSError:
                    return False

            wait_until("Prometheus has scraped the switch", scraped, 30.0)
            yield made


def documented_scrape() -> dict[str, Any]:
    """The scrape of a switch on another machine, as docs/metrics.md has it."""
    text = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
    config: dict[str, Any] = yaml.safe_load(text.split("```yaml\n")[-1].split("```")[0])
    return config


@pytest.mark.parametrize(
    ("token", "ca", "health", "said"),
    [
        ("eye", "ca", "up", ""),
        ("ops", "ca", "up", ""),
        ("nobody", "ca", "down", "401 Unauthorized"),
        ("eye", "other", "down", "certificate"),
    ],
)
def test_a_scrape_over_tls_with_a_token(
    folder: Path, cpus: tuple[int, int], token: str, ca: str, health: str, said: str
) -> None:
    pki = Pki(folder / "pki")
    section = pki.section(listen=f"127.0.0.1:{free_port()}")
    pki.token("nobody")
    pki.authority("other")
    switch = Switchd(folder, [vhost_port("a", folder / "a.sock")])
    switch.config["control"]["tcp"] = section
    switch.config["metrics"] = {"listen": "off"}
    config = documented_scrape()
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [section["listen"]]}]
    job["authorization"]["credentials_file"] = str(pki.folder / f"{token}.token")
    job["tls_config"]["ca_file"] = str(pki.folder / f"{ca}.pem")
    with switch, prometheus(folder, config) as (process, url):

        def target() -> Any:
            process.check()
            try:
                (found,) = asked(url, "targets")["activeTargets"]
            except (OSError, ValueError):
                return None
            return found if found["health"] == health else None

        found = wait_until(f"the target is {health}", target, 60.0)
        assert said in found["lastError"]
        assert len(answers(url, 'switch_port_up{port="a"}')) == (health == "up")


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
