// SPDX-License-Identifier: Apache-2.0
// sum_bytes in two twins, and the choice between them. Both add 32-bit words into 64-bit accumulators: no carry to handle,
// and several chains hide the latency of the adds. AVX-512 was measured and gains nothing over AVX2 here: loads bound both.
#include <immintrin.h>

#include "base/bytes.h"
#include "net/checksum.h"

namespace sw {

namespace {

uint64_t sum_base(const uint8_t* data, size_t bytes, uint64_t sum) {
  uint64_t a = sum;
  uint64_t b = 0;
  uint64_t c = 0;
  uint64_t d = 0;
  for (; bytes >= 32; bytes -= 32, data += 32) {
    const auto w0 = load_unaligned<uint64_t>(data);
    const auto w1 = load_unaligned<uint64_t>(data + 8);
    const auto w2 = load_unaligned<uint64_t>(data + 16);
    const auto w3 = load_unaligned<uint64_t>(data + 24);
    a += (w0 & 0xffffffffU) + (w0 >> 32);
    b += (w1 & 0xffffffffU) + (w1 >> 32);
    c += (w2 & 0xffffffffU) + (w2 >> 32);
    d += (w3 & 0xffffffffU) + (w3 >> 32);
  }
  for (; bytes >= 4; bytes -= 4, data += 4) a += load_unaligned<uint32_t>(data);
  if (bytes >= 2) {
    b += load_unaligned<uint16_t>(data);
    bytes -= 2;
    data += 2;
  }
  if (bytes != 0) c += *data;  // little-endian: the first byte of a word is its low half
  return a + b + c + d;
}

__attribute__((target("avx2"))) uint64_t sum_avx2(const uint8_t* data, size_t bytes, uint64_t sum) {
  const __m256i low = _mm256_set1_epi64x(0xffffffff);
  __m256i even = _mm256_setzero_si256();
  __m256i odd = _mm256_setzero_si256();
  for (; bytes >= 32; bytes -= 32, data += 32) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
    even = _mm256_add_epi64(even, _mm256_and_si256(words, low));
    odd = _mm256_add_epi64(odd, _mm256_srli_epi64(words, 32));
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(even, odd));
  return sum_base(data, bytes, sum + lanes[0] + lanes[1] + lanes[2] + lanes[3]);
}

using Sum = uint64_t (*)(const uint8_t*, size_t, uint64_t);

Sum twin(VectorLevel level) { return level == VectorLevel::kAvx2 ? sum_avx2 : sum_base; }

}  // namespace

uint64_t sum_bytes_at(VectorLevel level, const uint8_t* data, size_t bytes, uint64_t sum) {
  return twin(level)(data, bytes, sum);
}

uint64_t sum_bytes(const uint8_t* data, size_t bytes, uint64_t sum) {
  static const Sum chosen = twin(vector_level());
  return chosen(data, bytes, sum);
}

}  // namespace sw
