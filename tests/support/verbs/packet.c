/* SPDX-License-Identifier: Apache-2.0 */
/* What a NIC reads in a frame: addresses, ports, checksums. */
#include <string.h>

#include "standin.h"

static unsigned get16(const uint8_t* at) { return (unsigned)at[0] << 8 | at[1]; }
static void put16(uint8_t* at, unsigned value) {
  at[0] = (uint8_t)(value >> 8);
  at[1] = (uint8_t)value;
}

static uint32_t sum(const uint8_t* data, unsigned bytes, uint32_t total) {
  for (unsigned i = 0; i < bytes; i += 2) {
    total += (uint32_t)data[i] << 8 | (i + 1 < bytes ? data[i + 1] : 0);
    if (total > 0xffff) total -= 0xffff;
  }
  return total;
}

static uint32_t pseudo(const uint8_t* frame, const struct parsed* p) {
  uint32_t total = p->ip == 4 ? sum(frame + p->l3 + 12, 8, 0) : sum(frame + p->l3 + 8, 32, 0);
  total += (uint32_t)p->transport + p->l4_bytes;
  return (total & 0xffff) + (total >> 16);
}

static uint32_t whole(const uint8_t* frame, const struct parsed* p) {
  return sum(frame + p->l4, p->l4_bytes, pseudo(frame, p));
}

struct parsed parse(const uint8_t* frame, unsigned bytes) {
  struct parsed p = {.l3 = 14};
  if (bytes < 14) return p;
  unsigned type = get16(frame + 12);
  if (type == 0x8100 && bytes >= 18) {
    type = get16(frame + 16);
    p.l3 = 18;
  }
  unsigned length = 0;
  int protocol = 0;
  if (type == 0x0800 && bytes >= p.l3 + 20 && frame[p.l3] >> 4 == 4) {
    p.ip = 4;
    p.l4 = p.l3 + 4u * (frame[p.l3] & 15u);
    length = get16(frame + p.l3 + 2);
    if ((get16(frame + p.l3 + 6) & 0x3fff) == 0) protocol = frame[p.l3 + 9];
  } else if (type == 0x86dd && bytes >= p.l3 + 40 && frame[p.l3] >> 4 == 6) {
    p.ip = 6;
    p.l4 = p.l3 + 40;
    length = 40 + get16(frame + p.l3 + 4);
    protocol = frame[p.l3 + 6];
  }
  const unsigned least = protocol == 6 ? 20 : 8;
  if ((protocol != 6 && protocol != 17) || p.l3 + length > bytes || p.l3 + length < p.l4 + least) return p;
  p.transport = protocol;
  p.l4_bytes = p.l3 + length - p.l4;
  return p;
}

int checksums_right(const uint8_t* frame, const struct parsed* p) {
  if (p->transport == 0) return 0;
  if (p->ip == 4 && sum(frame + p->l3, p->l4 - p->l3, 0) != 0xffff) return 0;
  if (p->transport == 17 && get16(frame + p->l4 + 6) == 0) return 0; /* none was sent */
  return whole(frame, p) == 0xffff;
}

/* Whatever the fields hold. */
void write_checksums(uint8_t* frame, const struct parsed* p) {
  if (p->ip == 4) {
    uint8_t* const header = frame + p->l3 + 10;
    put16(header, 0);
    put16(header, 0xffff - sum(frame + p->l3, p->l4 - p->l3, 0));
  }
  uint8_t* const field = frame + p->l4 + (p->transport == 6 ? 16 : 6);
  put16(field, 0);
  const uint32_t value = 0xffff - whole(frame, p);
  put16(field, value == 0 ? 0xffff : value);
}

/* Not Toeplitz: any function of the chosen fields spreads. A frame without them is hash 0. */
uint32_t flow_hash(const uint8_t* frame, const struct parsed* p, uint64_t fields) {
  uint32_t hash = 2166136261u;
  int used = 0;
  const struct {
    uint64_t field;
    int ip, transport;
    unsigned at, bytes;
  } parts[] = {{IBV_RX_HASH_SRC_IPV4, 4, 0, p->l3 + 12, 4},     {IBV_RX_HASH_DST_IPV4, 4, 0, p->l3 + 16, 4},
               {IBV_RX_HASH_SRC_IPV6, 6, 0, p->l3 + 8, 16},     {IBV_RX_HASH_DST_IPV6, 6, 0, p->l3 + 24, 16},
               {IBV_RX_HASH_SRC_PORT_TCP, 0, 6, p->l4, 2},      {IBV_RX_HASH_DST_PORT_TCP, 0, 6, p->l4 + 2, 2},
               {IBV_RX_HASH_SRC_PORT_UDP, 0, 17, p->l4, 2},     {IBV_RX_HASH_DST_PORT_UDP, 0, 17, p->l4 + 2, 2}};
  for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
    if (!(fields & parts[i].field)) continue;
    if (parts[i].ip && parts[i].ip != p->ip) continue;
    if (parts[i].transport && parts[i].transport != p->transport) continue;
    for (unsigned b = 0; b < parts[i].bytes; ++b) hash = (hash ^ frame[parts[i].at + b]) * 16777619u;
    used = 1;
  }
  return used ? hash ^ hash >> 16 : 0;
}
