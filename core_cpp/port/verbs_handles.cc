// SPDX-License-Identifier: Apache-2.0
#ifdef SW_HAVE_VERBS
#include "port/verbs_handles.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace sw {

namespace {

// The structs begin with what we compare; what follows (mutexes) is left alone.
struct QueuePairHead {
  ibv_context* context;
  void* qp_context;
  ibv_pd* pd;
  ibv_cq* send_cq;
  ibv_cq* recv_cq;
  ibv_srq* srq;
  uint32_t handle, number;
  uint32_t state, type;
};
static_assert(offsetof(ibv_qp, qp_num) == offsetof(QueuePairHead, number));
static_assert(offsetof(ibv_qp, qp_type) == offsetof(QueuePairHead, type));

struct WorkQueueHead {
  ibv_context* context;
  void* wq_context;
  ibv_pd* pd;
  ibv_cq* cq;
  uint32_t number, handle;
  uint32_t state, type;
  int (*post_recv)(ibv_wq*, ibv_recv_wr*, ibv_recv_wr**);
};
static_assert(offsetof(ibv_wq, wq_num) == offsetof(WorkQueueHead, number));
static_assert(offsetof(ibv_wq, post_recv) == offsetof(WorkQueueHead, post_recv));

template <class T>
bool read_own_memory(uint64_t address, T& out) {
  if (address == 0 || address % alignof(T) != 0) return false;
  const iovec to{&out, sizeof out};
  const iovec from{reinterpret_cast<void*>(address), sizeof out};
  return ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) == static_cast<ssize_t>(sizeof out);
}

template <class T>
bool context_of(const T* object, ibv_context*& context) {
  // Protection domains and completion queues begin with their context.
  return read_own_memory(reinterpret_cast<uint64_t>(object), context);
}

Error mismatch(const std::string& what, const std::string& why) {
  return {0, "take over " + what + " from pyverbs: " + why +
                 "; this version of pyverbs lays its objects out differently, install the one of your rdma-core"};
}

template <class Head>
Result<void> compare(const NicHandle& handle, const std::string& what, Head& found) {
  if (!read_own_memory(handle.pointer, found)) return mismatch(what, "its address is not readable");
  const auto differs = [&](const char* field, uint32_t there, uint32_t wanted) {
    return mismatch(what,
                    std::string(field) + " is " + std::to_string(there) + " instead of " + std::to_string(wanted));
  };
  if (found.number != handle.number) return differs("its number", found.number, handle.number);
  if (found.type != handle.type) return differs("its type", found.type, handle.type);
  if (found.state != handle.state) return differs("its state", found.state, handle.state);
  return {};
}

// All objects must be of one context; the first one names it.
Result<void> same_context(const std::string& what, ibv_context* context, std::initializer_list<const void*> parts,
                          VerbsObjects& objects) {
  if (objects.context == nullptr) objects.context = context;
  if (context != objects.context) return mismatch(what, "it belongs to another device");
  for (const void* part : parts) {
    ibv_context* its = nullptr;
    if (!context_of(part, its) || its != context) return mismatch(what, "its parts belong to another device");
  }
  return {};
}

Result<void> add_queue_pair(const NicHandle& handle, const std::string& what, VerbsObjects& objects,
                            std::vector<ibv_qp*>& list) {
  QueuePairHead found;
  if (auto same = compare(handle, what, found); !same) return same;
  if (found.type != IBV_QPT_RAW_PACKET) return mismatch(what, "it is no raw packet queue pair");
  if (auto same = same_context(what, found.context, {found.pd, found.send_cq, found.recv_cq}, objects); !same) {
    return same;
  }
  list.push_back(reinterpret_cast<ibv_qp*>(handle.pointer));
  return {};
}

Result<void> add_work_queue(const NicHandle& handle, const std::string& what, VerbsObjects& objects) {
  WorkQueueHead found;
  if (auto same = compare(handle, what, found); !same) return same;
  if (found.type != IBV_WQT_RQ || found.post_recv == nullptr) return mismatch(what, "it is no receive queue");
  if (auto same = same_context(what, found.context, {found.pd, found.cq}, objects); !same) return same;
  objects.rx_wqs.push_back(reinterpret_cast<ibv_wq*>(handle.pointer));
  return {};
}

}  // namespace

Result<VerbsObjects> check_handles(const NicHandles& handles) {
  VerbsObjects objects;
  for (size_t q = 0; q < handles.tx.size(); ++q) {
    auto added = add_queue_pair(handles.tx[q], "transmit queue " + std::to_string(q), objects, objects.tx);
    if (!added) return added.error();
  }
  for (size_t q = 0; q < handles.rx.size(); ++q) {
    const std::string what = "receive queue " + std::to_string(q);
    auto added = handles.rx_work_queues ? add_work_queue(handles.rx[q], what, objects)
                                        : add_queue_pair(handles.rx[q], what, objects, objects.rx_qps);
    if (!added) return added.error();
  }
  ibv_context context;
  if (objects.context == nullptr || !read_own_memory(reinterpret_cast<uint64_t>(objects.context), context)) {
    return mismatch("the device", "its context is not readable");
  }
  const ibv_context_ops& ops = context.ops;
  if (ops.poll_cq == nullptr || ops.post_send == nullptr || ops.post_recv == nullptr || ops.req_notify_cq == nullptr) {
    return Error{EOPNOTSUPP, "use the device: its library offers no calls to send and receive"};
  }
  return objects;
}

}  // namespace sw
#endif
