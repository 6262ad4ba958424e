/* SPDX-License-Identifier: Apache-2.0 */
/* Devices: found, opened, asked, their events, closed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "standin.h"

#undef ibv_query_port

struct ibv_qp* make_qp_ex(struct ibv_context*, struct ibv_qp_init_attr_ex*);
struct ibv_wq* make_wq(struct ibv_context*, struct ibv_wq_init_attr*);
int modify_wq(struct ibv_wq*, struct ibv_wq_attr*);
int destroy_wq(struct ibv_wq*);
struct ibv_rwq_ind_table* make_table(struct ibv_context*, struct ibv_rwq_ind_table_init_attr*);
int destroy_table(struct ibv_rwq_ind_table*);
struct ibv_flow* make_flow(struct ibv_qp*, struct ibv_flow_attr*);
int destroy_flow(struct ibv_flow*);

static struct device devices[16]; /* every one ever seen; never forgotten, as contexts point at them */

struct context* context_of(struct ibv_context* ib) {
  return (struct context*)((char*)ib - offsetof(struct context, verbs.context));
}

static const char* folder(void) {
  const char* const path = getenv("VERBS_STANDIN");
  return path ? path : "/nonexistent";
}

int read_settings(const char* device, struct settings* out) {
  char path[512], word[128];
  snprintf(path, sizeof path, "%s/%s", folder(), device);
  FILE* const file = fopen(path, "re");
  if (!file) return ENODEV;
  *out = (struct settings){.active = 1, .rss = 1, .csum = 1, .csum6 = 1, .raw = 1, .ethernet = 1, .max_qp_wr = 8192, .tso = 262144};
  while (fscanf(file, "%127s", word) == 1) {
    sscanf(word, "interface=%31s", out->interface);
    sscanf(word, "active=%d", &out->active);
    sscanf(word, "rss=%d", &out->rss);
    sscanf(word, "csum=%d", &out->csum);
    sscanf(word, "csum6=%d", &out->csum6);
    sscanf(word, "raw=%d", &out->raw);
    sscanf(word, "ethernet=%d", &out->ethernet);
    sscanf(word, "max_qp_wr=%d", &out->max_qp_wr);
    sscanf(word, "tso=%d", &out->tso);
    sscanf(word, "no_tso_opcode=%d", &out->no_tso_opcode);
  }
  fclose(file);
  return 0;
}

static struct device* device_named(const char* name) {
  for (int i = 0; i < 16; ++i) {
    if (!devices[i].ib.name[0]) snprintf(devices[i].ib.name, sizeof devices[i].ib.name, "%.63s", name);
    if (!strcmp(devices[i].ib.name, name)) {
      devices[i].ib.node_type = IBV_NODE_CA;
      devices[i].ib.transport_type = IBV_TRANSPORT_IB;
      return &devices[i];
    }
  }
  DIE("too many devices");
}

struct ibv_device** ibv_get_device_list(int* count) {
  struct ibv_device** const list = calloc(17, sizeof *list);
  int found = 0;
  DIR* const all = opendir(folder());
  for (struct dirent* entry; all && (entry = readdir(all)) && found < 16;) {
    if (!strchr(entry->d_name, '.')) list[found++] = &device_named(entry->d_name)->ib;
  }
  if (all) closedir(all);
  if (count) *count = found;
  return list;
}

void ibv_free_device_list(struct ibv_device** list) { free(list); }
const char* ibv_get_device_name(struct ibv_device* device) { return device->name; }
__be64 ibv_get_device_guid(struct ibv_device* device) { return (__be64)(uintptr_t)device; }
int ibv_get_device_index(struct ibv_device* device) { return (int)((struct device*)device - devices); }

int ibv_query_device(struct ibv_context* ib, struct ibv_device_attr* attr) {
  struct context* const c = context_of(ib);
  memset(attr, 0, sizeof *attr);
  snprintf(attr->fw_ver, sizeof attr->fw_ver, "stand-in");
  attr->vendor_id = c->settings.csum6 ? 0x02c9 : 0x1234;
  attr->max_qp_wr = c->settings.max_qp_wr;
  attr->max_cqe = 1 << 20;
  attr->max_sge = 4;
  attr->phys_port_cnt = 1;
  if (c->settings.csum) attr->device_cap_flags = IBV_DEVICE_RAW_IP_CSUM;
  return 0;
}

static int query_device_ex(struct ibv_context* ib, const struct ibv_query_device_ex_input* input,
                           struct ibv_device_attr_ex* attr, size_t bytes) {
  (void)input;
  memset(attr, 0, bytes);
  ibv_query_device(ib, &attr->orig_attr);
  const struct settings* const settings = &context_of(ib)->settings;
  if (settings->csum) attr->raw_packet_caps = IBV_RAW_PACKET_CAP_IP_CSUM;
  if (settings->tso) attr->tso_caps = (struct ibv_tso_caps){(uint32_t)settings->tso, 1u << IBV_QPT_RAW_PACKET};
  return 0;
}

static int query_port(struct ibv_context* ib, uint8_t port, struct ibv_port_attr* attr, size_t bytes) {
  struct settings now;
  struct context* const c = context_of(ib);
  if (port != 1) return EINVAL;
  if (read_settings(c->device->ib.name, &now)) return EIO; /* taken away */
  memset(attr, 0, bytes);
  attr->state = now.active ? IBV_PORT_ACTIVE : IBV_PORT_DOWN;
  attr->link_layer = now.ethernet ? IBV_LINK_LAYER_ETHERNET : IBV_LINK_LAYER_INFINIBAND;
  return 0;
}

int ibv_query_port(struct ibv_context* ib, uint8_t port, struct _compat_ibv_port_attr* attr) {
  return query_port(ib, port, (struct ibv_port_attr*)attr, offsetof(struct ibv_port_attr, port_cap_flags2));
}

static int open_events(struct context* c) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s/%s.events", folder(), c->device->ib.name);
  snprintf(c->events_path, sizeof c->events_path, "%s", address.sun_path);
  unlink(address.sun_path);
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, (struct sockaddr*)&address, sizeof address)) DIE("cannot make %s", address.sun_path);
  return fd;
}

struct ibv_context* ibv_open_device(struct ibv_device* ib) {
  struct context* const c = calloc(1, sizeof *c);
  c->device = (struct device*)ib;
  errno = read_settings(ib->name, &c->settings);
  if (!errno) errno = wire_open(c);
  if (errno) {
    const int why = errno;
    free(c);
    errno = why;
    return NULL;
  }
  pthread_mutex_init(&c->lock, NULL);
  struct verbs_context* const v = &c->verbs;
  v->sz = sizeof *v;
  v->query_port = query_port;
  v->query_device_ex = query_device_ex;
  v->create_qp_ex = make_qp_ex;
  v->create_wq = make_wq;
  v->modify_wq = modify_wq;
  v->destroy_wq = destroy_wq;
  v->create_rwq_ind_table = make_table;
  v->destroy_rwq_ind_table = destroy_table;
  v->ibv_create_flow = make_flow;
  v->ibv_destroy_flow = destroy_flow;
  v->context.device = ib;
  v->context.ops.poll_cq = do_poll_cq;
  v->context.ops.req_notify_cq = do_req_notify;
  v->context.ops.post_send = do_post_send;
  v->context.ops.post_recv = do_post_recv;
  v->context.cmd_fd = -1;
  v->context.async_fd = open_events(c);
  v->context.num_comp_vectors = 1;
  v->context.abi_compat = __VERBS_ABI_IS_EXTENDED;
  return &v->context;
}

int ibv_close_device(struct ibv_context* ib) {
  struct context* const c = context_of(ib);
  if (c->pds + c->cqs + c->qps + c->wqs + c->channels + c->tables + c->flow_count) {
    DIE("a device closed with %u pds, %u cqs, %u qps, %u wqs, %u channels, %u tables, %u flows", c->pds, c->cqs, c->qps,
        c->wqs, c->channels, c->tables, c->flow_count);
  }
  close(ib->async_fd);
  unlink(c->events_path);
  close(c->wire);
  pthread_mutex_destroy(&c->lock);
  free(c);
  return 0;
}

static __thread int unacknowledged;

int ibv_get_async_event(struct ibv_context* ib, struct ibv_async_event* event) {
  static const struct {
    const char* word;
    enum ibv_event_type type;
  } kinds[] = {{"port_err", IBV_EVENT_PORT_ERR},   {"port_active", IBV_EVENT_PORT_ACTIVE}, {"fatal", IBV_EVENT_DEVICE_FATAL},
               {"qp_fatal", IBV_EVENT_QP_FATAL},   {"cq_err", IBV_EVENT_CQ_ERR},           {"wq_fatal", IBV_EVENT_WQ_FATAL},
               {"gid_change", IBV_EVENT_GID_CHANGE}};
  struct context* const c = context_of(ib);
  char word[64] = "";
  if (recv(ib->async_fd, word, sizeof word - 1, 0) <= 0) return -1;
  memset(event, 0, sizeof *event);
  event->element.port_num = 1;
  for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; ++i) {
    if (strcmp(word, kinds[i].word)) continue;
    event->event_type = kinds[i].type;
    if (kinds[i].type == IBV_EVENT_DEVICE_FATAL) c->dead = 1;
    if (++unacknowledged > 1) DIE("an event was not acknowledged");
    return 0;
  }
  DIE("no event is called '%s'", word);
}

void ibv_ack_async_event(struct ibv_async_event* event) {
  (void)event;
  --unacknowledged;
}
