# SPDX-License-Identifier: Apache-2.0
"""The published schema, the samples and the reference page say what the models say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from switch.config import ANY_MACHINE, Machine, dump_config, load_config, parse_config
from switch.config.schema import documented, schema_text, sections, with_tables
from switch.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "configs").glob("*.yaml"))
PAGE = ROOT / "docs" / "configuration.md"


def test_the_schema_is_current() -> None:
    current = (ROOT / "switch/config/schema.json").read_text()
    assert current == schema_text(), "run: python -m switch.config.schema > switch/config/schema.json"


def test_there_are_samples() -> None:
    assert {
        "quickstart",
        "vlans",
        "libvirt",
        "uplink",
        "many-ports",
        "security",
        "workers",
        "ovs-uplink",
        "remote-control",
    } <= {path.stem for path in SAMPLES}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_is_valid(path: Path) -> None:
    config = load_config(path, ANY_MACHINE)
    assert config.ports
    assert config.port_specs(ANY_MACHINE)
    assert parse_config(dump_config(config), machine=ANY_MACHINE) == config


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_needs_no_more_than_one_cpu(path: Path) -> None:
    assert load_config(path, Machine(frozenset({0}))).datapath_options(Machine(frozenset({0}))).workers == (0,)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_tells_editors_its_schema_and_people_its_point(path: Path) -> None:
    first, second, third = path.read_text().splitlines()[:3]
    assert first == "# yaml-language-server: $schema=../switch/config/schema.json"
    assert (path.parent / first.split("=")[1]).resolve().is_file()
    assert second == "#"
    assert third.startswith("# ")


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_means_the_same_to_an_ordinary_yaml_reader(path: Path) -> None:
    text = path.read_text()
    assert parse_config(json.dumps(yaml.safe_load(text)), "json", path.parent, ANY_MACHINE) == load_config(
        path, ANY_MACHINE
    )


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_passes_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is a development extra")
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads(json.dumps(yaml.safe_load(path.read_text())))  # queue numbers become text, as in JSON
    jsonschema.Draft202012Validator(schema).validate(data)


def test_the_quickstart_has_what_make_run_relies_on() -> None:
    config = load_config(ROOT / "configs/quickstart.yaml")
    assert config.switch.workers is None
    assert config.control.socket == "/tmp/switch-quickstart/control.sock"
    assert config.metrics.listen == ("127.0.0.1", 9480)
    assert [(spec.name, spec.type, spec.socket, spec.socket_owner) for spec in config.port_specs()] == [
        ("vm1", "vhostuser", "/tmp/switch-quickstart/vm1.sock", "switch"),
        ("vm2", "vhostuser", "/tmp/switch-quickstart/vm2.sock", "switch"),
    ]


def test_the_tables_of_the_reference_page_are_current() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "run: python -m switch.config.schema --tables docs/configuration.md"


def test_the_reference_page_has_every_section() -> None:
    assert sorted(documented(PAGE.read_text())) == sorted({*sections(), "ports[]"})


def test_every_key_has_a_description() -> None:
    schema = json.loads(schema_text())
    missing = [
        f"{name}.{key}"
        for name, definition in {**schema["$defs"], "": schema}.items()
        for key, described in definition["properties"].items()
        if not described.get("description")
    ]
    assert not missing


def test_the_examples_of_the_reference_page_are_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        text = example if example.startswith("version:") else f"version: 1\n{example}"
        parse_config(text, "docs/configuration.md", ROOT / "docs", ANY_MACHINE)


def test_the_faults_of_the_reference_page_are_real() -> None:
    pairs = re.findall(r"```yaml-refused\n(.*?)```\n+```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert pairs
    for text, said in pairs:
        with pytest.raises(ConfigError) as caught:
            parse_config(text, "sw.yaml", machine=Machine(frozenset({0, 1, 2, 3})))
        assert str(caught.value) == said.rstrip("\n")
