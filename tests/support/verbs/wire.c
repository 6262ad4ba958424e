/* SPDX-License-Identifier: Apache-2.0 */
/* Frames: from the socket by flow rules and hash into receive queues, and from send queues to the socket. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "standin.h"

int wire_open(struct context* c) {
  c->wire = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->wire < 0) return errno;
  const int one = 1, bytes = 16 << 20;
  setsockopt(c->wire, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one);
  setsockopt(c->wire, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
  address.sll_ifindex = (int)if_nametoindex(c->settings.interface);
  const struct packet_mreq promiscuous = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
  setsockopt(c->wire, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous);
  if (address.sll_ifindex == 0 || bind(c->wire, (struct sockaddr*)&address, sizeof address) != 0) {
    close(c->wire);
    return ENODEV;
  }
  setsockopt(c->wire, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one);
  return 0;
}

static void complete(struct fake_cq* cq, const struct ibv_wc* wc) {
  if (cq->tail - cq->head == cq->size) {
    cq->overrun = 1;
    return;
  }
  cq->ring[cq->tail++ % cq->size] = *wc;
}

static const struct ibv_mr* region(struct context* c, const struct ibv_sge* sge) {
  for (int i = 0; i < MAX_MRS; ++i) {
    const struct ibv_mr* const mr = c->mrs[i];
    if (mr && mr->lkey == sge->lkey && sge->addr >= (uintptr_t)mr->addr &&
        sge->addr + sge->length <= (uintptr_t)mr->addr + mr->length) {
      return mr;
    }
  }
  return NULL;
}

static int matches(const struct fake_flow* flow, const uint8_t* frame, const struct parsed* p) {
  if (flow->type == IBV_FLOW_ATTR_ALL_DEFAULT) return 1;
  for (int i = 0; i < 6; ++i) {
    if ((frame[i] ^ flow->eth.val.dst_mac[i]) & flow->eth.mask.dst_mac[i]) return 0;
  }
  return (!flow->ip || flow->ip == p->ip) && (!flow->transport || flow->transport == p->transport);
}

static void deliver(struct context* c, const uint8_t* frame, unsigned bytes) {
  const struct parsed p = parse(frame, bytes);
  struct fake_qp* qp = NULL;
  for (unsigned i = 0; i < c->flow_count && !qp; ++i) {
    if (matches(c->flows[i], frame, &p)) qp = c->flows[i]->qp;
  }
  if (!qp) return; /* the kernel's */
  struct receive_queue* rq = &qp->rq;
  if (qp->table) rq = &qp->table->wqs[flow_hash(frame, &p, qp->hash_fields) % qp->table->size]->rq;
  if (rq->size == 0 || rq->head == rq->tail) return; /* no buffer: lost */
  const struct ibv_recv_wr* const wr = &rq->wr[rq->head % rq->size];
  const struct ibv_sge sge = rq->sge[rq->head % rq->size];
  ++rq->head;
  struct ibv_wc wc = {.wr_id = wr->wr_id, .opcode = IBV_WC_RECV, .qp_num = rq->qp_num};
  if (!region(c, &sge)) DIE("a receive buffer outside the registered memory");
  if (bytes > sge.length) {
    wc.status = IBV_WC_LOC_LEN_ERR;
  } else {
    memcpy((void*)(uintptr_t)sge.addr, frame, bytes);
    wc.byte_len = bytes;
    if (c->settings.csum && checksums_right(frame, &p)) wc.wc_flags = IBV_WC_IP_CSUM_OK;
  }
  complete(rq->cq, &wc);
}

/* The kernel takes the VLAN tag out of a frame; the wire has it. */
static unsigned with_tag(uint8_t* frame, unsigned bytes, struct msghdr* message) {
  for (struct cmsghdr* part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_PACKET || part->cmsg_type != PACKET_AUXDATA) continue;
    struct tpacket_auxdata aux;
    memcpy(&aux, CMSG_DATA(part), sizeof aux);
    if (!(aux.tp_status & TP_STATUS_VLAN_VALID)) continue;
    const unsigned type = aux.tp_status & TP_STATUS_VLAN_TPID_VALID ? aux.tp_vlan_tpid : ETH_P_8021Q;
    const uint8_t tag[4] = {(uint8_t)(type >> 8), (uint8_t)type, (uint8_t)(aux.tp_vlan_tci >> 8), (uint8_t)aux.tp_vlan_tci};
    memmove(frame + 16, frame + 12, bytes - 12);
    memcpy(frame + 12, tag, sizeof tag);
    return bytes + 4;
  }
  return bytes;
}

void pump(struct context* c) {
  static __thread uint8_t frame[MAX_FRAME + 8];
  char control[256];
  for (int i = 0; i < 64 && !c->dead; ++i) {
    struct iovec piece = {frame, MAX_FRAME};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    const ssize_t got = recvmsg(c->wire, &message, MSG_DONTWAIT);
    if (got < 14) break;
    deliver(c, frame, with_tag(frame, (unsigned)got, &message));
  }
}

int do_poll_cq(struct ibv_cq* ib, int most, struct ibv_wc* wc) {
  struct fake_cq* const cq = (struct fake_cq*)ib;
  struct context* const c = context_of(ib->context);
  pthread_mutex_lock(&c->lock);
  pump(c);
  int count = 0;
  for (; count < most && cq->head != cq->tail; ++count) wc[count] = cq->ring[cq->head++ % cq->size];
  if (count == 0 && cq->overrun) count = -1;
  pthread_mutex_unlock(&c->lock);
  return count;
}

int do_req_notify(struct ibv_cq* ib, int solicited_only) {
  (void)solicited_only;
  struct fake_cq* const cq = (struct fake_cq*)ib;
  struct context* const c = context_of(ib->context);
  if (!ib->channel) return EINVAL;
  pthread_mutex_lock(&c->lock);
  cq->armed = 1;
  struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT};
  epoll_ctl(ib->channel->fd, EPOLL_CTL_MOD, c->wire, &event);
  pthread_mutex_unlock(&c->lock);
  return 0;
}

unsigned wire_mtu(const struct context* c) {
  struct ifreq ask = {0};
  snprintf(ask.ifr_name, sizeof ask.ifr_name, "%.15s", c->settings.interface);
  return ioctl(c->wire, SIOCGIFMTU, &ask) == 0 ? (unsigned)ask.ifr_mtu : 0;
}

/* Down or full: lost, as on a cable. Down is told once per socket. */
static void put_on_wire(struct context* c, const uint8_t* frame, unsigned bytes) {
  if (send(c->wire, frame, bytes, MSG_DONTWAIT) < 0 && errno == ENETDOWN) send(c->wire, frame, bytes, MSG_DONTWAIT);
}

static int send_frame(struct context* c, const struct fake_qp* qp, const struct ibv_send_wr* wr) {
  static __thread uint8_t frame[MAX_FRAME];
  unsigned bytes = 0;
  const int small = (wr->send_flags & IBV_SEND_INLINE) != 0;
  for (int i = 0; i < wr->num_sge; ++i) {
    const struct ibv_sge* const sge = &wr->sg_list[i];
    if (bytes + sge->length > sizeof frame) return EINVAL;
    memcpy(frame + bytes, (const void*)(uintptr_t)sge->addr, sge->length);
    bytes += sge->length;
  }
  if ((small && bytes > qp->max_inline) || bytes < 18) return EINVAL; /* as mlx5: it inlines the first 18 bytes */
  if (bytes < 60) DIE("a frame of %u bytes below the Ethernet minimum", bytes);
  if (wr->send_flags & IBV_SEND_IP_CSUM) {
    const struct parsed p = parse(frame, bytes);
    if (p.transport == 0) DIE("IBV_SEND_IP_CSUM on a frame that is no TCP or UDP");
    if (p.ip == 6 && !c->settings.csum6) DIE("IBV_SEND_IP_CSUM over IPv6 on a device that is not known to do that");
    write_checksums(frame, &p);
  }
  put_on_wire(c, frame, bytes);
  return 0;
}

static int send_one(struct context* c, struct fake_qp* qp, const struct ibv_send_wr* wr) {
  if (wr->num_sge != 1) return EINVAL;
  if (!(wr->send_flags & IBV_SEND_INLINE) && !region(c, wr->sg_list)) DIE("a send buffer outside the registered memory");
  int error = EINVAL;
  if (wr->opcode == IBV_WR_SEND) error = send_frame(c, qp, wr);
  if (wr->opcode == IBV_WR_TSO && !c->settings.no_tso_opcode) error = send_segments(c, qp, wr, put_on_wire);
  if (error) return error;
  if (!(wr->send_flags & IBV_SEND_SIGNALED)) {
    ++qp->in_flight_unsignalled;
    return 0;
  }
  qp->in_flight_unsignalled = 0;
  struct ibv_wc wc = {.wr_id = wr->wr_id, .opcode = IBV_WC_SEND, .qp_num = qp->qp.qp_num};
  if (wr->opcode == IBV_WR_TSO) wc.opcode = IBV_WC_TSO;
  complete(qp->send_cq, &wc);
  return 0;
}

int do_post_send(struct ibv_qp* ib, struct ibv_send_wr* wr, struct ibv_send_wr** bad) {
  struct fake_qp* const qp = (struct fake_qp*)ib;
  struct context* const c = context_of(ib->context);
  int error = 0;
  pthread_mutex_lock(&c->lock);
  for (; wr && !error; wr = error ? wr : wr->next) {
    *bad = wr;
    /* Requests without a completion keep their place until one with it has completed and was polled. */
    const unsigned waiting = qp->send_cq->tail - qp->send_cq->head;
    if (qp->table || ib->state != IBV_QPS_RTS) error = EINVAL;
    else if (waiting + qp->in_flight_unsignalled >= qp->max_send) error = ENOMEM;
    else error = send_one(c, qp, wr);
  }
  pthread_mutex_unlock(&c->lock);
  return error;
}

static int post(struct context* c, struct receive_queue* rq, struct ibv_recv_wr* wr, struct ibv_recv_wr** bad) {
  int error = 0;
  pthread_mutex_lock(&c->lock);
  for (; wr; wr = wr->next) {
    *bad = wr;
    if (rq->size == 0 || wr->num_sge != 1) error = EINVAL;
    else if (rq->tail - rq->head == rq->size) error = ENOMEM;
    if (error) break;
    if (!region(c, wr->sg_list)) DIE("a posted buffer outside the registered memory");
    rq->wr[rq->tail % rq->size] = *wr;
    rq->sge[rq->tail++ % rq->size] = *wr->sg_list;
  }
  pthread_mutex_unlock(&c->lock);
  return error;
}

int do_post_recv(struct ibv_qp* qp, struct ibv_recv_wr* wr, struct ibv_recv_wr** bad) {
  return post(context_of(qp->context), &((struct fake_qp*)qp)->rq, wr, bad);
}

int do_post_wq_recv(struct ibv_wq* wq, struct ibv_recv_wr* wr, struct ibv_recv_wr** bad) {
  return post(context_of(wq->context), &((struct fake_wq*)wq)->rq, wr, bad);
}
