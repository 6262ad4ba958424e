# SPDX-License-Identifier: Apache-2.0
"""Steps are carried out all or not at all, whichever of them fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.datapath import PortSpec
from switch.errors import PortError, SwitchError
from switch.plan import BridgeSpec, State, StaticFlow, plan
from switch.reconcile import ApplyError, Reconciler
from tests.support.memory_datapath import MemoryDatapath


def port(name: str, **changes: object) -> PortSpec:
    return PortSpec(name, "vhostuser", "br0", socket=f"/run/{name}.sock", **changes)  # type: ignore[arg-type]


START = State(
    (BridgeSpec("br0"), BridgeSpec("br1")),
    (port("vm1"), port("vm2"), port("vm3")),
    (StaticFlow("br0", 10, 0x525400000001, "vm1"), StaticFlow("br0", 10, 0x525400000002, "")),
)


@pytest.fixture
def house() -> tuple[MemoryDatapath, Reconciler]:
    datapath = MemoryDatapath()
    reconciler = Reconciler(datapath)
    reconciler.start(START)
    return datapath, reconciler


def content(datapath: MemoryDatapath) -> tuple[object, ...]:
    return dict(datapath.bridges), dict(datapath.specs), dict(datapath.flows)


def test_start_finds_every_failure_not_the_first() -> None:
    datapath = MemoryDatapath()
    datapath.refuse = {"vm1": "the path is in use", "vm3": "permission denied"}
    with pytest.raises(SwitchError) as raised:
        Reconciler(datapath).start(START)
    assert "port vm1: the path is in use" in str(raised.value)
    assert "port vm3: permission denied" in str(raised.value)


def test_start_excuses_what_is_optional() -> None:
    datapath = MemoryDatapath()
    datapath.refuse = {"vm2": "the device is gone"}
    reconciler = Reconciler(datapath)
    assert reconciler.start(START, frozenset({"vm2"})) == ["port vm2: the device is gone"]
    assert set(reconciler.ports) == {"vm1", "vm3"}


def test_a_plan_is_carried_out_and_remembered(house: tuple[MemoryDatapath, Reconciler]) -> None:
    datapath, reconciler = house
    wanted = State(
        (BridgeSpec("br0", 60, 100), BridgeSpec("br2")),
        (port("vm1", isolated=True), port("vm2", queues=4), port("vm4")),
        (StaticFlow("br0", 10, 0x525400000001, "vm2"),),
    )
    reconciler.apply(plan(reconciler.running, wanted))
    assert plan(reconciler.running, wanted) == []
    assert datapath.bridges == {"br0": (60, 100), "br2": (300, 65536)}
    assert datapath.specs == {spec.name: spec for spec in wanted.ports}
    assert {key: entry.port for key, entry in datapath.flows.items()} == {("br0", 10, 0x525400000001): "vm2"}


def test_a_change_of_policy_touches_its_port_only(house: tuple[MemoryDatapath, Reconciler]) -> None:
    datapath, reconciler = house
    datapath.calls.clear()
    ports = tuple(replace(spec, mtu=9000) if spec.name == "vm2" else spec for spec in START.ports)
    reconciler.apply(plan(reconciler.running, replace(START, ports=ports)))
    assert datapath.calls == [("set_port", "vm2")]


def test_a_single_step_raises_what_the_datapath_said(house: tuple[MemoryDatapath, Reconciler]) -> None:
    datapath, reconciler = house
    datapath.refuse = {"vm4": "no such directory"}
    with pytest.raises(PortError, match="no such directory"):
        reconciler.apply(plan(START, replace(START, ports=(*START.ports, port("vm4")))))


def test_a_failed_replacement_brings_the_old_port_and_its_flows_back(
    house: tuple[MemoryDatapath, Reconciler],
) -> None:
    datapath, reconciler = house
    before = content(datapath)

    original = datapath.add_port

    def add_port(spec: PortSpec) -> None:
        if spec.queues == 9:
            raise PortError(spec.name, "nine queues are too many")
        original(spec)

    datapath.add_port = add_port  # type: ignore[method-assign]
    ports = tuple(replace(spec, queues=9) if spec.name == "vm1" else spec for spec in START.ports)
    with pytest.raises(SwitchError, match="nine queues are too many"):
        reconciler.apply(plan(reconciler.running, replace(START, ports=ports)))
    assert content(datapath) == before
    assert reconciler.ports["vm1"].queues == 1


def test_what_nobody_foresaw_is_undone_as_well(house: tuple[MemoryDatapath, Reconciler]) -> None:
    datapath, reconciler = house
    before = content(datapath)
    original = datapath.add_port

    def add_port(spec: PortSpec) -> None:
        if spec.name == "vm9":
            raise TypeError("incompatible arguments")
        original(spec)

    datapath.add_port = add_port  # type: ignore[method-assign]
    wanted = replace(START, ports=(*START.ports, port("vm8"), port("vm9")))
    with pytest.raises(ApplyError, match=r"unforeseen: TypeError.*incompatible arguments.*nothing was changed"):
        reconciler.apply(plan(reconciler.running, wanted))
    assert content(datapath) == before
    assert "vm8" not in reconciler.ports


def test_when_putting_back_fails_the_message_says_so_and_the_state_is_true(
    house: tuple[MemoryDatapath, Reconciler],
) -> None:
    datapath, reconciler = house
    wanted = replace(START, ports=(port("vm2"), port("vm3"), port("vm9")))
    steps = plan(reconciler.running, wanted)
    datapath.refuse = {"vm9": "out of memory", "vm1": "its path was taken"}
    with pytest.raises(ApplyError) as raised:
        reconciler.apply(steps)
    assert not raised.value.undone
    assert "out of memory" in str(raised.value)
    assert "its path was taken" in str(raised.value)
    assert set(reconciler.ports) == set(datapath.specs) == {"vm2", "vm3"}


names = st.sampled_from(["vm1", "vm2", "vm3", "vm4", "vm5"])
port_lists = st.lists(
    st.builds(
        lambda name, queues, isolated, bridge: PortSpec(
            name, "vhostuser", bridge, socket=f"/run/{name}.sock", queues=queues, isolated=isolated
        ),
        names,
        st.integers(1, 2),
        st.booleans(),
        st.sampled_from(["br0", "br1"]),
    ),
    unique_by=lambda spec: spec.name,
    max_size=5,
)


@st.composite
def states(draw: st.DrawFn) -> State:
    ports = draw(port_lists)
    flows = [
        StaticFlow(spec.bridge, draw(st.integers(0, 2)), 0x525400000000 + number, spec.name)
        for number, spec in enumerate(ports)
        if draw(st.booleans())
    ]
    bridges = (BridgeSpec("br0", draw(st.sampled_from([60, 300]))), BridgeSpec("br1"))
    return State(bridges, tuple(ports), tuple(flows))


@given(states(), states(), st.integers(0, 30))
def test_whichever_call_fails_the_datapath_is_as_before_or_as_wanted(old: State, new: State, fail_at: int) -> None:
    datapath = MemoryDatapath()
    try:
        reconciler = Reconciler(datapath)
        reconciler.start(old)
        before = content(datapath)
        count = 0

        def failing(name: str) -> None:
            original = getattr(datapath, name)

            def call(*arguments: object) -> object:
                nonlocal count
                count += 1
                if count == fail_at:
                    raise SwitchError("refused")
                return original(*arguments)

            setattr(datapath, name, call)

        for name in ("add_port", "set_port", "del_port", "fdb_set", "fdb_del", "set_bridge"):
            failing(name)
        try:
            reconciler.apply(plan(reconciler.running, new))
        except SwitchError:
            assert content(datapath) == before
            assert not plan(reconciler.running, old)
        else:
            assert not plan(reconciler.running, new)
            assert datapath.specs == {spec.name: spec for spec in new.ports}
    finally:
        datapath.close()
