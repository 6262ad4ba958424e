# SPDX-License-Identifier: Apache-2.0
"""One RDMA device, opened for one port: from its name to queues that the core has taken over, and back.

Objects are kept in the order in which they were made and closed in reverse, after the core has let go of its queues:
flows, queue pairs, indirection table, work queues, completion queues, memory, protection domain, device.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from switch.datapath import Datapath, NicHandles, NicMemory, PortSpec
from switch.errors import NotBuilt, PortError
from switch.nic.library import Verbs
from switch.nic.pointers import queue_pair, work_queue
from switch.nic.steering import GENERAL_HASHING, SPECIAL_HASHINGS, Hashing, rules

log = logging.getLogger("switch.nic")

SYSFS = Path("/sys/class")
PORT = 1
MAX_INLINE = 128  # bytes; a frame that fits needs no read by the device
TSO_HEADER = 144  # bytes: Ethernet, one tag, IPv4 and TCP with all options
# As query_device names the vendor. The flag that asks for checksums is described for IPv4 alone; in requests to mlx4
# and mlx5 it is the same bits that the kernel's own drivers of these NICs set for TCP and UDP over IPv6 as well.
MELLANOX = 0x02C9
DEFAULT_MTU = 1500
TABLE_LOG = 7  # 128 places in the indirection table, as even as possible for any number of queues
# The hash key of Microsoft's specification of receive side scaling, which every NIC is tested with.
HASH_KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip


class NicDevice:
    """An open device. `close` lets go of everything, whatever state the device is in."""

    def __init__(self, verbs: Verbs, spec: PortSpec, datapath: Datapath) -> None:
        self._verbs, self._spec, self._datapath = verbs, spec, datapath
        self._objects: list[Any] = []
        self._attached = False
        self.event_fd = -1
        try:
            self._open()
        except BaseException as error:
            self.close(str(error.reason) if isinstance(error, PortError) else str(error))
            raise

    # ---- up ----

    def _open(self) -> None:
        e = self._verbs.enums
        self._context = self._keep(self._open_context())
        with self._doing("ask the device what it can"):
            self._limits = self._context.query_device()
            port = self._context.query_port(PORT)
            raw_caps, tso = self._raw_caps()
        if port.link_layer != e.IBV_LINK_LAYER_ETHERNET:
            self._fail(f"{self._spec.device} is no Ethernet device: raw packets need one")
        checksums = bool(int(self._limits.device_cap_flags) & int(e.IBV_DEVICE_RAW_IP_CSUM))
        # A device that cuts segments computes their checksums. None made with room for headers: it cuts none.
        self._tso_header = TSO_HEADER if tso and checksums else 0
        self._pd = self._keep(self._make("a protection domain", lambda: self._verbs.pd.PD(self._context)))
        memory = self._datapath.nic_reserve(self._spec.name, self._mtu())
        region = self._register(memory)
        works, pairs = (self._spread(memory) if self._spec.queues > 1 else None) or ([], [])
        plain = [self._queue_pair(memory, receives=not works and n == 0) for n in range(self._spec.queues)]
        receiving = [work_queue(self._verbs, wq) for wq in works] or [queue_pair(self._verbs, plain[0])]
        handles = NicHandles(
            lkey=int(region.lkey),
            max_inline=self._max_inline,
            rx_checksum=bool(raw_caps & int(e.IBV_RAW_PACKET_CAP_IP_CSUM)),
            tx_checksum=checksums,
            tx_checksum_v6=checksums and int(self._limits.vendor_id) == MELLANOX,
            max_tso=tso if self._tso_header else 0,
            max_tso_header=self._tso_header,
            rx_work_queues=bool(works),
            rx=tuple(receiving),
            tx=tuple(queue_pair(self._verbs, qp) for qp in plain),
            facts=self._facts(len(receiving)),
        )
        self.event_fd = self._datapath.nic_attach(self._spec.name, handles)
        self._attached = True
        os.set_blocking(self.event_fd, False)
        # Last of all: from here on frames arrive.
        self._steer(pairs or [(plain[0], GENERAL_HASHING)])
        self.check_link()

    def _open_context(self) -> Any:
        device = self._spec.device
        try:
            names = [found.name.decode() for found in self._verbs.device.get_device_list()]
        except self._verbs.Error:  # what libibverbs says where the kernel has no RDMA at all
            names = []
        if device not in names:
            below = SYSFS / "net" / device / "device/infiniband"
            if below.is_dir() and (real := sorted(path.name for path in below.iterdir())):
                self._fail(f"{device} is a network interface; give the name of its RDMA device: {real[0]}")
            there = f"there are: {', '.join(sorted(names))}" if names else "this machine has none"
            self._fail(
                f"there is no RDMA device {device}; {there} (see: rdma link, or ls /sys/class/infiniband; an mlx5 NIC "
                "needs the module mlx5_ib)"
            )
        return self._make(f"the device {device}", lambda: self._verbs.device.Context(name=device))

    def _raw_caps(self) -> tuple[int, int]:
        """IBV_RAW_PACKET_CAP_*, and how long a TCP segment the device cuts may be."""
        with contextlib.suppress(self._verbs.Error):
            found = self._context.query_device_ex()
            tso, raw = found.tso_caps, 1 << int(self._verbs.enums.IBV_QPT_RAW_PACKET)
            return int(found.raw_packet_caps), int(tso.max_tso) if int(tso.supported_qpts) & raw else 0
        return 0, 0

    def _mtu(self) -> int:
        """The largest MTU of the device's interfaces; without one, what the port says."""
        found = {}
        for path in (SYSFS / "infiniband" / self._spec.device / "device/net").glob("*/mtu"):
            with contextlib.suppress(OSError, ValueError):
                found[path.parent.name] = int(path.read_text())
        if not found:
            return self._spec.mtu or DEFAULT_MTU
        interface, mtu = max(found.items(), key=lambda pair: pair[1])
        if self._spec.mtu > mtu:
            self._fail(
                f"send frames with an MTU of {self._spec.mtu} to {self._spec.device}: its interface {interface} has "
                f"{mtu}; raise it with: ip link set dev {interface} mtu {self._spec.mtu}"
            )
        return mtu

    def _register(self, memory: NicMemory) -> Any:
        access = self._verbs.enums.IBV_ACCESS_LOCAL_WRITE

        def register() -> Any:
            return self._verbs.mr.MR(self._pd, memory.bytes, access, address=memory.address)

        return self._keep(self._make(f"{memory.bytes >> 20} MB of registered memory", register))

    def _completion_queue(self, entries: int, wake: bool) -> Any:
        channel = None
        if wake:
            channel = self._keep(self._make("a completion channel", lambda: self._verbs.cq.CompChannel(self._context)))
        entries = min(entries, int(self._limits.max_cqe))
        return self._keep(
            self._make("a completion queue", lambda: self._verbs.cq.CQ(self._context, entries, None, channel, 0))
        )

    def _queue_pair(self, memory: NicMemory, receives: bool) -> Any:
        """A raw packet queue pair that sends, and receives if nothing else does."""
        rcq = self._completion_queue(memory.rx_slots if receives else 1, wake=receives)
        scq = self._completion_queue(memory.tx_slots, wake=False)
        qps, e = self._verbs.qp, self._verbs.enums
        most = int(self._limits.max_qp_wr)

        def make(tso_header: int, inline: int) -> Any:
            cap = qps.QPCap(
                max_send_wr=min(memory.tx_slots, most), max_recv_wr=min(memory.rx_slots if receives else 1, most),
                max_send_sge=1, max_recv_sge=1, max_inline_data=inline,
            )  # fmt: skip
            if tso_header:
                fields = e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_MAX_TSO_HEADER
                wanted = qps.QPInitAttrEx(
                    qp_type=e.IBV_QPT_RAW_PACKET, scq=scq, rcq=rcq, cap=cap, sq_sig_all=0,
                    comp_mask=fields, pd=self._pd, max_tso_header=tso_header,
                )  # fmt: skip
                made = qps.QP(self._context, wanted, qps.QPAttr(port_num=PORT))
            else:
                wanted = qps.QPInitAttr(qp_type=e.IBV_QPT_RAW_PACKET, scq=scq, rcq=rcq, cap=cap, sq_sig_all=0)
                made = qps.QP(self._pd, wanted, qps.QPAttr(port_num=PORT))
            self._max_inline = int(wanted.max_inline_data)
            return made

        # Refused perhaps only for want of room in its requests: for headers, for inline data.
        for tso_header, inline in ((self._tso_header, MAX_INLINE), (0, MAX_INLINE)):
            with contextlib.suppress(self._verbs.Error):
                pair = self._keep(make(tso_header, inline))
                self._tso_header = tso_header
                return pair
        self._tso_header = 0
        return self._keep(self._make("a raw packet queue pair", lambda: make(0, 0)))

    def _spread(self, memory: NicMemory) -> tuple[list[Any], list[tuple[Any, Hashing]]] | None:
        """Work queues behind an indirection table, and the queue pairs that hash frames into it; None: not here."""
        first, wqs, e = len(self._objects), self._verbs.wq, self._verbs.enums
        try:
            works = []
            for _ in range(self._spec.queues):
                cq = self._completion_queue(memory.rx_slots, wake=True)
                wanted = wqs.WQInitAttr(
                    wq_pd=self._pd, wq_cq=cq, wq_type=e.IBV_WQT_RQ,
                    max_wr=min(memory.rx_slots, int(self._limits.max_qp_wr)), max_sge=1,
                )  # fmt: skip
                works.append(self._keep(wqs.WQ(self._context, wanted)))
                works[-1].modify(wqs.WQAttr(attr_mask=e.IBV_WQ_ATTR_STATE, wq_state=e.IBV_WQS_RDY))
            places = [works[place % len(works)] for place in range(1 << TABLE_LOG)]
            table = self._keep(wqs.RwqIndTable(self._context, wqs.RwqIndTableInitAttr(TABLE_LOG, places)))
            pairs = [(self._hashing_pair(table, GENERAL_HASHING), GENERAL_HASHING)]
        except (self._verbs.Error, PortError) as error:
            log.warning(
                "port %s: %s cannot spread received frames (%s); one queue receives",
                self._spec.name, self._spec.device, error,
            )  # fmt: skip
            self._close_from(first)
            return None
        for hashing in SPECIAL_HASHINGS:
            try:
                pairs.append((self._hashing_pair(table, hashing), hashing))
            except self._verbs.Error as error:
                log.info("port %s: %s does not hash %s (%s)", self._spec.name, self._spec.device, hashing.name, error)
        return works, pairs

    def _hashing_pair(self, table: Any, hashing: Hashing) -> Any:
        qps, e = self._verbs.qp, self._verbs.enums
        mask = 0
        for field in hashing.fields:
            mask |= int(getattr(e, field))
        conf = self._verbs.wq.RxHashConf(
            rx_hash_function=e.IBV_RX_HASH_FUNC_TOEPLITZ, rx_hash_key_len=len(HASH_KEY), rx_hash_key=list(HASH_KEY),
            rx_hash_fields_mask=mask,
        )  # fmt: skip
        fields = (
            e.IBV_QP_INIT_ATTR_CREATE_FLAGS | e.IBV_QP_INIT_ATTR_PD
            | e.IBV_QP_INIT_ATTR_RX_HASH | e.IBV_QP_INIT_ATTR_IND_TABLE
        )  # fmt: skip
        wanted = qps.QPInitAttrEx(
            qp_type=e.IBV_QPT_RAW_PACKET, comp_mask=fields, pd=self._pd, hash_conf=conf, ind_table=table
        )
        return self._keep(qps.QP(self._context, wanted))

    def _steer(self, pairs: list[tuple[Any, Hashing]]) -> None:
        for qp, hashing in pairs:
            try:
                for flow in rules(self._verbs, self._spec.steering, qp, hashing):
                    self._keep(flow)
            except self._verbs.Error as error:
                if not hashing.ip:
                    self._fail(self._why("a flow rule", error))
                log.info("port %s: no rule for %s (%s)", self._spec.name, hashing.name, error)

    def _facts(self, receiving: int) -> dict[str, str]:
        interfaces = sorted(path.name for path in (SYSFS / "infiniband" / self._spec.device / "device/net").glob("*"))
        facts = {
            "firmware": str(self._limits.fw_version),
            "steering": self._spec.steering,
            "receive_queues": f"{receiving} of {self._spec.queues}",
        }
        if interfaces:
            facts["interface"] = ", ".join(interfaces)
        return facts

    # ---- while it runs ----

    def check_link(self) -> None:
        """Tell the datapath how the port stands. PyverbsError when the device cannot say."""
        state = self._context.query_port(PORT).state
        up = state == self._verbs.enums.IBV_PORT_ACTIVE
        why = "" if up else f"the port of {self._spec.device} is not active: check the cable or the other end"
        self._datapath.nic_link(self._spec.name, up, why)

    def take_events(self) -> str:
        """Read what the device reports. The answer is why it must be opened anew; empty: it goes on."""
        e = self._verbs.enums
        reasons = {
            int(getattr(e, name)): text
            for name, text in (
                ("IBV_EVENT_DEVICE_FATAL", "the device failed or was taken away"),
                ("IBV_EVENT_QP_FATAL", "a queue pair failed"),
                ("IBV_EVENT_QP_REQ_ERR", "a queue pair failed (invalid request)"),
                ("IBV_EVENT_QP_ACCESS_ERR", "a queue pair failed (access)"),
                ("IBV_EVENT_CQ_ERR", "a completion queue overran"),
                ("IBV_EVENT_WQ_FATAL", "a work queue failed"),
            )
        }
        poller, why = select.poll(), ""
        poller.register(self.event_fd, select.POLLIN)
        while (ready := poller.poll(0)) and not why:
            if not ready[0][1] & select.POLLIN:
                return "the device was taken away"
            try:
                event = self._context.get_async_event()
            except self._verbs.Error:
                return "the device was taken away"
            kind = int(event.event_type)
            event.ack()  # or closing what the event is about would wait for ever
            if kind in (int(e.IBV_EVENT_PORT_ACTIVE), int(e.IBV_EVENT_PORT_ERR)):
                with contextlib.suppress(self._verbs.Error):
                    self.check_link()
            why = reasons.get(kind, "")
        return why

    # ---- down ----

    def close(self, why: str) -> None:
        if self._attached:
            self._attached = False
            self._datapath.nic_detach(self._spec.name, why)  # returns when no worker uses the queues
        self._close_from(0)

    def _close_from(self, first: int) -> None:
        while len(self._objects) > first:
            made = self._objects.pop()
            try:
                made.close()
            except self._verbs.Error as error:  # of a device that is gone
                log.debug("port %s: close %s: %s", self._spec.name, type(made).__name__, error)

    # ---- errors ----

    def _keep(self, made: Any) -> Any:
        self._objects.append(made)
        return made

    def _fail(self, reason: str) -> None:
        raise PortError(self._spec.name, reason)

    def _make(self, what: str, make: Any) -> Any:
        with self._doing(f"make {what}" if not what.startswith("the device") else f"open {what}"):
            return make()

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._verbs.Error as error:
            raise PortError(self._spec.name, self._why(what, error)) from None
        except NotBuilt as error:
            raise PortError(self._spec.name, str(error)) from None

    def _why(self, what: str, error: Exception) -> str:
        code = int(getattr(error, "error_code", 0) or 0)
        where = "" if self._spec.device in what else f" on {self._spec.device}"
        text = f"{what}{where}: {error}"
        if code in (errno.EPERM, errno.EACCES):
            node = f"/dev/infiniband/uverbs* of {self._spec.device}"
            return (
                f"{text}; this needs CAP_NET_RAW and the right to read and write {node} (run as root, or give the "
                "service AmbientCapabilities=CAP_NET_RAW)"
            )
        if code == errno.ENOMEM:
            soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KB"
            return f"{text}; it counts as locked memory: RLIMIT_MEMLOCK is {limit} (systemd: LimitMEMLOCK=infinity)"
        if "queue pair" in what and code in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            return f"{text}; raw packets need an mlx5 (ConnectX-4 and later) or mlx4 NIC: use type: afpacket here"
        return text
