# SPDX-License-Identifier: Apache-2.0
"""Runs on a machine with rdma_rxe: what the kernel's software RDMA can show of a `verbs` port, with nothing stood in.

It has no raw packet queue pairs, so the port itself is refused, in words that are checked. Everything below it is real:
libibverbs and pyverbs, the core's memory on huge pages registered and written by the device, addresses read out of
pyverbs' objects, completion and asynchronous events. Prints one line per finding; the test compares them.
"""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import replace
from typing import Any

from switch.datapath import DatapathOptions, NicHandles, NicQueue, PortSpec, open_datapath
from switch.errors import PortError
from switch.nic import NicKeeper
from switch.nic.library import load
from switch.nic.pointers import queue_pair

PORT = PortSpec(name="up", type="verbs", bridge="br0", device="rxe0")
QKEY, GRH_BYTES, MTU = 0x1111, 40, 1500


def main() -> None:
    for command in (
        "ip link add rd0 type dummy", "ip address add 192.0.2.1/24 dev rd0", "ip link set rd0 up",
        "rdma link add rxe0 type rxe netdev rd0", "sysctl -q vm.nr_hugepages=8",
    ):  # fmt: skip
        subprocess.run(command.split(), check=True)
    verbs = load()
    datapath = open_datapath(DatapathOptions(workers=(0,), hugepages="off", pin=False))
    datapath.start()
    datapath.add_bridge("br0", 300, 1024)
    datapath.add_port(PORT)
    try:
        refused(datapath)
        device(verbs, datapath)
    finally:
        datapath.stop()


def refused(datapath: Any) -> None:
    keeper = NicKeeper(datapath)
    try:
        keeper.added(PORT)
    except PortError as error:
        print("refused:", error.reason)
    keeper.close()


def device(verbs: Any, datapath: Any) -> None:
    e = verbs.enums
    memory = datapath.nic_reserve("up", MTU)
    print("pages:", memory.page_bytes)
    context = verbs.device.Context(name="rxe0")
    pd = verbs.pd.PD(context)
    mr = verbs.mr.MR(pd, memory.bytes, e.IBV_ACCESS_LOCAL_WRITE, address=memory.address)
    channel = verbs.cq.CompChannel(context)
    cq = verbs.cq.CQ(context, 64, None, channel, 0)
    cap = verbs.qp.QPCap(max_send_wr=16, max_recv_wr=16)
    wanted = verbs.qp.QPInitAttr(qp_type=e.IBV_QPT_UD, scq=cq, rcq=cq, cap=cap)
    attributes = verbs.qp.QPAttr(port_num=1)
    attributes.qkey = QKEY
    qp = verbs.qp.QP(pd, wanted, attributes)
    send_to_self(verbs, context, pd, mr, cq, channel, qp, memory.address)
    hand_over(verbs, datapath, mr, qp)
    events(verbs, context)
    for thing in (qp, cq, channel, mr, pd, context):
        thing.close()
    print("closed")


def send_to_self(verbs: Any, context: Any, pd: Any, mr: Any, cq: Any, channel: Any, qp: Any, address: int) -> None:
    """A datagram out of the core's memory into the core's memory, told by a completion event."""
    from pyverbs.addr import AH, AHAttr, GlobalRoute
    from pyverbs.wr import SGE, RecvWR, SendWR

    payload = bytes(range(200))
    source = address + 65536
    ctypes.memmove(source, payload, len(payload))
    cq.req_notify()
    qp.post_recv(RecvWR(wr_id=7, num_sge=1, sg=[SGE(address, 1024, mr.lkey)]))
    index = next(n for n in range(8) if "192.0.2.1" in gid_text(context, n))
    route = GlobalRoute(dgid=context.query_gid(1, index), sgid_index=index)
    ah = AH(pd, attr=AHAttr(gr=route, is_global=1, port_num=1))
    out = SendWR(wr_id=8, num_sge=1, sg=[SGE(source, len(payload), mr.lkey)])
    out.set_wr_ud(ah, qp.qp_num, QKEY)
    qp.post_send(out)
    channel.get_cq_event(cq)
    done: dict[int, int] = {}
    while len(done) < 2:
        _, completions = cq.poll(16)
        done |= {wc.wr_id: wc.status for wc in completions}
    arrived = ctypes.string_at(address + GRH_BYTES, len(payload))
    print("datagram:", done[7] == 0 and done[8] == 0 and arrived == payload)
    ah.close()


def gid_text(context: Any, index: int) -> str:
    try:
        words = str(context.query_gid(1, index)).split(":")
    except Exception:
        return ""
    return ".".join(str(int(word, 16) >> shift & 255) for word in words[-2:] for shift in (8, 0))


def hand_over(verbs: Any, datapath: Any, mr: Any, qp: Any) -> None:
    """The core finds the queue pair where pyverbs keeps it: it names what it does not like about it."""
    right = queue_pair(verbs, qp)
    for what, handle in (
        ("as it is", right),
        ("another number", replace(right, number=right.number + 1)),
        ("beside it", replace(right, pointer=right.pointer + 8)),
        ("a Python object", NicQueue(id(qp) & ~7, right.number, right.type, right.state)),
    ):
        handles = NicHandles(mr.lkey, 0, False, False, False, 0, 0, False, (handle,), (handle,), {})
        try:
            datapath.nic_attach("up", handles)
        except PortError as error:
            print(f"hand-over, {what}:", error.reason)


def events(verbs: Any, context: Any) -> None:
    """What the kernel reports when the interface goes down and up."""
    e, found = verbs.enums, []
    for state in ("down", "up"):
        subprocess.run(["ip", "link", "set", "rd0", state], check=True)
        event = context.get_async_event()
        found.append(int(event.event_type))
        event.ack()
    print("events:", found == [int(e.IBV_EVENT_PORT_ERR), int(e.IBV_EVENT_PORT_ACTIVE)])


if __name__ == "__main__":
    main()
