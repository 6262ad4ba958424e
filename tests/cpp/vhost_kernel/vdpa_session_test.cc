// SPDX-License-Identifier: Apache-2.0
#include "vhost_kernel/vdpa_session.h"

#include <doctest/doctest.h>

#include "support/fake_vdpa.h"
#include "support/temp_dir.h"

namespace sw::testing {

TEST_CASE("VdpaSession: takes a device into service in the order of the specification") {
  TempDir directory;
  FakeVdpa kernel(directory.file("d"));
  auto session = VdpaSession::start(kernel, wishes(kernel));
  REQUIRE_MESSAGE(static_cast<bool>(session), session.error().message());
  const std::vector<std::string> expected = {"owner",       "backend_features",
                                             "status 0",    "status 1",
                                             "status 3",    "features",
                                             "status 11",   "map",
                                             "map",         "map",
                                             "ring",        "ring",
                                             "config_call", "enable",
                                             "enable",      "status 15"};
  CHECK(kernel.steps == expected);
  CHECK(kernel.features == kernel.offered);
  REQUIRE(kernel.messages.size() == 3);
  CHECK(kernel.messages[0].iotlb.type == VHOST_IOTLB_BATCH_BEGIN);
  CHECK(kernel.messages[1].iotlb.type == VHOST_IOTLB_UPDATE);
  CHECK(kernel.messages[1].iotlb.perm == VHOST_ACCESS_RW);
  CHECK(kernel.messages[1].iotlb.iova == kernel.messages[1].iotlb.uaddr);
  CHECK(kernel.messages[1].iotlb.size == (*session)->memory_bytes());
  CHECK(kernel.messages[2].iotlb.type == VHOST_IOTLB_BATCH_END);
  CHECK(kernel.bases == std::vector<uint32_t>{0, 0});
  CHECK((*session)->config().mac[5] == 9);
  CHECK((*session)->link_up());
  CHECK(static_cast<bool>((*session)->check()));
}

TEST_CASE("VdpaSession: takes what the device has") {
  TempDir directory;
  FakeVdpa kernel(directory.file("d"));
  kernel.ring_size = 100;
  kernel.offered |= feature_mask(VIRTIO_F_RING_PACKED);
  auto session = VdpaSession::start(kernel, wishes(kernel));
  REQUIRE(static_cast<bool>(session));
  CHECK((*session)->ring_size() == 64);
  CHECK(kernel.bases == std::vector<uint32_t>{0x8000'8000, 0x8000'8000});
}

TEST_CASE("VdpaSession: the control queue is used for what it is needed for, where the specification puts it") {
  struct Row {
    const char* situation;
    uint64_t offered;
    uint32_t pairs;
    uint16_t device_pairs;
    std::vector<uint32_t> enabled;               // ring numbers; the last is the control queue's
    std::vector<std::vector<uint8_t>> commands;  // class, command, data
    Promiscuous promiscuous;
    const char* limits;
  };
  const uint64_t vlan = feature_mask(VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_GUEST_ANNOUNCE,
                                     VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
  const std::vector<uint8_t> promisc = {0, 0, 1};
  const Row rows[] = {
      {"no control queue", 0, 1, 4, {0, 1}, {}, Promiscuous::kNotOffered, "does not offer promiscuous mode"},
      {"one with nothing to say", kPairs | vlan, 1, 4, {0, 1}, {}, Promiscuous::kNotOffered, "VIRTIO_NET_F_CTRL_RX"},
      {"promiscuous, one pair", kPromiscuous | vlan, 1, 4, {0, 1, 2}, {promisc}, Promiscuous::kOn, ""},
      {"promiscuous, one pair of several", kPromiscuous | kPairs, 1, 4, {0, 1, 2}, {promisc}, Promiscuous::kOn, ""},
      {"two pairs of four", kPairs, 2, 4, {0, 1, 2, 3, 8}, {{4, 0, 2, 0}}, Promiscuous::kNotOffered, "other addresses"},
      {"two of two, promiscuous",
       kPromiscuous | kPairs | vlan,
       2,
       2,
       {0, 1, 2, 3, 4},
       {{4, 0, 2, 0}, promisc},
       Promiscuous::kOn,
       ""},
      {"two of 300", kPairs, 2, 300, {0, 1, 2, 3, 600}, {{4, 0, 2, 0}}, Promiscuous::kNotOffered, "other addresses"},
      {"packed",
       kPromiscuous | kPairs | feature_mask(VIRTIO_F_RING_PACKED),
       2,
       2,
       {0, 1, 2, 3, 4},
       {{4, 0, 2, 0}, promisc},
       Promiscuous::kOn,
       ""},
  };
  for (const Row& row : rows) {
    CAPTURE(std::string(row.situation));
    TempDir directory;
    FakeVdpa kernel(directory.file("d"));
    kernel.offered |= row.offered;
    kernel.config.max_virtqueue_pairs = row.device_pairs;
    kernel.control_ring = row.enabled.back();
    VdpaWishes wanted = wishes(kernel);
    wanted.queue_pairs = row.pairs;
    auto session = VdpaSession::start(kernel, wanted);
    REQUIRE_MESSAGE(static_cast<bool>(session), session.error().message());
    CHECK(kernel.enabled == row.enabled);
    std::vector<std::vector<uint8_t>> commands;
    for (const TakenCommand& taken : kernel.commands()) {
      commands.push_back({taken.command_class, taken.command});
      commands.back().insert(commands.back().end(), taken.data.begin(), taken.data.end());
    }
    CHECK(commands == row.commands);
    CHECK((kernel.features & vlan) == 0);  // without a VLAN filter every tag passes (5.1.6.5.3)
    CHECK(has_feature(kernel.features, VIRTIO_NET_F_CTRL_VQ) == !row.commands.empty());
    CHECK((*session)->queue_pairs() == row.pairs);
    CHECK((*session)->promiscuous() == row.promiscuous);
    CHECK((*session)->limits().empty() == std::string(row.limits).empty());
    CHECK((*session)->limits().find(row.limits) != std::string::npos);
    std::vector<QueueCounters> rx(row.pairs), tx(row.pairs);
    CHECK((*session)->make_queues(rx, tx).rx().size() == row.pairs);
  }
}

TEST_CASE("VdpaSession: all rings are in the address space that holds their memory") {
  struct Row {
    const char* situation;
    bool has_spaces;
    uint32_t groups;
    unsigned long failing;
    int error;
    std::vector<std::pair<uint32_t, uint32_t>> spaces;
    bool works = true;
  };
  const Row rows[] = {
      {"a kernel without address spaces", false, 2, 0, 0, {}},
      {"one group", true, 1, 0, 0, {}},
      {"the control queue is apart", true, 2, 0, 0, {{0, 0}, {0, 0}, {1, 0}}},
      {"groups cannot be asked for", true, 2, VHOST_VDPA_GET_VRING_GROUP, EOPNOTSUPP, {}},
      {"spaces cannot be chosen", true, 2, VHOST_VDPA_SET_GROUP_ASID, EOPNOTSUPP, {}},
      {"the device will not", true, 2, VHOST_VDPA_SET_GROUP_ASID, EINVAL, {}, false},
  };
  for (const Row& row : rows) {
    CAPTURE(std::string(row.situation));
    TempDir directory;
    FakeVdpa kernel(directory.file("d"));
    kernel.offered |= kPromiscuous;
    kernel.control_ring = 2;
    kernel.served = 3;  // just enough
    if (row.has_spaces) kernel.backend_features |= 1ULL << VHOST_BACKEND_F_IOTLB_ASID;
    kernel.groups = row.groups;
    kernel.failing = row.failing;
    kernel.error = row.error;
    const auto session = VdpaSession::start(kernel, wishes(kernel));
    CHECK(kernel.spaces == row.spaces);
    REQUIRE(static_cast<bool>(session) == row.works);
    if (!row.works) CHECK(session.error().message().find("address space of ring 0 of") != std::string::npos);
  }
}

TEST_CASE("VdpaSession: a device that fails its commands says which, and how") {
  struct Row {
    const char* situation;
    uint64_t offered;
    uint32_t pairs;
    void (*obey)(ControlDevice&, const TakenCommand&);
    std::vector<const char*> says;  // none: it works all the same
  };
  const auto silent = [](ControlDevice&, const TakenCommand&) {};
  const auto refuses = [](ControlDevice& device, const TakenCommand&) { device.answer(VIRTIO_NET_ERR); };
  const auto confused = [](ControlDevice& device, const TakenCommand&) { device.use(7); };
  const auto odd = [](ControlDevice& device, const TakenCommand&) { device.answer(9); };
  const Row rows[] = {
      {"never answers", kPairs, 2, silent, {"2 queue pairs", "PAIRS_SET", "did not answer within 40 ms", "queues: 1"}},
      {"refuses pairs", kPairs, 2, refuses, {"2 queue pairs", "PAIRS_SET", "refused", "queues: 1"}},
      {"another id", kPairs, 2, confused, {"PAIRS_SET", "not given"}},
      {"odd answer", kPairs, 2, odd, {"PAIRS_SET", "answered 9"}},
      {"promiscuous: never answers", kPromiscuous, 1, silent, {"every address", "PROMISC", "40 ms", "firmware"}},
      {"promiscuous: another id", kPromiscuous, 1, confused, {"PROMISC", "not given"}},
      {"promiscuous: refused", kPromiscuous, 1, refuses, {}},
  };
  for (const Row& row : rows) {
    CAPTURE(std::string(row.situation));
    TempDir directory;
    FakeVdpa kernel(directory.file("d"));
    kernel.offered |= row.offered;
    kernel.control_ring = row.pairs > 1 ? 8 : 2;
    kernel.obey = row.obey;
    VdpaWishes wanted = wishes(kernel);
    wanted.queue_pairs = row.pairs;
    wanted.answer_ms = 40;
    const auto session = VdpaSession::start(kernel, wanted);
    CHECK(kernel.commands().size() == 1);
    if (row.says.empty()) {
      REQUIRE(static_cast<bool>(session));
      CHECK((*session)->promiscuous() == Promiscuous::kRefused);
      CHECK((*session)->limits().find("refused promiscuous mode") != std::string::npos);
      CHECK((*session)->limits().find("trust on") != std::string::npos);
      continue;
    }
    REQUIRE_FALSE(static_cast<bool>(session));
    for (const char* words : row.says) {
      CHECK_MESSAGE(session.error().message().find(words) != std::string::npos, session.error().message());
    }
    CHECK(session.error().message().find(kernel.path) != std::string::npos);
  }
}

TEST_CASE("VdpaSession: memory lies where the device can see it") {
  TempDir directory;
  FakeVdpa kernel(directory.file("d"));
  kernel.range = {0, (1ULL << 32) - 1};  // below every address of ours
  kernel.backend_features = 1ULL << VHOST_BACKEND_F_IOTLB_MSG_V2;
  auto session = VdpaSession::start(kernel, wishes(kernel));
  REQUIRE_MESSAGE(static_cast<bool>(session), session.error().message());
  REQUIRE(kernel.messages.size() == 1);  // no batch without the feature
  const vhost_iotlb_msg& mapped = kernel.messages[0].iotlb;
  CHECK(mapped.iova != mapped.uaddr);
  CHECK(mapped.iova != 0);
  CHECK(mapped.iova + mapped.size - 1 <= kernel.range.last);
  for (const vhost_vring_addr& ring : kernel.addresses) {
    for (const uint64_t address : {ring.desc_user_addr, ring.avail_user_addr, ring.used_user_addr}) {
      CHECK(address >= mapped.iova);
      CHECK(address < mapped.iova + mapped.size);
    }
  }
  // And so do the buffers: the first descriptor of the receiveq.
  std::array<QueueCounters, 1> rx, tx;
  DriverDevice& queues = (*session)->make_queues(rx, tx);
  const auto* first = reinterpret_cast<const VringDesc*>(queues.memory().rings()[0].config.ring.descriptors);
  CHECK(first->addr >= mapped.iova);
  CHECK(first->addr + first->len <= mapped.iova + mapped.size);

  FakeVdpa narrow(directory.file("e"));
  narrow.range = {0, 0xffff};
  auto refused = VdpaSession::start(narrow, wishes(narrow));
  REQUIRE_FALSE(static_cast<bool>(refused));
  CHECK(refused.error().message().find("too small") != std::string::npos);
}

TEST_CASE("VdpaSession: every refusal says what was tried, why it failed and what to do") {
  struct Row {
    const char* what;
    void (*change)(FakeVdpa&);
    const char* says;
  };
  const Row rows[] = {
      {"missing", [](FakeVdpa& kernel) { kernel.open_error = ENOENT; }, "vdpa dev add"},
      {"removed", [](FakeVdpa& kernel) { kernel.open_error = ENODEV; }, "vhost_vdpa"},
      {"busy", [](FakeVdpa& kernel) { kernel.open_error = EBUSY; }, "another process"},
      {"rights", [](FakeVdpa& kernel) { kernel.open_error = EACCES; }, "permission on the file"},
      {"block device", [](FakeVdpa& kernel) { kernel.device_id = 2; }, "kind 2"},
      {"old kernel", [](FakeVdpa& kernel) { kernel.backend_features = 0; }, "IOTLB messages"},
      {"legacy", [](FakeVdpa& kernel) { kernel.offered &= ~feature_mask(VIRTIO_F_VERSION_1); }, "VIRTIO_F_VERSION_1"},
      {"no IOMMU", [](FakeVdpa& kernel) { kernel.offered &= ~feature_mask(VIRTIO_F_ACCESS_PLATFORM); },
       "VIRTIO_F_ACCESS_PLATFORM"},
      {"features", [](FakeVdpa& kernel) { kernel.refuses = kStatusFeaturesOk; }, "refused them"},
      {"start", [](FakeVdpa& kernel) { kernel.refuses = kStatusDriverOk; }, "did not accept its rings"},
      {"fewer pairs", [](FakeVdpa& kernel) { kernel.offered |= kPairs; }, "it has 4; set queues: 4, or"},
      {"one pair", [](FakeVdpa& kernel) { kernel.offered |= feature_mask(VIRTIO_NET_F_CTRL_VQ); },
       "it has 1, for it does not offer VIRTIO_NET_F_MQ with VIRTIO_NET_F_CTRL_VQ; set queues: 1"},
      {"MQ without a control queue", [](FakeVdpa& kernel) { kernel.offered |= feature_mask(VIRTIO_NET_F_MQ); },
       "set queues: 1"},
      {"fewer rings in the kernel than in the device",
       [](FakeVdpa& kernel) {
         kernel.offered |= kPairs;
         kernel.config.max_virtqueue_pairs = 5;
         kernel.served = 10;
       },
       "serves 10 rings, and 11 are needed (the control queue lies behind all pairs of the device); set queues: 1"},
      {"no room for a command",
       [](FakeVdpa& kernel) {
         kernel.offered |= kPairs;
         kernel.config.max_virtqueue_pairs = 5;
         kernel.ring_size = 1;
       },
       "too few entries for a command"},
      {"no rings", [](FakeVdpa& kernel) { kernel.ring_size = 0; }, "no entries"},
      {"memory",
       [](FakeVdpa& kernel) {
         kernel.failing = VHOST_IOTLB_UPDATE;
         kernel.error = ENOMEM;
       },
       "bytes of ring memory"},
      {"gone",
       [](FakeVdpa& kernel) {
         kernel.failing = VHOST_SET_VRING_ADDR;
         kernel.error = ENODEV;
       },
       "No such device"},
  };
  for (const Row& row : rows) {
    CAPTURE(std::string(row.what));
    TempDir directory;
    FakeVdpa kernel(directory.file("d"));
    row.change(kernel);
    VdpaWishes wanted = wishes(kernel);
    if (has_feature(kernel.offered, VIRTIO_NET_F_CTRL_VQ) || has_feature(kernel.offered, VIRTIO_NET_F_MQ)) {
      wanted.queue_pairs = 5;
    }
    const auto session = VdpaSession::start(kernel, wanted);
    REQUIRE_FALSE(static_cast<bool>(session));
    CHECK_MESSAGE(session.error().message().find(row.says) != std::string::npos, session.error().message());
    CHECK(fds_of(kernel.path) == 0);
  }
}

}  // namespace sw::testing
