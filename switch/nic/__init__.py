# SPDX-License-Identifier: Apache-2.0
"""NICs that the control plane opens for the datapath: ibverbs raw packet queue pairs. The only importer of pyverbs.

Nothing here imports pyverbs before a port of type `verbs` is added.
"""

from switch.nic.keeper import NicKeeper

__all__ = ["NicKeeper"]
