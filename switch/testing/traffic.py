# SPDX-License-Identifier: Apache-2.0
"""Traffic between software guests: sends at a rate, counts what arrives, shows rates each second.

Two guests that talk to each other through a switch, on one thread::

    python -m switch.testing.traffic --socket vm1.sock --mac 52:54:00:00:00:01 --peer-mac 52:54:00:00:00:02 \\
                                     --socket vm2.sock --mac 52:54:00:00:00:02 --peer-mac 52:54:00:00:00:01

Options that describe guests may be given once for all of them or once for each.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from switch.testing.guest import GuestError, _core


def parse_mac(text: str) -> int:
    """52:54:00:00:00:01 as a number."""
    if not re.fullmatch(r"(?i)[0-9a-f]{2}([:-][0-9a-f]{2}){5}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a MAC address such as 52:54:00:00:00:01")
    return int(re.sub("[:-]", "", text), 16)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m switch.testing.traffic", description=__doc__.split("\n")[0])
    parser.add_argument("--socket", action="append", required=True, help="vhost-user socket of a port; one per guest")
    parser.add_argument("--mac", action="append", type=parse_mac, required=True, help="own address")
    parser.add_argument("--peer-mac", action="append", type=parse_mac, required=True, help="address to send to")
    parser.add_argument("--owner", choices=["switch", "guest"], default="switch", help="who listens on the sockets")
    parser.add_argument(
        "--macs", type=int, default=1, help="address pairs per guest; they differ in the three bytes before the last"
    )
    parser.add_argument("--size", type=int, default=64, help="bytes of a frame, without FCS (60 to 65535)")
    parser.add_argument("--rate", type=int, default=0, help="frames a second per guest; 0: as fast as possible")
    parser.add_argument("--burst", type=int, default=32, help="frames sent at once (1 to 64)")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds; 0: until interrupted")
    parser.add_argument("--queues", type=int, default=1, help="queue pairs per guest")
    parser.add_argument("--ring-size", type=int, default=256, help="entries of a ring")
    parser.add_argument("--packed", action="store_true", help="packed rings")
    parser.add_argument("--in-order", action="store_true", help="negotiate VIRTIO_F_IN_ORDER")
    parser.add_argument("--event-idx", action="store_true", help="negotiate VIRTIO_F_EVENT_IDX")
    parser.add_argument("--no-mergeable", action="store_true", help="do without mergeable receive buffers")
    parser.add_argument("--receive-only", action="store_true", help="only count")
    parser.add_argument("--cpu", type=int, default=-1, help="pin the thread to this CPU")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds to wait until every guest is connected")
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end instead of a table")
    given = parser.parse_args(arguments)
    for name in ("mac", "peer_mac"):
        values = getattr(given, name)
        if len(values) not in (1, len(given.socket)):
            parser.error(f"--{name.replace('_', '-')} is needed once, or once for each --socket")
        setattr(given, name, values * len(given.socket) if len(values) == 1 else values)
    return given


def make_runner(given: argparse.Namespace) -> Any:
    guests = [
        {
            "socket": path,
            "listen": given.owner == "guest",
            "queues": given.queues,
            "packed": given.packed,
            "mergeable": not given.no_mergeable,
            "in_order": given.in_order,
            "event_idx": given.event_idx,
            "ring_size": given.ring_size,
            "mac": mac,
            "peer": peer,
            "pairs": given.macs,
            "frame_bytes": given.size,
            "rate": given.rate,
            "burst": given.burst,
            "send": not given.receive_only,
        }
        for path, mac, peer in zip(given.socket, given.mac, given.peer_mac, strict=True)
    ]
    return _core().TrafficRunner(guests, given.cpu)


def rate_line(elapsed: float, before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float) -> str:
    cells = []
    for old, new in zip(before, after, strict=True):
        tx = (new["tx_frames"] - old["tx_frames"]) / seconds
        rx = (new["rx_frames"] - old["rx_frames"]) / seconds
        gbits = (new["rx_bytes"] - old["rx_bytes"]) * 8 / seconds / 1e9
        cells.append(f"tx {tx / 1e6:8.3f} Mpps  rx {rx / 1e6:8.3f} Mpps {gbits:7.2f} Gbit/s")
    return f"{elapsed:6.1f} s  " + "  |  ".join(cells)


def summary(
    given: argparse.Namespace, first: list[dict[str, Any]], last: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    guests = []
    for path, old, new in zip(given.socket, first, last, strict=True):
        counts = {
            key: new[key] - old[key]
            for key in ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "foreign", "reordered")
        }
        guests.append(
            {
                "socket": path,
                "ready": new["ready"],
                "detail": new["detail"],
                "times_ready": new["times_ready"],
                **counts,
                "tx_pps": round(counts["tx_frames"] / seconds, 1),
                "rx_pps": round(counts["rx_frames"] / seconds, 1),
            }
        )
    total = {key: sum(guest[key] for guest in guests) for key in ("tx_frames", "rx_frames", "tx_pps", "rx_pps")}
    return {"seconds": round(seconds, 3), "size": given.size, **total, "guests": guests}


class _Interrupt:
    """Ends the run early, but in order, on SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.seen = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.seen = True


def run(given: argparse.Namespace) -> int:
    interrupt = _Interrupt()
    runner = make_runner(given)
    try:
        runner.start()
    except Exception as error:  # CoreError of the compiled module: errno and message
        raise GuestError(str(error.args[-1])) from error
    try:
        deadline = time.monotonic() + given.wait
        while not runner.wait_ready(0.1):
            if interrupt.seen or time.monotonic() >= deadline:
                for path, stats in zip(given.socket, runner.stats(), strict=True):
                    if not stats["ready"]:
                        print(f"traffic: guest on {path} is not ready: {stats['detail']}", file=sys.stderr)
                return 1
        begin = time.monotonic()
        first = last = runner.stats()
        shown = begin
        while not interrupt.seen and (given.duration <= 0 or time.monotonic() < begin + given.duration):
            wake = shown + 1.0
            if given.duration > 0:
                wake = min(wake, begin + given.duration)
            time.sleep(min(0.1, max(0.0, wake - time.monotonic())))
            now = time.monotonic()
            if now - shown >= 1.0:
                stats = runner.stats()
                if not given.json:
                    print(rate_line(now - begin, last, stats, now - shown), flush=True)
                last, shown = stats, now
        seconds = max(time.monotonic() - begin, 1e-9)
        result = summary(given, first, runner.stats(), seconds)
    finally:
        runner.stop()
    if given.json:
        print(json.dumps(result), flush=True)
    else:
        print(
            f"{result['seconds']:.1f} s: {result['tx_frames']} frames sent, {result['rx_frames']} received "
            f"({result['rx_pps'] / 1e6:.3f} Mpps)"
        )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse_arguments(arguments)
    try:
        return run(given)
    except GuestError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
