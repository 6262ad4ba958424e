# SPDX-License-Identifier: Apache-2.0
"""Captured frames: as a file that others read, as lines that people read, over the API and through swctl."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, LLC, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgReader

from switch.capture import Captured, describe, file_header, line, packet, statistics
from switch.cli import main
from tests.interop import needs
from tests.interop.process import wait_until
from tests.support.daemon import Service, service

A, B = "52:54:00:00:00:01", "52:54:00:00:00:02"
FRAMES = [
    Captured(1_700_000_000_123_456_789, "rx", 0, "", 60, bytes(Ether(dst=B, src=A) / ARP()).ljust(60, b"\0")),
    Captured(
        1_700_000_001_000_000_001, "tx", 3, "ring_full", 1514, bytes(Ether(dst=A, src=B) / IP() / UDP()).ljust(61)
    ),
]


@pytest.fixture
def api(folder: Path) -> Iterator[Service]:
    with service(folder) as made:
        made.datapath.passing = list(FRAMES)
        yield made


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(api: Service, capsys: pytest.CaptureFixture[str]) -> Run:
    def swctl(*arguments: str) -> tuple[int, str, str]:
        return main(["--control", str(api.socket), "capture", *arguments]), *capsys.readouterr()

    return swctl


def read_back(data: bytes) -> list[Packet]:
    return list(PcapNgReader(io.BytesIO(data)))  # type: ignore[arg-type]


def test_scapy_reads_what_was_written() -> None:
    data = file_header("vm1") + b"".join(map(packet, FRAMES)) + statistics(7)
    found = read_back(data)
    assert [bytes(one) for one in found] == [frame.data for frame in FRAMES]
    assert [int(one.time * 10**9) for one in found] == [frame.time_ns for frame in FRAMES]
    assert [one.wirelen for one in found] == [60, 1514]
    assert [one.sniffed_on for one in found] == ["vm1", "vm1"]
    assert [one.comment for one in found] == [None, b"dropped: ring_full"]
    assert [one.direction for one in found] == [1, 2]  # inbound, outbound


@pytest.mark.parametrize("length", range(14, 22))
def test_frames_of_every_length_are_padded(length: int) -> None:
    frame = Captured(1, "rx", 0, "x" * length, length, bytes(range(length)))
    assert [bytes(one) for one in read_back(file_header("v" * length) + packet(frame) * 2)] == [frame.data] * 2


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Ether(dst=B, src=A) / ARP(), f"{A} > {B}, ARP"),
        (Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=53, dport=99),
         f"{A} > {B}, 10.0.0.1:53 > 10.0.0.2:99 UDP"),
        (Ether(dst=B, src=A) / Dot1Q(vlan=10) / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(),
         f"{A} > {B}, vlan 10, 10.0.0.1 > 10.0.0.2 ICMP"),
        (Ether(dst=B, src=A) / IPv6(src="fe80::1", dst="fe80::2") / TCP(sport=80, dport=4000),
         f"{A} > {B}, fe80::1.80 > fe80::2.4000 TCP"),
        (Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2", frag=3, proto=17) / Raw(b"12345678"),
         f"{A} > {B}, 10.0.0.1 > 10.0.0.2 UDP fragment"),
        (Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2", proto=200),
         f"{A} > {B}, 10.0.0.1 > 10.0.0.2 protocol 200"),
        (Ether(dst=B, src=A, type=0x88B5), f"{A} > {B}, type 0x88b5"),
        (Ether(dst=B, src=A, type=38) / LLC(), f"{A} > {B}, LLC"),
        (Raw(bytes.fromhex("525400000002525400000001810000")), f"{A} > {B}, type 0x8100"),
        (Raw(bytes(13)), "cut off"),
    ],
)  # fmt: skip
def test_a_frame_in_words(frame: Packet, words: str) -> None:
    assert describe(bytes(frame)) == words
    for short in range(len(bytes(frame))):  # cut anywhere
        describe(bytes(frame)[:short])


def test_a_line_says_when_where_and_why_not() -> None:
    text = line(FRAMES[1])
    assert ".000000 tx " in text
    assert text.endswith("UDP, 1514 bytes  [dropped: ring_full]")


def test_the_api_streams_objects_or_pcapng(api: Service) -> None:
    api.datapath.missed = 5
    status, text = api.ask("GET", "/v1/ports/vm1/capture?direction=tx&drops=true&snaplen=100")
    assert status == 200
    missed, *found = [json.loads(each) for each in text.splitlines()]
    assert missed == {"missed": 5}
    assert [Captured.from_dict(one) for one in found] == FRAMES
    wait_until("it is stopped", lambda: api.datapath.calls[-1][0] == "capture_stop")
    assert api.datapath.calls[-2:] == [("capture_start", "vm1 tx drops 100"), ("capture_stop", "1")]


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [("vm9/capture", 404, "vm9"), ("vm1/capture?direction=up", 400, "direction"), ("vm1/capture?count=0", 400, "count"),
     ("vm1/capture?snaplen=5", 400, "snaplen"), ("vm1/capture?format=csv", 400, "format")],
)  # fmt: skip
def test_a_capture_that_cannot_be_is_refused(api: Service, query: str, status: int, word: str) -> None:
    code, body = api.ask("GET", f"/v1/ports/{query}")
    assert code == status
    assert word in body["error"]["message"]


def test_swctl_shows_lines(run: Run) -> None:
    status, text, errors = run("vm1")
    assert (status, errors) == (0, "2 frames captured, 0 missed\n")
    assert text.splitlines() == [line(frame) for frame in FRAMES]


def test_swctl_stops_after_the_count(run: Run) -> None:
    assert run("vm1", "-c", "1")[1].splitlines() == [line(FRAMES[0])]


def test_swctl_writes_a_file(run: Run, folder: Path) -> None:
    assert run("vm1", "-w", str(folder / "x.pcapng"))[0] == 0
    assert [bytes(one) for one in read_back((folder / "x.pcapng").read_bytes())] == [frame.data for frame in FRAMES]


def test_swctl_gives_objects_to_programs(run: Run) -> None:
    status, text, errors = run("vm1", "-o", "json")
    assert (status, errors) == (0, "")
    assert [Captured.from_dict(json.loads(each)) for each in text.splitlines()] == FRAMES


def test_swctl_filters_as_tcpdump_does(run: Run, folder: Path) -> None:
    needs.program("tcpdump", "tcpdump")
    status, _, errors = run("vm1", "--filter", "udp or icmp", "-w", str(folder / "x.pcap"))
    assert (status, errors.splitlines()[-1]) == (0, "2 frames filtered, 0 missed")
    assert (folder / "x.pcap").stat().st_size > 24
    status, _, errors = run("vm1", "--filter", "prot 80")
    assert status == 1
    assert "prot 80" in errors
    assert "syntax" in errors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["vm9"], "vm9"), (["vm1", "-w", "/nonexistent/x"], "/nonexistent/x"), (["vm1", "-o", "json", "-w", "x"], "json"),
     (["vm1", "-c", "0"], "-c"), (["vm1", "--direction", "up"], "direction")],
)  # fmt: skip
def test_swctl_says_what_is_wrong(run: Run, arguments: list[str], word: str) -> None:
    status, _, errors = run(*arguments)
    assert status != 0
    assert word in errors
