/* SPDX-License-Identifier: Apache-2.0 */
/* Protection domains, memory, completion queues, queue pairs, work queues, flows: made, checked, destroyed. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "standin.h"

#undef ibv_reg_mr
#undef ibv_create_flow

#define FAIL(code) return (errno = (code), NULL)

static void add(unsigned* count, int by) { *count = (unsigned)((int)*count + by); }

struct ibv_pd* ibv_alloc_pd(struct ibv_context* ib) {
  struct ibv_pd* const pd = calloc(1, sizeof *pd);
  pd->context = ib;
  add(&context_of(ib)->pds, 1);
  return pd;
}

int ibv_dealloc_pd(struct ibv_pd* pd) {
  struct context* const c = context_of(pd->context);
  if (c->qps || c->wqs) DIE("a protection domain destroyed before its queues");
  for (int i = 0; i < MAX_MRS; ++i) {
    if (c->mrs[i] && c->mrs[i]->pd == pd) DIE("a protection domain destroyed before its memory");
  }
  add(&c->pds, -1);
  free(pd);
  return 0;
}

struct ibv_mr* ibv_reg_mr(struct ibv_pd* pd, void* address, size_t bytes, int access) {
  struct context* const c = context_of(pd->context);
  int at = 0;
  while (at < MAX_MRS && c->mrs[at]) ++at;
  if (at == MAX_MRS) FAIL(ENOMEM);
  if (!(access & IBV_ACCESS_LOCAL_WRITE)) DIE("memory for receiving that the device may not write");
  if (mlock(address, bytes)) FAIL(ENOMEM); /* pinned, and counted as the kernel counts it */
  struct ibv_mr* const mr = calloc(1, sizeof *mr);
  *mr = (struct ibv_mr){.context = pd->context, .pd = pd, .addr = address, .length = bytes};
  mr->lkey = 0xa000u + ++c->next_number;
  volatile uint8_t* const end = (uint8_t*)address + bytes - 1; /* must be there, as pinning would find out */
  *end = *end;
  pthread_mutex_lock(&c->lock);
  c->mrs[at] = mr;
  pthread_mutex_unlock(&c->lock);
  return mr;
}

struct ibv_mr* ibv_reg_mr_iova2(struct ibv_pd* pd, void* address, size_t bytes, uint64_t iova, unsigned access) {
  if (iova != (uintptr_t)address) FAIL(EINVAL);
  return ibv_reg_mr(pd, address, bytes, (int)access);
}

int ibv_dereg_mr(struct ibv_mr* mr) {
  struct context* const c = context_of(mr->context);
  if (c->qps || c->wqs) DIE("memory taken away before the queues that use it");
  for (int i = 0; i < MAX_MRS; ++i) {
    if (c->mrs[i] == mr) c->mrs[i] = NULL;
  }
  munlock(mr->addr, mr->length);
  free(mr);
  return 0;
}

struct ibv_comp_channel* ibv_create_comp_channel(struct ibv_context* ib) {
  struct context* const c = context_of(ib);
  struct ibv_comp_channel* const channel = calloc(1, sizeof *channel);
  channel->context = ib;
  channel->fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = 0};
  if (channel->fd < 0 || epoll_ctl(channel->fd, EPOLL_CTL_ADD, c->wire, &event)) FAIL(EIO);
  add(&c->channels, 1);
  return channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel* channel) {
  if (channel->refcnt) DIE("a completion channel destroyed before its completion queue");
  add(&context_of(channel->context)->channels, -1);
  close(channel->fd);
  free(channel);
  return 0;
}

struct ibv_cq* ibv_create_cq(struct ibv_context* ib, int entries, void* user, struct ibv_comp_channel* channel, int vector) {
  (void)vector;
  if (entries < 1 || entries > 1 << 20) FAIL(EINVAL);
  struct fake_cq* const cq = calloc(1, sizeof *cq);
  cq->cq = (struct ibv_cq){.context = ib, .channel = channel, .cq_context = user, .cqe = entries};
  cq->size = (unsigned)entries;
  cq->ring = calloc(cq->size, sizeof *cq->ring);
  if (channel) {
    ++channel->refcnt;
    *(struct fake_cq**)&channel->context = cq; /* found again by get_cq_event; the queue knows the context */
  }
  add(&context_of(ib)->cqs, 1);
  return &cq->cq;
}

int ibv_destroy_cq(struct ibv_cq* ib) {
  struct fake_cq* const cq = (struct fake_cq*)ib;
  if (cq->users) DIE("a completion queue destroyed before its queues");
  if (cq->unacknowledged) DIE("%d completion events not acknowledged", cq->unacknowledged);
  if (ib->channel) {
    --ib->channel->refcnt;
    ib->channel->context = ib->context;
  }
  add(&context_of(ib->context)->cqs, -1);
  free(cq->ring);
  free(cq);
  return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel* channel, struct ibv_cq** ib, void** user) {
  struct epoll_event event;
  if (epoll_wait(channel->fd, &event, 1, 0) <= 0) return errno = EAGAIN, -1;
  struct fake_cq* const cq = (struct fake_cq*)channel->context;
  cq->armed = 0;
  ++cq->unacknowledged;
  *ib = &cq->cq;
  *user = cq->cq.cq_context;
  return 0;
}

void ibv_ack_cq_events(struct ibv_cq* ib, unsigned events) { ((struct fake_cq*)ib)->unacknowledged -= (int)events; }

static void use(struct ibv_cq* cq, int by) {
  if (cq) add(&((struct fake_cq*)cq)->users, by);
}

static void make_receive_queue(struct receive_queue* rq, struct ibv_cq* cq, unsigned size, uint32_t number) {
  *rq = (struct receive_queue){.cq = (struct fake_cq*)cq, .size = size, .qp_num = number};
  rq->wr = calloc(size + 1, sizeof *rq->wr);
  rq->sge = calloc(size + 1, sizeof *rq->sge);
}

static void free_receive_queue(struct receive_queue* rq) {
  free(rq->wr);
  free(rq->sge);
}

static struct fake_qp* make_qp(struct ibv_context* ib, struct ibv_pd* pd, int type) {
  struct context* const c = context_of(ib);
  if (type != IBV_QPT_RAW_PACKET || !c->settings.raw) FAIL(EOPNOTSUPP);
  struct fake_qp* const qp = calloc(1, sizeof *qp);
  qp->qp.context = ib;
  qp->qp.pd = pd;
  qp->qp.qp_num = 0x100u + ++c->next_number;
  qp->qp.qp_type = IBV_QPT_RAW_PACKET;
  add(&c->qps, 1);
  return qp;
}

struct ibv_qp* ibv_create_qp(struct ibv_pd* pd, struct ibv_qp_init_attr* wanted) {
  const int most = context_of(pd->context)->settings.max_qp_wr;
  if ((int)wanted->cap.max_send_wr > most || (int)wanted->cap.max_recv_wr > most) FAIL(EINVAL);
  if (wanted->cap.max_inline_data > INLINE_BYTES) FAIL(EINVAL);
  struct fake_qp* const qp = make_qp(pd->context, pd, (int)wanted->qp_type);
  if (!qp) return NULL;
  qp->qp.send_cq = wanted->send_cq;
  qp->qp.recv_cq = wanted->recv_cq;
  use(wanted->send_cq, 1);
  use(wanted->recv_cq, 1);
  qp->send_cq = (struct fake_cq*)wanted->send_cq;
  qp->max_send = wanted->cap.max_send_wr;
  wanted->cap.max_inline_data = qp->max_inline = INLINE_BYTES;
  make_receive_queue(&qp->rq, wanted->recv_cq, wanted->cap.max_recv_wr, qp->qp.qp_num);
  return &qp->qp;
}

static struct ibv_qp* make_hashing_qp(struct ibv_context* ib, struct ibv_qp_init_attr_ex* wanted) {
  if (!(wanted->comp_mask & IBV_QP_INIT_ATTR_IND_TABLE) || !(wanted->comp_mask & IBV_QP_INIT_ATTR_RX_HASH)) FAIL(EINVAL);
  if (wanted->rx_hash_conf.rx_hash_function != IBV_RX_HASH_FUNC_TOEPLITZ) FAIL(EOPNOTSUPP);
  if (wanted->rx_hash_conf.rx_hash_key_len != 40 || !wanted->rx_hash_conf.rx_hash_key) FAIL(EINVAL);
  const uint64_t fields = wanted->rx_hash_conf.rx_hash_fields_mask;
  const uint64_t v4 = IBV_RX_HASH_SRC_IPV4 | IBV_RX_HASH_DST_IPV4, v6 = IBV_RX_HASH_SRC_IPV6 | IBV_RX_HASH_DST_IPV6;
  const uint64_t tcp = IBV_RX_HASH_SRC_PORT_TCP | IBV_RX_HASH_DST_PORT_TCP;
  const uint64_t udp = IBV_RX_HASH_SRC_PORT_UDP | IBV_RX_HASH_DST_PORT_UDP;
  if (!fields || ((fields & v4) && (fields & v6)) || ((fields & tcp) && (fields & udp))) FAIL(EINVAL); /* as mlx5 */
  struct fake_qp* const qp = make_qp(ib, wanted->pd, (int)wanted->qp_type);
  if (!qp) return NULL;
  qp->table = (struct table*)wanted->rwq_ind_tbl;
  qp->hash_fields = fields;
  ++qp->table->users;
  return &qp->qp;
}

/* A queue pair that sends, with room for the headers of large segments; or one that hashes. */
struct ibv_qp* make_qp_ex(struct ibv_context* ib, struct ibv_qp_init_attr_ex* wanted) {
  if (wanted->comp_mask & (IBV_QP_INIT_ATTR_IND_TABLE | IBV_QP_INIT_ATTR_RX_HASH)) return make_hashing_qp(ib, wanted);
  if (wanted->comp_mask != (IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_MAX_TSO_HEADER) || wanted->pd->context != ib) FAIL(EINVAL);
  if (wanted->max_tso_header > MAX_TSO_HEADER) FAIL(EINVAL);
  struct ibv_qp* const made = ibv_create_qp(wanted->pd, (struct ibv_qp_init_attr*)wanted); /* its first members are these */
  if (made) ((struct fake_qp*)made)->max_tso_header = wanted->max_tso_header;
  return made;
}

int ibv_modify_qp(struct ibv_qp* qp, struct ibv_qp_attr* attr, int mask) {
  if (!(mask & IBV_QP_STATE)) return EINVAL;
  const int next = qp->state == IBV_QPS_RESET ? IBV_QPS_INIT : qp->state == IBV_QPS_INIT ? IBV_QPS_RTR : IBV_QPS_RTS;
  if ((int)attr->qp_state != next || (next == IBV_QPS_INIT && (!(mask & IBV_QP_PORT) || attr->port_num != 1))) return EINVAL;
  qp->state = attr->qp_state;
  return 0;
}

int ibv_query_qp(struct ibv_qp* qp, struct ibv_qp_attr* attr, int mask, struct ibv_qp_init_attr* init) {
  (void)mask;
  memset(attr, 0, sizeof *attr);
  memset(init, 0, sizeof *init);
  attr->qp_state = qp->state;
  return 0;
}

int ibv_destroy_qp(struct ibv_qp* ib) {
  struct fake_qp* const qp = (struct fake_qp*)ib;
  struct context* const c = context_of(ib->context);
  if (qp->flows) DIE("a queue pair destroyed before its flow rules");
  use(ib->send_cq, -1);
  use(ib->recv_cq, -1);
  if (qp->table) --qp->table->users;
  add(&c->qps, -1);
  free_receive_queue(&qp->rq);
  free(qp);
  return 0;
}

struct ibv_wq* make_wq(struct ibv_context* ib, struct ibv_wq_init_attr* wanted) {
  struct context* const c = context_of(ib);
  if (!c->settings.rss) FAIL(EOPNOTSUPP);
  if (wanted->wq_type != IBV_WQT_RQ || (int)wanted->max_wr > c->settings.max_qp_wr) FAIL(EINVAL);
  struct fake_wq* const wq = calloc(1, sizeof *wq);
  wq->wq = (struct ibv_wq){.context = ib, .pd = wanted->pd, .cq = wanted->cq, .wq_type = IBV_WQT_RQ};
  wq->wq.wq_num = 0x200u + ++c->next_number;
  wq->wq.post_recv = do_post_wq_recv;
  make_receive_queue(&wq->rq, wanted->cq, wanted->max_wr, wq->wq.wq_num);
  use(wanted->cq, 1);
  add(&c->wqs, 1);
  return &wq->wq;
}

int modify_wq(struct ibv_wq* wq, struct ibv_wq_attr* attr) {
  if (attr->attr_mask & IBV_WQ_ATTR_STATE) wq->state = attr->wq_state;
  return 0;
}

int destroy_wq(struct ibv_wq* ib) {
  struct fake_wq* const wq = (struct fake_wq*)ib;
  if (wq->users) DIE("a work queue destroyed before its indirection table");
  use(ib->cq, -1);
  add(&context_of(ib->context)->wqs, -1);
  free_receive_queue(&wq->rq);
  free(wq);
  return 0;
}

struct ibv_rwq_ind_table* make_table(struct ibv_context* ib, struct ibv_rwq_ind_table_init_attr* wanted) {
  if (wanted->log_ind_tbl_size > 8) FAIL(EINVAL);
  struct table* const table = calloc(1, sizeof *table);
  table->ib.context = ib;
  table->size = 1u << wanted->log_ind_tbl_size;
  for (unsigned i = 0; i < table->size; ++i) {
    table->wqs[i] = (struct fake_wq*)wanted->ind_tbl[i];
    if (table->wqs[i]->wq.state != IBV_WQS_RDY) DIE("an indirection table of work queues that are not ready");
    ++table->wqs[i]->users;
  }
  add(&context_of(ib)->tables, 1);
  return &table->ib;
}

int destroy_table(struct ibv_rwq_ind_table* ib) {
  struct table* const table = (struct table*)ib;
  if (table->users) DIE("an indirection table destroyed before its queue pair");
  for (unsigned i = 0; i < table->size; ++i) --table->wqs[i]->users;
  add(&context_of(ib->context)->tables, -1);
  free(table);
  return 0;
}

/* Default rules come last, then by priority, then by age. */
static long order(const struct fake_flow* flow) {
  return (flow->type == IBV_FLOW_ATTR_ALL_DEFAULT ? 1000000000L : 0) + flow->priority * 1000000L + flow->sequence;
}

struct ibv_flow* make_flow(struct ibv_qp* ib, struct ibv_flow_attr* attr) {
  struct context* const c = context_of(ib->context);
  if (attr->port != 1 || c->flow_count == MAX_FLOWS) FAIL(EINVAL);
  struct fake_flow* const flow = calloc(1, sizeof *flow);
  *flow = (struct fake_flow){.type = (int)attr->type, .priority = attr->priority, .sequence = (int)++c->next_number};
  flow->flow.context = ib->context;
  flow->qp = (struct fake_qp*)ib;
  const uint8_t* at = (const uint8_t*)(attr + 1);
  for (unsigned i = 0; i < attr->num_of_specs; ++i) {
    const struct ibv_flow_spec* const spec = (const struct ibv_flow_spec*)at;
    if (spec->hdr.type == IBV_FLOW_SPEC_ETH) flow->eth = spec->eth;
    else if (spec->hdr.type == IBV_FLOW_SPEC_IPV4_EXT) flow->ip = 4;
    else if (spec->hdr.type == IBV_FLOW_SPEC_IPV6) flow->ip = 6;
    else if (spec->hdr.type == IBV_FLOW_SPEC_TCP) flow->transport = 6;
    else if (spec->hdr.type == IBV_FLOW_SPEC_UDP) flow->transport = 17;
    else DIE("a flow rule with a part of type %d", (int)spec->hdr.type);
    at += spec->hdr.size;
  }
  pthread_mutex_lock(&c->lock);
  unsigned place = c->flow_count++;
  for (; place > 0 && order(c->flows[place - 1]) > order(flow); --place) c->flows[place] = c->flows[place - 1];
  c->flows[place] = flow;
  ++flow->qp->flows;
  pthread_mutex_unlock(&c->lock);
  return &flow->flow;
}

int destroy_flow(struct ibv_flow* ib) {
  struct fake_flow* const flow = (struct fake_flow*)ib;
  struct context* const c = context_of(ib->context);
  pthread_mutex_lock(&c->lock);
  unsigned kept = 0;
  for (unsigned i = 0; i < c->flow_count; ++i) {
    if (c->flows[i] != flow) c->flows[kept++] = c->flows[i];
  }
  c->flow_count = kept;
  --flow->qp->flows;
  pthread_mutex_unlock(&c->lock);
  free(flow);
  return 0;
}
