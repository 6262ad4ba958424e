# SPDX-License-Identifier: Apache-2.0
"""A machine of its own for a script: another kernel than the host's, with the modules it names, and the host's files.

Theory of operation. QEMU boots a distribution kernel without hardware virtualisation. Its root is the host's root,
shared read-only over 9p below an overlay in memory: programs, Python and the checkout are found where they are on the
host, and everything can be written, but nothing of it outlives the machine. Only `folder` is the same on both sides.
The script's output is the machine's second serial port, which is QEMU's standard output.

By hand:  python -m tests.interop.machine --modules tun,vhost_net 'ls -l /dev/vhost-net; uname -a'
What runs in here is right or wrong, not fast or slow: every instruction is emulated.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop import guest_image, needs
from tests.interop.guest_image import Archive
from tests.interop.process import Process
from tests.interop.qemu import Nic

# What the machine itself needs: the host's files, and a writable layer above them.
OWN_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
# no_timer_check: on a busy host the emulated timer fails the trial that the kernel makes of it, which is a panic.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 no_timer_check nokaslr mitigations=off random.trust_cpu=on net.ifnames=0"
ROOT, SHARE = "host_root", "host_share"  # names of the two 9p exports
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "cannot load $module" >/dev/ttyS1; done
options=trans=virtio,version=9p2000.L,msize=512000,access=any
mount -t 9p -o ro,cache=loose,$options {ROOT} /host
mount -t tmpfs rw /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /root
for folder in proc sys dev; do mount --bind /$folder /root/$folder; done
mount -t tmpfs run /root/run
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t devpts devpts /root/dev/pts
share=$(cat /share)
mkdir -p /root$share
mount -t 9p -o cache=none,$options {SHARE} /root$share
ip link set lo up
stty -F /dev/ttyS1 raw -echo
hostname machine
cd /root
# The pipe makes the shell wait for the last byte of output.
{{ chroot /root /bin/sh $share/run; echo $? >/root$share/status; }} </dev/null 2>&1 | cat >/dev/ttyS1
umount /root$share
poweroff -f
"""


class MachineError(AssertionError):
    """The script ended with another status than 0, or the machine died."""


@dataclass(frozen=True)
class Done:
    status: int
    output: str


@dataclass(frozen=True)
class Hardware:
    """What a machine has besides its own, and what its kernel is told about it."""

    arguments: Sequence[str] = ()  # of QEMU
    kernel_options: str = ""
    prefix: Sequence[str] = ()  # put before QEMU's command, such as Netns.prefix()


class Machine:
    """What runs share: a kernel and modules. `extra` are files of modules from elsewhere, loaded by name as others."""

    def __init__(self, modules: Iterable[str], extra: Iterable[Path] = (), memory_mb: int = 768, cpus: int = 2) -> None:
        self.memory_mb, self.cpus = memory_mb, cpus
        self.kernel = self._kernel()
        self._bootable = guest_image.uncompressed(self.kernel, needs.ROOT / "build/guest")
        self._modules = guest_image.modules(guest_image.modules_of(self.kernel), [*OWN_MODULES, *modules], list(extra))
        self._busybox = Path(needs.program("busybox", "busybox-static")).read_bytes()
        self._qemu = needs.program("qemu-system-x86_64", "qemu-system-x86")

    @staticmethod
    def _kernel() -> Path:
        """A kernel that can mount the host's files: a cloud kernel cannot."""
        images = sorted((needs.UNPACKED / "boot").glob("vmlinuz-*"))
        usable = [image for image in images if any(guest_image.modules_of(image).rglob("9pnet_virtio.ko*"))]
        if not usable:
            needs.lacking("no kernel for test machines (with 9p, vhost_net, rdma_rxe)", "run tools/setup.sh test")
        return usable[-1]

    def _initramfs(self, folder: Path) -> Path:
        archive = Archive()
        for name in ("bin", "modules", "proc", "sys", "dev", "host", "rw", "root"):
            archive.folder(name)
        archive.file("bin/busybox", self._busybox)
        archive.file("init", INIT.encode())
        archive.file("modules/order", "\n".join(self._modules).encode(), 0o644)
        archive.file("share", str(folder).encode(), 0o644)
        for name, data in self._modules.items():
            archive.file(f"modules/{name}.ko", data, 0o644)
        path = folder / "initramfs"
        path.write_bytes(archive.finish())
        return path

    def start(self, script: str, folder: Path, to_terminal: bool = False, nic: Nic | None = None,
              hardware: Hardware = Hardware()) -> Process:  # fmt: skip
        """Run a shell script in the checkout. `folder` is an absolute path, shared with the machine. `nic` becomes its
        eth0; it wants the module virtio_net."""
        keep = {name: os.environ[name] for name in ("CI", "LANG", "LC_ALL") if name in os.environ}
        environment = keep | {
            "PATH": f"{Path(sys.executable).parent}:{needs.SEARCH}",
            "HOME": "/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        (folder / "run").write_text(f"{exports}cd {shlex.quote(str(needs.ROOT))}\n{script}\n")
        (folder / "status").unlink(missing_ok=True)
        share = "local,security_model=none,multidevs=remap"
        network: list[str] = []
        if nic:  # whose other end must see the machine's memory
            memory = f"memory-backend-memfd,id=mem,size={self.memory_mb}M,share=on"
            network = ["-object", memory, "-machine", "memory-backend=mem", *nic.arguments()]
        command = [
            *hardware.prefix, self._qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(self.cpus),
            "-m", str(self.memory_mb),
            "-kernel", str(self._bootable), "-initrd", str(self._initramfs(folder)),
            "-append", f"{KERNEL_OPTIONS} {hardware.kernel_options}".rstrip(),
            "-fsdev", f"{share},id=root,path=/,readonly=on", "-device", f"virtio-9p-pci,fsdev=root,mount_tag={ROOT}",
            "-fsdev", f"{share},id=share,path={folder}", "-device", f"virtio-9p-pci,fsdev=share,mount_tag={SHARE}",
            "-serial", f"file:{folder}/console", "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
            *network, *hardware.arguments,
        ]  # fmt: skip
        return Process(command, folder / "output", stdout=sys.stdout.fileno() if to_terminal else None)

    def finish(self, process: Process, folder: Path, seconds: float) -> Done:
        """Wait for a started script; MachineError if the machine was too slow or ended without a status."""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise MachineError(f"the machine did not end in {seconds:.0f} s{self._said(process, folder)}") from None
        status = folder / "status"
        if not status.exists() or not status.read_text().strip():
            raise MachineError(f"the machine ended before its script did{self._said(process, folder)}")
        return Done(int(status.read_text()), process.text() if process.log.exists() else "")

    @staticmethod
    def _said(process: Process, folder: Path) -> str:
        console = folder / "console"
        kernel = console.read_text(errors="replace")[-3000:] if console.exists() else ""
        return f"\n--- output\n{process.text()[-6000:]}\n--- console\n{kernel}"

    def run(self, script: str, folder: Path, seconds: float = 300.0) -> str:
        """The script's output; MachineError unless its status is 0."""
        done = self.finish(self.start(script, folder), folder, seconds)
        if done.status:
            raise MachineError(f"the script ended with {done.status}\n--- output\n{done.output[-8000:]}")
        return done.output


def main() -> int:
    parser = argparse.ArgumentParser(description="run a shell script on a machine with a kernel of its own")
    parser.add_argument("script", help="what sh runs there, in the checkout")
    parser.add_argument("--modules", default="", help="kernel modules to load first, with commas between")
    parser.add_argument("--extra", type=Path, action="append", default=[], help="file of a module from elsewhere")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit")
    arguments = parser.parse_args()
    machine = Machine([name for name in arguments.modules.split(",") if name], arguments.extra)
    with tempfile.TemporaryDirectory(prefix="sw-machine-") as path:
        folder = Path(path)
        begin = time.monotonic()
        done = machine.finish(machine.start(arguments.script, folder, to_terminal=True), folder, arguments.seconds)
        print(f"status {done.status} after {time.monotonic() - begin:.1f} s", file=sys.stderr)
    return done.status


if __name__ == "__main__":
    sys.exit(main())
