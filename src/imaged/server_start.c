/* The three mounts, in the order in which one may wait for the other, and what they count. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged/protocol.h"
#include "imaged/server_internal.h"
#include "imaged/stalls.h"

/* The per-VM part of a reply is bounded. */
#define STATISTICS_VMS_MAX 1024u

static unsigned thread_count(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return (unsigned)MIN(MAX(cores * 2, 4L), 16L);
}

int server_start(const char *data_directory, struct server **ret, struct error *err)
{
    struct server *server = calloc(1, sizeof(*server));
    if (server == NULL)
        return error_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&server->lock, NULL);
    struct images_options images = {
        .data_directory = data_directory,
        .mount = PROTOCOL_MOUNT_MEMORY,
        .kind = IMAGE_MEMORY,
        .threads = thread_count(),
        .storers = 2,
        .prefetchers = 4,
        .max_readahead = 0,
        .metrics = &server->metrics,
        .failed = server_image_failed,
        .context = server,
    };
    int r = images_start(&images, &server->memory, err);
    images.mount = PROTOCOL_MOUNT_DISK;
    images.kind = IMAGE_DISK;
    images.prefetchers = 0;
    images.max_readahead = 128 << 10;
    if (r == 0)
        r = images_start(&images, &server->disks, err);
    struct overlays_options overlays = {
        .data_directory = data_directory,
        .threads = thread_count(),
        .metrics = &server->metrics,
        .failed = server_disk_failed,
        .context = server,
    };
    if (r == 0)
        r = overlays_start(&overlays, &server->overlays, err);
    if (r == 0)
        r = stalls_start(server, err);
    if (r < 0) {
        overlays_stop(server->overlays);
        images_stop(server->disks);
        images_stop(server->memory);
        pthread_mutex_destroy(&server->lock);
        free(server);
        return r;
    }
    *ret = server;
    return 0;
}

/* Walks the VMs, which come and go meanwhile, by their ids: the smallest one above `id`. */
static bool next_vm(struct server *server, char id[static VM_ID_MAX + 1])
{
    const struct vm *next = NULL;
    pthread_mutex_lock(&server->lock);
    for (const struct vm *vm = server->vms; vm != NULL; vm = vm->next)
        if (strcmp(vm->id, id) > 0 && (next == NULL || strcmp(vm->id, next->id) < 0))
            next = vm;
    if (next != NULL)
        memcpy(id, next->id, VM_ID_MAX + 1);
    pthread_mutex_unlock(&server->lock);
    return next != NULL;
}

static void flush_disks(struct server *server)
{
    char id[VM_ID_MAX + 1] = "";
    while (next_vm(server, id)) {
        struct vm *vm;
        if (server_enter(server, id, &vm, NULL) < 0)
            continue;
        int r = overlay_flush(disk_overlay(vm->disk));
        if (r < 0)
            fprintf(stderr, "VM %s: its disk can't be made durable: %s\n", id, strerror(-r));
        server_leave(server, vm);
    }
}

/* The disks first: their threads use the images. */
void server_unmount(struct server *server)
{
    overlays_unmount(server->overlays);
    flush_disks(server);
    images_unmount(server->disks);
    images_unmount(server->memory);
}

/* A VM that is busy with something slow is left out. */
static void add_overlay_bytes(struct server *server, json_t *object)
{
    char id[VM_ID_MAX + 1] = "";
    while (json_object_size(object) < STATISTICS_VMS_MAX && next_vm(server, id)) {
        struct vm *vm = server_try_enter(server, id);
        if (vm == NULL)
            continue;
        json_object_set_new(object, id, json_integer((json_int_t)overlay_used_bytes(disk_overlay(vm->disk))));
        server_leave(server, vm);
    }
}

size_t server_list_vmms(struct server *server, pid_t *pids, size_t limit)
{
    size_t count = 0;
    pthread_mutex_lock(&server->lock);
    for (const struct vm *vm = server->vms; vm != NULL && count < limit; vm = vm->next)
        if (vm->vmm > 0)
            pids[count++] = vm->vmm;
    pthread_mutex_unlock(&server->lock);
    return count;
}

int server_statistics(struct server *server, json_t *reply, struct error *err)
{
    json_t *metrics = metrics_json(&server->metrics);
    json_t *overlay_bytes = json_object();
    int64_t vms = 0;
    pthread_mutex_lock(&server->lock);
    for (const struct vm *vm = server->vms; vm != NULL; vm = vm->next)
        vms += vm->attached;
    pthread_mutex_unlock(&server->lock);
    if (overlay_bytes != NULL)
        add_overlay_bytes(server, overlay_bytes);
    int r = metrics != NULL ? json_object_update(reply, metrics) : -1;
    json_decref(metrics);
    if (json_object_set_new(reply, "overlay_bytes", overlay_bytes) < 0 ||
        json_object_set_new(reply, "vms", json_integer(vms)) < 0 || r < 0)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}
