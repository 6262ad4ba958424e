// SPDX-License-Identifier: Apache-2.0
// <linux/vhost.h>, as C++ can have it: without the inline functions that only C compiles, and behind virtio/spec.h,
// whose names would otherwise be macros by then.
#pragma once

#include "virtio/spec.h"
// (a block of its own keeps the order)
#define VIRTIO_RING_NO_LEGACY
#include <linux/vhost.h>
