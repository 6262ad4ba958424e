// SPDX-License-Identifier: Apache-2.0
// What a vhost-user back-end offers, and feature bits as names for people.
#pragma once

#include <cstdint>
#include <string>

namespace sw {

// The parts of the offer that configuration may take away.
struct OfferOptions {
  bool packed = true;
  bool offloads = true;  // checksum and TCP segmentation, both directions
  bool mergeable = true;
  bool in_order = true;
  bool mtu = false;  // an MTU is configured
};

// Every offered bit works: front-ends acknowledge whatever they know. The offer of a port never shrinks while it lives,
// because a guest that reconnects must find every bit it has already acknowledged.
uint64_t offered_features(const OfferOptions& options);
uint64_t offered_protocol_features();

// "csum,mrg_rxbuf,version_1" for a set of feature bits; unknown bits as "bit40".
std::string feature_names(uint64_t features);

}  // namespace sw
