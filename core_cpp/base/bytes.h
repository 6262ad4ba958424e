// SPDX-License-Identifier: Apache-2.0
// Unaligned loads and stores, and network byte order. The core runs on little-endian machines only.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace sw {

static_assert(std::endian::native == std::endian::little,
              "virtio 1.x fields are little-endian and are used as they are");

template <class T>
T load_unaligned(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
void store_unaligned(void* to, const T& value) {
  std::memcpy(to, &value, sizeof value);
}

inline uint16_t load_be16(const void* from) { return __builtin_bswap16(load_unaligned<uint16_t>(from)); }
inline uint32_t load_be32(const void* from) { return __builtin_bswap32(load_unaligned<uint32_t>(from)); }
inline void store_be16(void* to, uint16_t value) { store_unaligned<uint16_t>(to, __builtin_bswap16(value)); }
inline void store_be32(void* to, uint32_t value) { store_unaligned<uint32_t>(to, __builtin_bswap32(value)); }

}  // namespace sw
