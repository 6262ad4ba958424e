# SPDX-License-Identifier: Apache-2.0
"""From pyverbs' objects to the addresses of libibverbs' objects, for the core.

Since rdma-core 61 queue pairs have a property with the address. Before, and for work queues to this day, the address is
the first field that a class adds to pyverbs' base class, whose size is known. A property of the older ones that looks
like the pointer is none: it casts foreign memory to a Python object. The core compares what it finds at the address
with number, type and state below, and refuses what does not agree.
"""

from __future__ import annotations

import ctypes
from typing import Any

from switch.datapath import NicQueue
from switch.errors import NotBuilt
from switch.nic.library import Verbs

BASE_BYTES = 40  # of PyverbsCM: object header, method table, weak references, logger


def queue_pair(verbs: Verbs, qp: Any) -> NicQueue:
    own = getattr(qp, "qp", None)
    pointer = own if type(own) is int else _first_field(verbs, qp)
    return NicQueue(pointer, int(qp.qp_num), int(qp.qp_type), int(qp.qp_state))


def work_queue(verbs: Verbs, wq: Any) -> NicQueue:
    kinds = verbs.enums
    return NicQueue(_first_field(verbs, wq), int(wq.wqn), int(kinds.IBV_WQT_RQ), int(kinds.IBV_WQS_RDY))


def _first_field(verbs: Verbs, thing: Any) -> int:
    base = verbs.base.PyverbsCM
    if base.__basicsize__ != BASE_BYTES or not isinstance(thing, base):
        raise NotBuilt(
            f"this version of pyverbs is not known (its objects begin with {base.__basicsize__} bytes instead of "
            f"{BASE_BYTES}): install python3-pyverbs of a known rdma-core, 44 to 65"
        )
    return int(ctypes.c_uint64.from_address(id(thing) + BASE_BYTES).value)
