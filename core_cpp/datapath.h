// SPDX-License-Identifier: Apache-2.0
// Datapath: the facade over everything in core_cpp, and all that the bindings see. Bridges, ports and workers by name;
// every call is thread-safe, and all-or-nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "l2/fdb.h"
#include "l2/policy.h"
#include "mem/arena.h"
#include "port/nic.h"
#include "port/port.h"
#include "worker/capture.h"
#include "worker/control_loop.h"
#include "worker/crew.h"

namespace sw {

struct DatapathOptions {
  std::vector<int> worker_cpus;  // one worker each; -1: not pinned
  Polling polling = Polling::kAdaptive;
  HugePages hugepages = HugePages::kAuto;
  size_t memory_bytes = 64U << 20;  // of the arena for MAC tables
  size_t huge_page_bytes = kHugePage2M;
  int numa_node = -1;          // -1: wherever the kernel likes
  uint64_t balance_ms = 5000;  // window in which the load of receive queues is measured before they are spread anew
  double balance_gain = 0.25;  // which share of its time a new spread must take off the busiest worker
};

// A port as it should be: what the port itself needs, and what the switch decides about it.
struct PortSpec {
  PortConfig config;                    // identity: a change means a new port
  std::string bridge;                   // identity
  PortPolicy policy;                    // changeable (policy.id is the datapath's)
  std::map<uint32_t, int> rx_affinity;  // receive queue -> CPU of a worker; changeable
};

struct PortView {  // what ports() tells
  std::string name, type, bridge;
  PortStatus status;
};

struct QueueView {
  uint32_t queue;
  int worker;  // who polls it; -1: nobody, and always for tx
  uint64_t frames, bytes, notifications;
};

struct PortStats {
  std::string name;
  std::vector<QueueView> rx, tx;
  std::array<uint64_t, kDropReasons> rx_drops, tx_drops;
  uint64_t replicated, forwarded, offered, segmented;
};

struct WorkerStats {
  uint32_t worker;
  int cpu, thread_id;
  double busy_seconds, idle_seconds, sleep_seconds;
  uint64_t loops, wakeups, batches, frames;
  std::array<uint64_t, kBatchBuckets> batch_frames;
  std::vector<std::string> rx_queues;  // "vm1/0"
};

struct BridgeStats {
  std::string name;
  std::array<uint32_t, 4> entries;  // by FdbOwner
  FdbStats events;
  uint32_t mac_limit, capacity, ageing_seconds;
};

struct Stats {
  std::vector<PortStats> ports;
  std::vector<WorkerStats> workers;
  std::vector<BridgeStats> bridges;
  uint64_t plan_generation;
};

struct NamedFdbEntry {
  uint16_t vlan;
  Mac mac;
  std::string port;  // empty: blackhole
  FdbOwner owner;
  uint32_t age_seconds;
};

// Which entries of a MAC table to list.
struct FdbQuery {
  std::string port;        // empty: at any
  int vlan = -1;           // -1: in any
  std::optional<Mac> mac;  // none: any
  int owner = -1;          // FdbOwner; -1: any
  size_t most = SIZE_MAX;  // the first so many by (VLAN, MAC)
};

struct FdbPage {
  std::vector<NamedFdbEntry> entries;
  size_t matched = 0;  // entries may be fewer
};

// Learned entries that differ in nothing but their address: a table of a million is kept so over a restart.
struct FdbGroup {
  uint16_t vlan;
  std::string port;
  uint32_t age_seconds;
  std::vector<Mac> macs;
};

// kind: "fdb_learned", ... (bridge, vlan, mac, port, old_port) or "port_..." (port, detail).
struct Event {
  uint64_t realtime_ns = 0;
  std::string kind, bridge, port, old_port, detail;
  uint16_t vlan = 0;
  Mac mac = 0;
};

struct CaptureView {
  std::vector<CapturedFrame> frames;
  uint64_t missed = 0;    // so far: there was no room for them
  bool attached = false;  // false: the port is gone, no more will come
};

class Datapath final : public PortHost {
 public:
  explicit Datapath(DatapathOptions options);
  ~Datapath() override;

  Result<void> start();  // memory, workers and control loop
  void stop();           // closes every port, joins every thread; idempotent
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }  // of start()

  Result<void> add_bridge(const std::string& name, uint32_t ageing_seconds, uint32_t mac_limit);
  Result<void> set_bridge(const std::string& name, uint32_t ageing_seconds, uint32_t mac_limit);
  Result<void> del_bridge(const std::string& name);  // refused while ports are in it

  Result<void> add_port(const PortSpec& spec);
  Result<void> set_port(const PortSpec& spec);  // identity must be unchanged
  Result<void> del_port(const std::string& name);
  std::vector<PortView> ports();
  Result<PortView> port(const std::string& name);
  Stats stats();
  // Rounds that each worker has made, by index. Without the control lock: whoever holds it may wait for a worker.
  [[nodiscard]] std::vector<uint64_t> worker_rounds() const;

  Result<FdbPage> fdb(const std::string& bridge, const FdbQuery& query = {});
  Result<std::vector<FdbGroup>> fdb_learned(const std::string& bridge);  // equal tables give equal lists
  // Puts the group's addresses back, with age 0, where the table has no entry for them and has room; returns how many.
  Result<uint32_t> fdb_restore(const std::string& bridge, const FdbGroup& group);
  // `port` empty: blackhole, for static entries.
  Result<void> fdb_set(const std::string& bridge, uint16_t vlan, Mac mac, const std::string& port, FdbOwner owner);
  Result<bool> fdb_del(const std::string& bridge, uint16_t vlan, Mac mac);
  Result<uint32_t> fdb_flush(const std::string& bridge, const std::string* port, int vlan, int owner);
  Result<bool> fdb_release(const std::string& bridge, uint16_t vlan, Mac mac);  // held -> learned
  uint32_t fdb_sweep();

  Result<std::vector<std::string>> explain(const std::string& port, std::span<const uint8_t> frame);

  // A copy of what passes at a port, until it is stopped. Read it often: what finds no room is missed.
  Result<uint64_t> capture_start(const std::string& port, const CaptureOptions& options);
  Result<CaptureView> capture_read(uint64_t id, size_t most);
  void capture_stop(uint64_t id);

  // Ports whose device the control plane opens: see port/nic.h for the order.
  Result<NicMemory> nic_reserve(const std::string& port, uint32_t mtu);
  Result<int> nic_attach(const std::string& port, const NicHandles& handles);
  Result<void> nic_detach(const std::string& port, const std::string& why);
  Result<void> nic_link(const std::string& port, bool up, const std::string& why);
  Result<std::string> nic_fault(const std::string& port);

  [[nodiscard]] int event_fd() const { return event_fd_.get(); }  // readable when events wait
  std::vector<Event> drain_events(size_t most);
  [[nodiscard]] uint64_t events_lost() const { return events_lost_; }

  // PortHost; under the control lock.
  EventLoop& loop() override { return control_.loop(); }
  void pause(Port& port) override;
  void resume(Port& port) override;
  void event(Port& port, const std::string& kind, const std::string& detail) override;

 private:
  struct Bridge;
  struct PortRecord;
  using Guard = std::lock_guard<std::recursive_mutex>;

  std::unique_ptr<Plan> build_plan();
  static void put_captures_before(const PortRecord& record, const PortPolicy& policy, const BridgeView& bridge,
                                  std::vector<RxQueue*>& rx, std::vector<TxQueue*>& tx, Plan& plan);
  void assign_rx_queues();
  void publish();
  void balance();
  void move_queues();
  PortRecord* find(const std::string& name);
  PortRecord* find(const Port& port);
  Result<PortId> port_in(const std::string& port, const Bridge& bridge);
  Result<NicSeat*> nic_seat(const std::string& port);
  Result<std::shared_ptr<Bridge>> find_bridge(const std::string& name);
  [[nodiscard]] std::string port_name(PortId id) const;
  Result<void> reserve_memory();
  Result<PortId> free_port_id() const;
  Result<void> check_affinity(const PortSpec& spec) const;
  void keep_event(Event event);
  void signal_events();
  void collect_fdb_events();
  PortStats port_stats(const PortRecord& record) const;
  WorkerStats worker_stats(const Worker& worker) const;

  const DatapathOptions options_;
  UniqueFd event_fd_;
  std::vector<std::string> warnings_;
  std::unique_ptr<Arena> memory_;  // before what lives in it
  ControlLoop control_;
  Crew crew_;
  bool running_ = false;
  std::map<std::string, std::shared_ptr<Bridge>> bridges_;
  std::map<std::string, std::unique_ptr<PortRecord>> ports_;
  std::vector<PortRecord*> by_id_;  // indexed by PortId
  std::deque<Event> events_;
  uint64_t events_lost_ = 0;
  std::map<uint64_t, std::shared_ptr<Capture>> captures_;
  uint64_t last_capture_ = 0;
};

}  // namespace sw
