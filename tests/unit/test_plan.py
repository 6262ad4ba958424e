# SPDX-License-Identifier: Apache-2.0
"""The plan: applied to a model of the datapath, its steps reach the wanted state and disturb nothing they need not."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.datapath import DatapathOptions, PortSpec, VlanPolicy
from switch.plan import (
    POLICY_FIELDS,
    AddBridge,
    AddPort,
    BridgeSpec,
    DelBridge,
    DelFlow,
    DelPort,
    Impact,
    ReplacePort,
    SetBridge,
    SetFlow,
    SetPort,
    State,
    StaticFlow,
    Step,
    options_changes,
    plan,
    policy_only,
)


class Model:
    """A datapath of dicts that refuses what the real one refuses."""

    def __init__(self, state: State) -> None:
        self.bridges = {bridge.name: bridge for bridge in state.bridges}
        self.ports = {port.name: port for port in state.ports}
        self.flows = {(flow.bridge, flow.vlan, flow.mac): flow.port for flow in state.flows}
        self.touched: set[str] = set()

    def add_port(self, port: PortSpec) -> None:
        assert port.name not in self.ports
        assert port.bridge in self.bridges
        for other in self.ports.values():
            assert not port.socket or port.socket != other.socket, "the socket is taken"
            assert not port.device or port.device != other.device, "the device is taken"
        self.ports[port.name] = port
        self.touched.add(port.name)

    def del_port(self, name: str) -> None:
        del self.ports[name]
        self.flows = {key: port for key, port in self.flows.items() if port != name}
        self.touched.add(name)

    def apply(self, step: Step) -> None:
        match step:
            case AddBridge(bridge):
                assert bridge.name not in self.bridges
                self.bridges[bridge.name] = bridge
            case SetBridge(old, new):
                assert self.bridges[new.name] == old
                self.bridges[new.name] = new
            case DelBridge(name):
                assert all(port.bridge != name for port in self.ports.values())
                del self.bridges[name]
                self.flows = {key: port for key, port in self.flows.items() if key[0] != name}
            case AddPort(port):
                self.add_port(port)
            case SetPort(old, new):
                assert self.ports[new.name] == old
                assert policy_only(old, new)
                self.ports[new.name] = new
                self.touched.add(new.name)
            case ReplacePort(old, new):
                assert self.ports[new.name] == old
                self.del_port(old.name)
                self.add_port(new)
            case DelPort(name):
                self.del_port(name)
            case SetFlow(flow):
                assert flow.bridge in self.bridges
                assert not flow.port or self.ports[flow.port].bridge == flow.bridge
                self.flows[flow.bridge, flow.vlan, flow.mac] = flow.port
            case DelFlow(flow):
                assert self.flows.pop((flow.bridge, flow.vlan, flow.mac)) == flow.port
            case _:
                pytest.fail(f"{step} is no step that a datapath knows")


@st.composite
def states(draw: st.DrawFn) -> State:
    """Few names, sockets and devices, so that states collide, swap and rotate them."""
    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True))
    bridges = [BridgeSpec(name, draw(st.sampled_from([300, 30])), draw(st.sampled_from([100, 200]))) for name in names]
    sockets = draw(st.permutations(["/s1", "/s2", "/s3", "/s4", "", "", ""]))
    devices = draw(st.permutations(["d1", "d2", "d3", "d4", "", "", ""]))
    ports = []
    for name in draw(st.lists(st.sampled_from(["p1", "p2", "p3", "p4", "p5"]), max_size=5, unique=True)):
        kind = draw(st.sampled_from(["vhostuser", "tap"]))
        ports.append(
            PortSpec(
                name=name,
                type=kind,
                bridge=draw(st.sampled_from(names)),
                socket=sockets.pop() if kind == "vhostuser" else "",
                device=devices.pop() if kind == "tap" else "",
                vlan=draw(st.sampled_from([VlanPolicy(), VlanPolicy(access=10), VlanPolicy(trunk=(1, 2), native=3)])),
                enabled=draw(st.booleans()),
                queues=draw(st.sampled_from([1, 2])),
            )
        )
    flows: dict[Any, StaticFlow] = {}
    for mac in draw(st.lists(st.integers(1, 4), max_size=4)):
        bridge = draw(st.sampled_from(names))
        targets = ["", *(port.name for port in ports if port.bridge == bridge)]
        flows[bridge, mac] = StaticFlow(bridge, draw(st.sampled_from([0, 10])), mac, draw(st.sampled_from(targets)))
    return State(tuple(bridges), tuple(ports), tuple(flows.values()))


@given(states(), states())
def test_the_steps_reach_the_wanted_state(running: State, wanted: State) -> None:
    model = Model(running)
    for step in plan(running, wanted):
        model.apply(step)
    reached = Model(wanted)
    assert model.bridges == reached.bridges
    assert model.ports == reached.ports
    assert model.flows == reached.flows


@given(states(), states())
def test_equal_ports_are_never_touched(running: State, wanted: State) -> None:
    model = Model(running)
    steps = plan(running, wanted)
    for step in steps:
        model.apply(step)
    before = {port.name: port for port in running.ports}
    assert not model.touched & {port.name for port in wanted.ports if before.get(port.name) == port}
    disturbed = {step.subject for step in steps if step.impact is Impact.PORT}
    assert all(
        name not in before or name in disturbed or policy_only(before[name], port)
        for name, port in model.ports.items()
        if before.get(name) != port
    )


@given(states(), states())
def test_same_in_same_out(running: State, wanted: State) -> None:
    assert plan(running, wanted) == plan(running, wanted)


@given(states(), st.randoms(use_true_random=False))
def test_equal_states_need_no_steps_in_any_order(state: State, shuffle: random.Random) -> None:
    def mixed(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(shuffle.sample(items, len(items)))

    other = State(mixed(state.bridges), mixed(state.ports), mixed(state.flows))
    assert plan(state, other) == []


BASE = PortSpec(name="vm1", type="vhostuser", bridge="br0", socket="/run/vm1.sock")
BR0 = BridgeSpec("br0")


def one_step(**changes: Any) -> Step:
    new = dataclasses.replace(BASE, **changes)
    (step,) = plan(State((BR0, BridgeSpec("br1")), (BASE,)), State((BR0, BridgeSpec("br1")), (new,)))
    return step


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("vlan", VlanPolicy(access=10), "set port vm1: vlan trunk all -> access 10"),
        ("vlan", VlanPolicy(trunk=(10, 20), native=10), "set port vm1: vlan trunk all -> trunk 10,20 native 10"),
        ("enabled", False, "set port vm1: enabled true -> false"),
        ("learning", False, "set port vm1: learning true -> false"),
        ("flood", False, "set port vm1: flood true -> false"),
        ("isolated", True, "set port vm1: isolated false -> true"),
        ("mac_limit", 5, "set port vm1: mac_limit 0 -> 5"),
        ("mtu", 9000, "set port vm1: mtu 0 -> 9000"),
        ("rx_affinity", {0: 2}, "set port vm1: rx_affinity {} -> {0: 2}"),
    ],
)
def test_policy_changes_while_frames_flow(field: str, value: Any, text: str) -> None:
    step = one_step(**{field: value})
    assert isinstance(step, SetPort)
    assert step.describe() == text
    assert step.impact is (Impact.PORT if field == "enabled" else Impact.NONE)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("type", "tap", "replace port vm1: type vhostuser -> tap"),
        ("bridge", "br1", "replace port vm1: bridge br0 -> br1"),
        ("socket", "/run/x.sock", "replace port vm1: socket /run/vm1.sock -> /run/x.sock"),
        ("socket_owner", "peer", "replace port vm1: socket_owner switch -> peer"),
        ("socket_mode", 0o660, "replace port vm1: socket_mode none -> 0660"),
        ("socket_gid", 36, "replace port vm1: socket_gid none -> 36"),
        ("queues", 4, "replace port vm1: queues 1 -> 4"),
        ("device", "eth0", "replace port vm1: device none -> eth0"),
        ("mac", 0x525400123456, "replace port vm1: mac none -> 52:54:00:12:34:56"),
        ("vhost", True, "replace port vm1: vhost false -> true"),
        ("packed", False, "replace port vm1: packed true -> false"),
        ("offloads", False, "replace port vm1: offloads true -> false"),
        ("mergeable", False, "replace port vm1: mergeable true -> false"),
        ("in_order", False, "replace port vm1: in_order true -> false"),
        ("ring_size", 512, "replace port vm1: ring_size 256 -> 512"),
        ("steering", "leftovers", "replace port vm1: steering all -> leftovers"),
        ("fanout", "qm", "replace port vm1: fanout hash -> qm"),
        ("checksum", "fix", "replace port vm1: checksum auto -> fix"),
    ],
)
def test_identity_changes_replace_the_port(field: str, value: Any, text: str) -> None:
    step = one_step(**{field: value})
    assert isinstance(step, ReplacePort)
    assert step.describe() == text
    assert step.impact is Impact.PORT


def test_every_field_of_a_port_is_policy_or_identity() -> None:
    tested = {
        argument[0]
        for test in (test_policy_changes_while_frames_flow, test_identity_changes_replace_the_port)
        for argument in test.pytestmark[0].args[1]
    }
    assert tested | {"name"} == {field.name for field in dataclasses.fields(PortSpec)}
    assert set(POLICY_FIELDS) < tested


def port(name: str, socket: str) -> PortSpec:
    return dataclasses.replace(BASE, name=name, socket=socket)


def test_ports_that_swap_their_sockets() -> None:
    running = State((BR0,), (port("a", "/1"), port("b", "/2")))
    wanted = State((BR0,), (port("a", "/2"), port("b", "/1")))
    assert [(type(step).__name__, step.subject) for step in plan(running, wanted)] == [
        ("DelPort", "a"),
        ("ReplacePort", "b"),
        ("AddPort", "a"),
    ]


def test_a_port_waits_for_the_socket_it_takes_over() -> None:
    running = State((BR0,), (port("a", "/1"), port("b", "/2"), port("c", "/3")))
    wanted = State((BR0,), (port("a", "/2"), port("b", "/3"), port("c", "/4")))
    assert [step.subject for step in plan(running, wanted)] == ["c", "b", "a"]


def test_a_new_port_comes_after_the_one_whose_socket_it_takes() -> None:
    steps = plan(State((BR0,), (port("a", "/1"),)), State((BR0,), (port("b", "/1"),)))
    assert [step.describe() for step in steps] == ["delete port a", "add port b: vhostuser /1 in bridge br0"]


def test_bridges_come_before_their_ports_and_go_after() -> None:
    moved = dataclasses.replace(BASE, bridge="new")
    steps = plan(State((BridgeSpec("br0"),), (BASE,)), State((BridgeSpec("new", 60),), (moved,)))
    assert [step.describe() for step in steps] == [
        "add bridge new",
        "replace port vm1: bridge br0 -> new",
        "delete bridge br0",
    ]


def test_a_bridge_changes_in_place() -> None:
    (step,) = plan(State((BR0,)), State((BridgeSpec("br0", 60, 100),)))
    assert isinstance(step, SetBridge)
    assert step.describe() == "set bridge br0: ageing 300 -> 60, mac_limit 65536 -> 100"
    assert step.impact is Impact.NONE


def test_flows() -> None:
    mac = 0x020000000001
    keep, move, gone = (StaticFlow("br0", vlan, mac, "vm1") for vlan in (1, 2, 0))
    moved = dataclasses.replace(move, port="")
    steps = plan(State((BR0,), (BASE,), (keep, move, gone)), State((BR0,), (BASE,), (keep, moved)))
    assert [step.describe() for step in steps] == [
        "unpin 02:00:00:00:00:01 in bridge br0",
        "pin 02:00:00:00:00:01 vlan 2 in bridge br0 as blackhole",
    ]


def test_a_replaced_port_gets_its_flows_back() -> None:
    flow = StaticFlow("br0", 0, 0x020000000001, "vm1")
    new = dataclasses.replace(BASE, queues=2)
    steps = plan(State((BR0,), (BASE,), (flow,)), State((BR0,), (new,), (flow,)))
    assert [step.describe() for step in steps] == [
        "replace port vm1: queues 1 -> 2",
        "pin 02:00:00:00:00:01 in bridge br0 to port vm1",
    ]


def test_steps_as_json() -> None:
    assert one_step(vlan=VlanPolicy(trunk=(1, 2)), rx_affinity={0: 2}).as_dict() == {
        "step": "SetPort",
        "subject": "vm1",
        "impact": "none",
        "text": "set port vm1: vlan trunk all -> trunk 1,2, rx_affinity {} -> {0: 2}",
        "changes": [
            {
                "field": "vlan",
                "old": {"access": None, "trunk": None, "native": 0},
                "new": {"access": None, "trunk": [1, 2], "native": 0},
            },
            {"field": "rx_affinity", "old": {}, "new": {"0": 2}},
        ],
    }


def test_options_cannot_change_while_running() -> None:
    running = DatapathOptions(workers=(1,))
    assert options_changes(running, DatapathOptions(workers=(1,), pin=False)) == []
    wanted = DatapathOptions(workers=(1, 2), polling="busy", memory_bytes=8 << 20)
    assert [str(change) for change in options_changes(running, wanted)] == [
        "switch.workers 1 -> 1,2",
        "switch.polling adaptive -> busy",
        "switch.memory.size 67108864 -> 8388608",
    ]
