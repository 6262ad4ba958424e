/* SPDX-License-Identifier: Apache-2.0 */
/* A libibverbs for machines without an RDMA NIC: preloaded before the real one, it answers the calls that pyverbs and the
 * core make, with raw packet queue pairs whose wire is an AF_PACKET socket on a network interface. It keeps the rules that
 * hardware keeps, and ends the process with a message when its user breaks one: bounded queues, buffers inside registered
 * memory, flow rules, no object destroyed while another uses it, no event left unacknowledged.
 *
 * Devices are the files of $VERBS_STANDIN: name = device, content = "interface=vethX active=1 rss=1 csum=1 ...". A datagram
 * to the socket NAME.events there becomes an event: port_err, port_active, fatal, qp_fatal, cq_err. Tests only. */
#ifndef STANDIN_H
#define STANDIN_H

#include <infiniband/verbs.h>

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum {
  MAX_WQS = 160,
  MAX_FLOWS = 512,
  MAX_MRS = 16,
  MAX_TABLE = 256,
  MAX_FRAME = 65536,
  INLINE_BYTES = 128,
  MAX_TSO_HEADER = 256
};

#define DIE(...) (fprintf(stderr, "verbs stand-in: " __VA_ARGS__), fputc('\n', stderr), abort())

struct settings {
  char interface[32];
  int active, rss, csum;
  int csum6;         /* it is by the vendor whose NICs compute checksums over IPv6 as well */
  int raw, ethernet; /* has raw packet queue pairs; its port is an Ethernet port */
  int max_qp_wr;
  int tso;           /* bytes of a large segment; 0: none */
  int no_tso_opcode; /* as mlx4: the device has it and ibv_post_send does not */
};

struct device {
  struct ibv_device ib;
  struct settings settings;
};

struct fake_cq {
  struct ibv_cq cq;
  struct ibv_wc* ring;
  unsigned size, head, tail; /* tail - head entries */
  int overrun, armed, unacknowledged;
  unsigned users;
};

struct receive_queue { /* of a queue pair, or a work queue */
  struct fake_cq* cq;
  struct ibv_recv_wr* wr;
  struct ibv_sge* sge;
  unsigned size, head, tail;
  uint32_t qp_num;
};

struct fake_wq {
  struct ibv_wq wq;
  struct receive_queue rq;
  unsigned users;
};

struct table {
  struct ibv_rwq_ind_table ib;
  struct fake_wq* wqs[MAX_TABLE];
  unsigned size, users;
};

struct fake_qp {
  struct ibv_qp qp;
  struct receive_queue rq; /* size 0: none */
  struct table* table;     /* spreads received frames */
  uint64_t hash_fields;
  struct fake_cq* send_cq;
  unsigned max_send, max_inline, max_tso_header, in_flight_unsignalled;
  unsigned flows;
};

struct fake_flow {
  struct ibv_flow flow;
  struct fake_qp* qp;
  int type, priority, sequence;
  struct ibv_flow_spec_eth eth;
  int ip, transport; /* 0, 4, 6; 0, 6, 17 */
};

struct context {
  struct verbs_context verbs; /* its last member is the ibv_context */
  struct device* device;
  struct settings settings;
  int wire; /* AF_PACKET */
  char events_path[512];
  struct ibv_mr* mrs[MAX_MRS];
  struct fake_flow* flows[MAX_FLOWS]; /* by priority, then age */
  unsigned flow_count, next_number, pds, cqs, qps, wqs, channels, tables;
  int dead;
  pthread_mutex_t lock;
};

struct context* context_of(struct ibv_context* ib);
int read_settings(const char* device, struct settings* out); /* 0: there is such a device */

/* wire.c */
int wire_open(struct context* context);
unsigned wire_mtu(const struct context* context);
void pump(struct context* context); /* frames off the wire into receive queues; under the lock */
int do_poll_cq(struct ibv_cq* cq, int most, struct ibv_wc* wc);
int do_req_notify(struct ibv_cq* cq, int solicited_only);
int do_post_send(struct ibv_qp* qp, struct ibv_send_wr* wr, struct ibv_send_wr** bad);
int do_post_recv(struct ibv_qp* qp, struct ibv_recv_wr* wr, struct ibv_recv_wr** bad);
int do_post_wq_recv(struct ibv_wq* wq, struct ibv_recv_wr* wr, struct ibv_recv_wr** bad);

/* segment.c: cut the large segment of `wr`, and `out` with the pieces; 0 or an errno */
int send_segments(struct context* context, const struct fake_qp* qp, const struct ibv_send_wr* wr,
                  void (*out)(struct context*, const uint8_t*, unsigned));

/* packet.c */
struct parsed {
  unsigned l3, l4, l4_bytes;
  int ip, transport;
};
struct parsed parse(const uint8_t* frame, unsigned bytes);
int checksums_right(const uint8_t* frame, const struct parsed* parsed);
void write_checksums(uint8_t* frame, const struct parsed* parsed);
uint32_t flow_hash(const uint8_t* frame, const struct parsed* parsed, uint64_t fields);

#endif
