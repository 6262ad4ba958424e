// SPDX-License-Identifier: Apache-2.0
// SIGBUS guard: keeps the process alive when a peer truncates a memory file that we have mapped.
//
// Theory of operation. A file-backed mapping faults with SIGBUS where the file no longer reaches. One process-wide
// handler looks the address up in a table of registered ranges that is written without locks (a handler may interrupt
// the writer). If it belongs to one, everything from the faulting page to the end of the range is replaced by anonymous
// zero pages and the range is flagged; the interrupted access then continues and reads zeros. The whole tail is
// replaced, not one page, and with the second fault the whole range, so that a hostile peer can cost us at most one extra
// mapping and two faults per range. Any other SIGBUS goes to the handler installed before, or to the default action.
#pragma once

#include <cstddef>

namespace sw {

// Guard [host, host + bytes), made of pages of `page_bytes` (the huge page size of hugetlb files). Returns a slot, or
// -1 when the table is full: then the range is not guarded and must not be used. Installs the handler on first use.
int sigbus_guard_add(void* host, size_t bytes, size_t page_bytes);
// Call before unmapping.
void sigbus_guard_remove(int slot);
// True once zero pages had to be put over a part of the range. Any thread; false for slot -1.
bool sigbus_guard_faulted(int slot);

}  // namespace sw
