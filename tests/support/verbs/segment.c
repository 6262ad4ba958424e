/* SPDX-License-Identifier: Apache-2.0 */
/* IBV_WR_TSO: what a NIC makes of headers and a payload that is too long for one frame. Knows TCP over IPv4 and IPv6 behind
 * one tag at most, as hardware does, and shares no code with the switch. */
#include <errno.h>
#include <string.h>

#include "standin.h"

enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80, LEAST_HEADER = 18 };

static unsigned get16(const uint8_t* at) { return (unsigned)at[0] << 8 | at[1]; }
static void put16(uint8_t* at, unsigned value) {
  at[0] = (uint8_t)(value >> 8);
  at[1] = (uint8_t)value;
}
static uint32_t get32(const uint8_t* at) { return (uint32_t)get16(at) << 16 | get16(at + 2); }
static void put32(uint8_t* at, uint32_t value) {
  put16(at, value >> 16);
  put16(at + 2, value & 0xffff);
}

/* Where the headers of a frame that is longer than its length field can say are. */
static struct parsed parse_headers(const uint8_t* header, unsigned bytes) {
  struct parsed p = {.l3 = get16(header + 12) == 0x8100 ? 18 : 14};
  const unsigned type = get16(header + p.l3 - 2);
  if (type == 0x0800 && bytes >= p.l3 + 20) p.ip = 4, p.l4 = p.l3 + 4u * (header[p.l3] & 15u);
  if (type == 0x86dd && bytes >= p.l3 + 40) p.ip = 6, p.l4 = p.l3 + 40;
  const int protocol = p.ip == 4 ? header[p.l3 + 9] : p.ip == 6 ? header[p.l3 + 6] : 0;
  if (protocol == 6 && bytes >= p.l4 + 20 && bytes == p.l4 + 4u * (header[p.l4 + 12] >> 4)) p.transport = 6;
  return p;
}

int send_segments(struct context* c, const struct fake_qp* qp, const struct ibv_send_wr* wr,
                  void (*out)(struct context*, const uint8_t*, unsigned)) {
  static __thread uint8_t frame[MAX_FRAME];
  const uint8_t* const header = wr->tso.hdr;
  const unsigned header_bytes = wr->tso.hdr_sz, mss = wr->tso.mss;
  const unsigned payload = wr->sg_list[0].length;
  const uint8_t* const data = (const uint8_t*)(uintptr_t)wr->sg_list[0].addr;
  if (!c->settings.tso || header_bytes < LEAST_HEADER || header_bytes > qp->max_tso_header) return EINVAL;
  if (payload > (unsigned)c->settings.tso || mss == 0) return EINVAL;
  if (wr->send_flags & IBV_SEND_INLINE) DIE("a large segment inside its request");
  if (!(wr->send_flags & IBV_SEND_IP_CSUM)) DIE("a large segment without checksums");
  const struct parsed headers = parse_headers(header, header_bytes);
  if (headers.transport != 6) DIE("the headers of a large segment are not those of TCP");
  if (headers.ip == 6 && !c->settings.csum6) DIE("a large segment over IPv6 on a device that is not known to do that");
  const unsigned interface_mtu = wire_mtu(c);
  if (header_bytes - headers.l3 + mss > interface_mtu) DIE("segments of %u bytes on a wire of %u", mss, interface_mtu);
  for (unsigned at = 0, number = 0; at < payload; at += mss, ++number) {
    const unsigned part = payload - at < mss ? payload - at : mss;
    memcpy(frame, header, header_bytes);
    memcpy(frame + header_bytes, data + at, part);
    const unsigned l3_bytes = header_bytes - headers.l3 + part;
    if (headers.ip == 4) {
      put16(frame + headers.l3 + 2, l3_bytes);
      put16(frame + headers.l3 + 4, get16(frame + headers.l3 + 4) + number);
    } else {
      put16(frame + headers.l3 + 4, l3_bytes - 40);
    }
    put32(frame + headers.l4 + 4, get32(frame + headers.l4 + 4) + at);
    if (at + part < payload) frame[headers.l4 + 13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (at > 0) frame[headers.l4 + 13] &= (uint8_t)~TCP_CWR;
    const unsigned bytes = header_bytes + part;
    const struct parsed whole = parse(frame, bytes);
    if (whole.l4 != headers.l4 || whole.transport != 6) DIE("a segment that is no TCP");
    write_checksums(frame, &whole);
    memset(frame + bytes, 0, bytes < 60 ? 60 - bytes : 0);
    out(c, frame, bytes < 60 ? 60 : bytes);
  }
  return 0;
}
