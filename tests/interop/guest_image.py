# SPDX-License-Identifier: Apache-2.0
"""The test guest: a distribution kernel and an initramfs of busybox, iperf3, ethtool and the virtio modules.

Built into build/guest under a name that is the hash of what goes in, so a second run costs nothing. The guest has a
shell on its second serial port; the first is the kernel's console.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop import needs

MODULES = ("virtio_pci", "virtio_net", "8021q")
# The ELF note XEN_ELFNOTE_PHYS32_ENTRY: sizes of name and descriptor, type, name.
PVH_NOTE = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")
PROGRAMS = (("iperf3", "iperf3"), ("ethtool", "ethtool"))
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
ip link set lo up
stty -F /dev/ttyS1 raw -echo
# A command a line, in base64: of a line sent while the machine boots half may be lost, and that must not leave a quote
# or a brace open for those that follow. Through cat, or the shell would take the line for a person and echo and prompt.
each='while read -r line; do eval "$(echo "$line" | base64 -d)"; done'
while true; do setsid sh -c "$each" </dev/ttyS1 2>&1 | cat >/dev/ttyS1; done
"""


@dataclass(frozen=True)
class Image:
    kernel: Path
    initramfs: Path


@dataclass
class Archive:
    """A cpio archive in the "new ASCII" format, the one the kernel unpacks."""

    parts: list[bytes] = field(default_factory=list)
    count: int = 0

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        self.count += 1
        encoded = name.encode() + b"\0"
        numbers = (self.count, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % number for number in numbers)
        for piece in (header + encoded, data):
            self.parts.append(piece + b"\0" * (-len(piece) % 4))

    def folder(self, name: str) -> None:
        self.add(name, 0o040755)

    def file(self, name: str, data: bytes, mode: int = 0o755) -> None:
        self.add(name, 0o100000 | mode, data)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self.parts)


def kernel() -> Path:
    found = sorted((needs.UNPACKED / "boot").glob("vmlinuz-*"))
    if not found:
        needs.lacking("no kernel for test guests", "run tools/setup.sh test")
    return found[-1]


def uncompressed(image: Path, folder: Path) -> Path:
    """The kernel in a bzImage as the file that QEMU starts without emulating its decompression, which is half of a
    boot where it is xz; kept in `folder`. The image itself where it is packed in another way or is no PVH kernel."""
    # The size of what is packed is in its last four bytes. Linux, Documentation/x86/boot.rst, payload_offset.
    data = image.read_bytes()
    start, size = struct.unpack_from("<II", data, 0x248)
    start += (data[0x1F1] + 1) * 512
    packed = data[start : start + size - 4]
    if not packed.startswith(b"\xfd7zXZ"):
        return image
    target = folder / f"{image.name.replace('vmlinuz', 'vmlinux')}-{hashlib.sha256(data).hexdigest()[:16]}"
    if not target.exists():
        kernel_file = lzma.decompress(packed)
        if not kernel_file.startswith(b"\x7fELF") or not PVH_NOTE.search(kernel_file):
            return image
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(target, kernel_file)
    return target


def write_whole(target: Path, data: bytes) -> None:
    """Nobody beside us sees half a file."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.rename(target)


def modules_of(kernel_image: Path) -> Path:
    """The folder of a kernel's modules."""
    return needs.UNPACKED / "lib/modules" / kernel_image.name.removeprefix("vmlinuz-")


def module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(
            [needs.program("zstd", "zstd"), "-dcq"], input=data, capture_output=True, check=True
        ).stdout
    return gzip.decompress(data) if path.suffix == ".gz" else data


def modules(root: Path, wanted: Iterable[str] = MODULES, extra: Iterable[Path] = ()) -> dict[str, bytes]:
    """The wanted modules and what they depend on, in the order to load them. One that is missing is built in.

    `extra` are files of modules that are not in the kernel's package; they are found by their names too.
    """
    paths = [*root.rglob("*.ko*"), *extra]
    files = {re.sub(r"\.ko.*", "", path.name).replace("-", "_"): path for path in paths}
    order: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in order or name not in files:
            return
        data = module_bytes(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in filter(None, (depends.group(1) if depends else b"").decode().split(",")):
            load(other.replace("-", "_"))
        order[name] = data

    for name in wanted:
        load(name)
    return order


def libraries(program: str) -> set[str]:
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(/\S+) \(0x", text))


def build(folder: Path) -> Image:
    image = kernel()
    version = image.name.removeprefix("vmlinuz-")
    programs = {name: needs.program(name, package) for name, package in PROGRAMS}
    programs["busybox"] = needs.program("busybox", "busybox-static")
    wanted = modules(modules_of(image))
    shared = sorted(set().union(*(libraries(path) for path in programs.values())))

    archive = Archive()
    folders = {Path("modules"), Path("bin")}
    for library in shared:
        folders.update(parent for parent in Path(library.lstrip("/")).parents if parent != Path())
    for path in sorted(folders):
        archive.folder(str(path))
    archive.file("init", INIT.encode())
    archive.file("modules/order", "\n".join(wanted).encode(), 0o644)
    for name, data in wanted.items():
        archive.file(f"modules/{name}.ko", data, 0o644)
    for name, path_text in programs.items():
        archive.file(f"bin/{name}", Path(path_text).read_bytes())
    for library in shared:
        archive.file(library.lstrip("/"), Path(library).read_bytes())
    return Image(image, store(archive.finish(), folder, f"initramfs-{version}"))


def store(data: bytes, folder: Path, name: str) -> Path:
    """The file of a finished archive in `folder`, written unless it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.cpio"
    if not target.exists():
        write_whole(target, data)
    return target
