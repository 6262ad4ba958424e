# SPDX-License-Identifier: Apache-2.0
"""NICs that the control plane opens: what is missing is named, and things happen in the order that memory demands."""

from __future__ import annotations

import logging
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from switch.config.values import parse_steering
from switch.datapath import PortSpec
from switch.errors import NotBuilt, PortError
from switch.nic import NicKeeper, device
from switch.nic.device import NicDevice
from switch.nic.library import load, why_missing
from switch.nic.pointers import BASE_BYTES, queue_pair, work_queue
from switch.nic.steering import SPECIAL_HASHINGS, Hashing, rules
from switch.plan import AddPort, DelPort, State
from switch.reconcile import Reconciler
from tests.support.memory_datapath import MemoryDatapath

PORT = PortSpec(name="up", type="verbs", bridge="br0", device="mlx5_0")


@pytest.mark.parametrize(
    ("error", "installed", "expected"),
    [
        (ModuleNotFoundError("No module named 'pyverbs'", name="pyverbs"), None, "apt-get install python3-pyverbs"),
        (ModuleNotFoundError("No module named 'pyverbs'", name="pyverbs"), "device.so", "but not for this Python"),
        (ModuleNotFoundError("No module named 'pyverbs'", name="pyverbs"), "device{suffix}", "does not see it: ln -s"),
        (ImportError("libibverbs.so.1: cannot open shared object file"), None, "libibverbs.so.1 is missing: apt-get"),
        (ImportError("/lib/x: version `IBVERBS_PRIVATE_57' not found"), None, "does not belong to the libibverbs"),
        (ImportError("device.so: undefined symbol: ibv_x"), None, "does not belong to the libibverbs"),
        (ImportError("bad magic"), None, "pyverbs cannot be loaded: bad magic"),
    ],
)
def test_what_is_missing_is_named(error: ImportError, installed: str | None, expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "pyverbs"
    if installed:
        folder.mkdir()
        (folder / installed.format(suffix=sysconfig.get_config_var("EXT_SUFFIX"))).touch()
    assert expected in why_missing(error, folder)


def test_loading_leaves_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def meddle(name: str) -> Any:
        logging.getLogger().addHandler(logging.NullHandler())
        logging.getLogger().setLevel(logging.DEBUG)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", meddle)
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with pytest.raises(NotBuilt, match="pyverbs"):
        load()
    assert (list(root.handlers), root.level) == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", "all"),
        ("leftovers", "leftovers"),
        (["52-54-00-00-00-0A"], "52:54:00:00:00:0a"),
        ("52:54:00:00:00:01, 52:54:00:00:00:02", "52:54:00:00:00:01,52:54:00:00:00:02"),
    ],
)
def test_steering_is_read(given: object, expected: str) -> None:
    assert parse_steering(given) == expected


@pytest.mark.parametrize("given", ["some", "", [], ["01:00:5e:00:00:01"], [5], None, True, "52:54:00:00:00:01,x"])
def test_steering_that_is_none_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"MAC address|multicast"):
        parse_steering(given)


def fake_verbs() -> Any:
    """Pyverbs' base class with the size that the real one has, and the two constants of work queues."""
    base = type("PyverbsCM", (), {"__slots__": ("a", "b", "c")})
    assert base.__basicsize__ == BASE_BYTES
    return SimpleNamespace(base=SimpleNamespace(PyverbsCM=base), enums=SimpleNamespace(IBV_WQT_RQ=0, IBV_WQS_RDY=1))


def test_a_property_with_the_address_is_used() -> None:
    qp = SimpleNamespace(qp=0x7000, qp_num=5, qp_type=8, qp_state=3)
    handle = queue_pair(fake_verbs(), qp)
    assert (handle.pointer, handle.number, handle.type, handle.state) == (0x7000, 5, 8, 3)


def test_without_one_the_address_is_the_first_field_after_the_base() -> None:
    verbs = fake_verbs()
    wq = type("WQ", (verbs.base.PyverbsCM,), {"__slots__": ("first",), "wqn": 77})()
    wq.first = value = object()
    handle = work_queue(verbs, wq)
    assert (handle.pointer, handle.number, handle.type, handle.state) == (id(value), 77, 0, 1)


def test_an_unknown_layout_is_refused() -> None:
    verbs = fake_verbs()
    with pytest.raises(NotBuilt, match="is not known"):  # not one of pyverbs' objects
        queue_pair(verbs, SimpleNamespace(qp=object(), qp_num=1, qp_type=8, qp_state=3))
    verbs.base.PyverbsCM = type("PyverbsCM", (), {"__slots__": ("a", "b", "c", "d")})
    wq = type("WQ", (verbs.base.PyverbsCM,), {"__slots__": ("first",), "wqn": 77})()
    with pytest.raises(NotBuilt, match="begin with 48 bytes instead of 40"):
        work_queue(verbs, wq)


class VerbsError(Exception):
    """What libibverbs refuses."""


def flow_library(refuse_everything_rule: bool = False) -> Any:
    """Flow rules as tuples: (kind, priority, parts)."""

    class FlowAttr:
        def __init__(self, flow_type: str, port: int, num_of_specs: int = 0, priority: int = 0) -> None:
            assert port == 1
            self.text, self.count, self.specs = (flow_type, priority), num_of_specs, []  # type: ignore[var-annotated]

    def flow(qp: str, attributes: FlowAttr) -> tuple[Any, ...]:
        assert attributes.count == len(attributes.specs)
        if refuse_everything_rule and attributes.text[0] == "normal":
            raise VerbsError("not supported")
        return (*attributes.text, *attributes.specs)

    return SimpleNamespace(
        enums=SimpleNamespace(
            IBV_FLOW_ATTR_NORMAL="normal", IBV_FLOW_ATTR_ALL_DEFAULT="default",
            IBV_FLOW_SPEC_TCP="tcp", IBV_FLOW_SPEC_UDP="udp",
        ),
        flow=SimpleNamespace(Flow=flow, FlowAttr=FlowAttr),
        spec=SimpleNamespace(
            EthSpec=lambda dst_mac, dst_mac_mask: f"{dst_mac}/{dst_mac_mask[:2]}",
            Ipv4ExtSpec=lambda: "ipv4", Ipv6Spec=lambda **_: "ipv6", TcpUdpSpec=lambda kind: kind,
        ),
        Error=VerbsError,
    )  # fmt: skip


GENERAL = Hashing("ipv4", ())
UDP6 = next(hashing for hashing in SPECIAL_HASHINGS if hashing.name == "udp6")


@pytest.mark.parametrize(
    ("steering", "hashing", "expected"),
    [
        ("all", GENERAL, [("normal", 1, "00:00:00:00:00:00/00")]),
        ("all", UDP6, [("normal", 0, "00:00:00:00:00:00/00", "ipv6", "udp")]),
        ("leftovers", GENERAL, [("default", 0)]),
        ("leftovers", UDP6, []),
        (
            "52:54:00:00:00:01,52:54:00:00:00:02",
            GENERAL,
            [
                ("normal", 1, "52:54:00:00:00:01/ff"),
                ("normal", 1, "52:54:00:00:00:02/ff"),
                ("normal", 1, "01:00:00:00:00:00/01"),
            ],
        ),
    ],
)
def test_steering_becomes_rules(steering: str, hashing: Hashing, expected: list[Any]) -> None:
    assert list(rules(flow_library(), steering, "qp", hashing)) == expected


def test_a_device_without_a_rule_for_everything_gets_the_default_rule() -> None:
    assert list(rules(flow_library(True), "all", "qp")) == [("default", 0)]
    with pytest.raises(VerbsError):
        list(rules(flow_library(True), "52:54:00:00:00:01", "qp"))


@pytest.fixture
def datapath() -> Any:
    made = MemoryDatapath()
    made.add_bridge("br0", 300, 1024)
    yield made
    made.close()


def test_without_pyverbs_the_port_is_refused_and_nothing_stays(datapath: MemoryDatapath) -> None:
    def missing() -> Any:
        raise NotBuilt("pyverbs is not installed: apt-get install python3-pyverbs")

    keeper = NicKeeper(datapath, missing)
    reconciler = Reconciler(datapath, keeper)
    with pytest.raises(PortError, match="port up: pyverbs is not installed"):
        reconciler.apply([AddPort(PORT)])
    assert datapath.specs == {}
    assert reconciler.running == State()
    keeper.close()


class Helper:
    """Records what the reconciler tells."""

    def __init__(self, datapath: MemoryDatapath) -> None:
        self.calls = datapath.calls

    def added(self, spec: PortSpec) -> None:
        self.calls.append(("helper_added", spec.name))

    def changed(self, spec: PortSpec) -> None:
        self.calls.append(("helper_changed", spec.name))

    def leaving(self, name: str) -> None:
        self.calls.append(("helper_leaving", name))


def test_a_device_comes_after_its_port_and_goes_before_it(datapath: MemoryDatapath) -> None:
    reconciler = Reconciler(datapath, Helper(datapath))
    datapath.calls.clear()
    reconciler.apply([AddPort(PORT)])
    reconciler.apply([DelPort("up")])
    assert datapath.calls == [
        ("add_port", "up"),
        ("helper_added", "up"),
        ("helper_leaving", "up"),
        ("del_port", "up"),
    ]


def test_other_kinds_of_ports_need_no_device(datapath: MemoryDatapath) -> None:
    def never() -> Any:
        raise AssertionError("pyverbs is loaded for verbs ports only")

    keeper = NicKeeper(datapath, never)
    keeper.added(PortSpec(name="vm1", type="vhostuser", bridge="br0", socket="/run/vm1.sock"))
    keeper.tick()
    keeper.ready()
    keeper.leaving("vm1")
    keeper.close()


MTU_ROWS = [
    # of the port, of the device's interfaces, of the queues
    (0, {}, 1500),
    (9000, {}, 9000),
    (0, {"eth1": 9000}, 9000),
    (1400, {"eth1": 1500}, 1500),  # the switch keeps to the port's own, as with every kind
    (0, {"eth1": 1500, "eth2": 4000}, 4000),
]


def device_with(monkeypatch: pytest.MonkeyPatch, folder: Path, mtu: int, interfaces: dict[str, int]) -> NicDevice:
    monkeypatch.setattr(device, "SYSFS", folder)
    for name, own in interfaces.items():
        file = folder / "infiniband/mlx5_0/device/net" / name / "mtu"
        file.parent.mkdir(parents=True)
        file.write_text(f"{own}\n")
    made = NicDevice.__new__(NicDevice)
    made._spec = PortSpec(name="up", type="verbs", bridge="br0", device="mlx5_0", mtu=mtu)
    return made


@pytest.mark.parametrize("row", MTU_ROWS)
def test_the_largest_mtu_of_the_devices_interfaces_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: tuple[int, dict[str, int], int]
) -> None:
    assert device_with(monkeypatch, tmp_path, row[0], row[1])._mtu() == row[2]


def test_an_mtu_beyond_the_interface_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(PortError, match="interface eth1 has 1500; raise it with: ip link set dev eth1 mtu 9000"):
        device_with(monkeypatch, tmp_path, 9000, {"eth1": 1500})._mtu()
