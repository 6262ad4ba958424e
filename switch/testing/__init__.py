# SPDX-License-Identifier: Apache-2.0
"""Software guests: a virtual machine's network card without the virtual machine, for tests of and around the switch.

    from switch.testing import Guest

    def test_frames_pass():
        with Guest("/run/switch/vm1.sock") as vm1, Guest("/run/switch/vm2.sock") as vm2:
            frame = bytes.fromhex("525400000002 525400000001 0800") + bytes(46)
            vm1.send(frame)
            vm2.expect(frame)

`python -m switch.testing.traffic` sends traffic at a rate and counts what arrives.
"""

from __future__ import annotations

from switch.testing.guest import Guest, GuestError, Received, Vnet

__all__ = ["Guest", "GuestError", "Received", "Vnet"]
