// SPDX-License-Identifier: Apache-2.0
// A verbs device without a library: the objects of verbs.h with a table of calls of our own behind them. It keeps the
// rules that real ones keep (bounded queues, buffers inside the registered memory) and breaks them when told to.
#pragma once

#include <doctest/doctest.h>
#include <infiniband/verbs.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <memory>
#include <vector>

#include "net/offload_frames.h"
#include "port/nic.h"

namespace sw::test {

struct FakeSent {
  Bytes bytes;
  uint64_t wr_id = 0;
  unsigned flags = 0;
  size_t header = 0;  // of a large segment, and how it is to be cut
  uint16_t mss = 0;
  uintptr_t address = 0;  // of the buffer
  size_t length = 0;
};

class FakeDevice {
 public:
  explicit FakeDevice(size_t memory_bytes = 0) : memory(memory_bytes) {
    context.ops.poll_cq = [](ibv_cq* cq, int most, ibv_wc* wc) { return device(cq->cq_context).poll(cq, most, wc); };
    context.ops.req_notify_cq = [](ibv_cq* cq, int) { return ++device(cq->cq_context).notify_requests, 0; };
    context.ops.post_send = [](ibv_qp* of, ibv_send_wr* wr, ibv_send_wr** bad) {
      return device(of->qp_context).post_send(wr, bad);
    };
    context.ops.post_recv = [](ibv_qp* of, ibv_recv_wr* wr, ibv_recv_wr** bad) {
      return device(of->qp_context).post_recv(wr, bad);
    };
    context.async_fd = 77;
    for (ibv_cq* cq : {&receive_cq, &send_cq}) {
      cq->context = &context;
      cq->cq_context = this;
    }
    pd.context = &context;
    qp.context = &context;
    qp.qp_context = this;
    qp.pd = &pd;
    qp.send_cq = &send_cq;
    qp.recv_cq = &receive_cq;
    qp.qp_num = 4711;
    qp.state = IBV_QPS_RTS;
    qp.qp_type = IBV_QPT_RAW_PACKET;
    wq.context = &context;
    wq.wq_context = this;
    wq.pd = &pd;
    wq.cq = &receive_cq;
    wq.wq_num = 12;
    wq.state = IBV_WQS_RDY;
    wq.wq_type = IBV_WQT_RQ;
    wq.post_recv = [](ibv_wq* of, ibv_recv_wr* wr, ibv_recv_wr** bad) {
      return device(of->wq_context).post_recv(wr, bad);
    };
  }
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;

  // A frame off the wire into the oldest posted buffer.
  void receive(const Bytes& frame, unsigned wc_flags = 0) {
    REQUIRE(!posted.empty());
    const ibv_recv_wr wr = posted.front().wr;
    const ibv_sge sge = posted.front().sge;
    posted.pop_front();
    REQUIRE(frame.size() <= sge.length);
    std::copy(frame.begin(), frame.end(), reinterpret_cast<uint8_t*>(sge.addr));
    ibv_wc wc{};
    wc.wr_id = wr.wr_id;
    wc.byte_len = static_cast<uint32_t>(frame.size());
    wc.wc_flags = wc_flags;
    received.push_back(wc);
  }
  void complete(const ibv_wc& wc) { received.push_back(wc); }
  // Send completions for everything that asked for one.
  void finish_sends() {
    for (; finished < sent.size(); ++finished) {
      if ((sent[finished].flags & IBV_SEND_SIGNALED) == 0) continue;
      ibv_wc wc{};
      wc.wr_id = sent[finished].wr_id;
      done.push_back(wc);
    }
  }
  [[nodiscard]] NicHandle qp_handle() const {
    return {reinterpret_cast<uintptr_t>(&qp), qp.qp_num, IBV_QPT_RAW_PACKET, IBV_QPS_RTS};
  }
  [[nodiscard]] NicHandle wq_handle() const {
    return {reinterpret_cast<uintptr_t>(&wq), wq.wq_num, IBV_WQT_RQ, IBV_WQS_RDY};
  }

  struct Posted {
    ibv_recv_wr wr;
    ibv_sge sge;
  };
  static constexpr uint32_t kKey = 0x1234;

  ibv_context context{};
  ibv_pd pd{};
  ibv_cq receive_cq{}, send_cq{};
  ibv_qp qp{};
  ibv_wq wq{};
  std::vector<uint8_t> memory;          // registered
  const uint8_t* registered = nullptr;  // instead of `memory`
  size_t registered_bytes = 0;
  std::deque<Posted> posted;
  std::vector<size_t> post_calls;  // requests of each
  std::deque<ibv_wc> received, done;
  std::vector<FakeSent> sent;
  size_t finished = 0;
  int send_calls = 0;
  int notify_requests = 0;
  size_t receive_room = 1U << 20;  // requests that fit
  size_t send_room = 1U << 20;
  int receive_error = 0;              // errno of the next posts
  std::vector<size_t> refused_sends;  // these requests, counted from 0, are answered with EINVAL
  size_t send_requests = 0;
  bool refuse_all_sends = false;
  bool has_tso = true;  // ibv_post_send knows IBV_WR_TSO
  int poll_answer = 0;  // not 0: what ibv_poll_cq says whatever there is

 private:
  static FakeDevice& device(void* self) { return *static_cast<FakeDevice*>(self); }

  int poll(ibv_cq* cq, int most, ibv_wc* wc) {
    if (poll_answer != 0) return poll_answer;
    std::deque<ibv_wc>& from = cq == &send_cq ? done : received;
    int count = 0;
    for (; count < most && !from.empty(); ++count) {
      wc[count] = from.front();
      from.pop_front();
    }
    return count;
  }
  void check_registered(const ibv_sge& sge) const {
    CHECK(sge.lkey == kKey);
    const uint8_t* const first = registered != nullptr ? registered : memory.data();
    const size_t bytes = registered != nullptr ? registered_bytes : memory.size();
    const auto* const address = reinterpret_cast<const uint8_t*>(sge.addr);
    CHECK(address >= first);
    CHECK(address + sge.length <= first + bytes);
  }
  // Nothing that the device may still read is written again.
  void check_free(const ibv_sge& sge) const {
    for (size_t i = finished; i < sent.size(); ++i) {
      const bool apart = sge.addr + sge.length <= sent[i].address || sent[i].address + sent[i].length <= sge.addr;
      CHECK((apart || sent[i].address == 0));
    }
  }
  int post_recv(ibv_recv_wr* wr, ibv_recv_wr** bad) {
    size_t count = 0;
    for (; wr != nullptr; wr = wr->next, ++count) {
      const int error = receive_error != 0 ? receive_error : posted.size() >= receive_room ? ENOMEM : 0;
      if (error != 0) {
        *bad = wr;
        return error;
      }
      REQUIRE(wr->num_sge == 1);
      check_registered(*wr->sg_list);
      posted.push_back({*wr, *wr->sg_list});
    }
    post_calls.push_back(count);
    return 0;
  }
  int post_send(ibv_send_wr* wr, ibv_send_wr** bad) {
    ++send_calls;
    for (; wr != nullptr; wr = wr->next) {
      *bad = wr;
      const size_t number = send_requests++;
      if (refuse_all_sends) return EINVAL;
      for (const size_t refused : refused_sends) {
        if (refused == number) return EINVAL;
      }
      if (sent.size() - finished >= send_room) return ENOMEM;
      REQUIRE(wr->num_sge == 1);
      if (wr->opcode == IBV_WR_TSO && !has_tso) return EINVAL;
      CHECK((wr->opcode == IBV_WR_SEND || wr->opcode == IBV_WR_TSO));
      const ibv_sge& sge = *wr->sg_list;
      const bool inlined = (wr->send_flags & IBV_SEND_INLINE) != 0;
      if (!inlined) {
        check_registered(sge);
        check_free(sge);
      }
      FakeSent one{
          .wr_id = wr->wr_id, .flags = wr->send_flags, .address = inlined ? 0 : sge.addr, .length = sge.length};
      if (wr->opcode == IBV_WR_TSO) {
        const auto* const header = static_cast<const uint8_t*>(wr->tso.hdr);
        one.header = wr->tso.hdr_sz;
        one.mss = wr->tso.mss;
        one.bytes.assign(header, header + one.header);
      }
      const auto* const data = reinterpret_cast<const uint8_t*>(sge.addr);
      one.bytes.insert(one.bytes.end(), data, data + sge.length);
      sent.push_back(std::move(one));
    }
    return 0;
  }
};

}  // namespace sw::test
