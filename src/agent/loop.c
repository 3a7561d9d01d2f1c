#include "agent/loop.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/io.h"

int loop_init(struct loop *loop, struct error *err)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return error_errno(err, "cannot create an epoll instance");
    *loop = (struct loop){.epoll_fd = fd};
    return 0;
}

int loop_add(struct loop *loop, struct loop_source *source, uint32_t events, struct error *err)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) < 0)
        return error_errno(err, "cannot watch a descriptor");
    source->events = events;
    return 0;
}

void loop_change(struct loop *loop, struct loop_source *source, uint32_t events)
{
    if (source->fd < 0 || source->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = source};
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
    source->events = events;
}

void loop_close(struct loop *loop, struct loop_source *source)
{
    if (source->fd < 0)
        return;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    close(TAKE_FD(source->fd));
}

void loop_timer_set(struct loop *loop, struct loop_timer *timer, int64_t after_ns)
{
    loop_timer_cancel(loop, timer);
    timer->deadline_ns = clock_monotonic_ns() + after_ns;
    struct loop_timer *before = NULL;
    struct loop_timer *after = loop->first;
    while (after != NULL && after->deadline_ns <= timer->deadline_ns) {
        before = after;
        after = after->next;
    }
    timer->previous = before;
    timer->next = after;
    timer->armed = true;
    if (after != NULL)
        after->previous = timer;
    if (before != NULL)
        before->next = timer;
    else
        loop->first = timer;
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *timer)
{
    if (!timer->armed)
        return;
    if (timer->previous != NULL)
        timer->previous->next = timer->next;
    else
        loop->first = timer->next;
    if (timer->next != NULL)
        timer->next->previous = timer->previous;
    timer->armed = false;
}

/* Runs what is due; returns the epoll timeout until the next deadline, -1 for none. */
static int run_timers(struct loop *loop)
{
    while (loop->first != NULL) {
        int64_t left_ns = loop->first->deadline_ns - clock_monotonic_ns();
        if (left_ns > 0)
            return (int)MIN((left_ns + 999999) / 1000000, (int64_t)INT_MAX);
        struct loop_timer *timer = loop->first;
        loop_timer_cancel(loop, timer);
        timer->expired(timer);
    }
    return -1;
}

int loop_run(struct loop *loop, struct error *err)
{
    for (;;) {
        int timeout_ms = run_timers(loop);
        struct epoll_event event;
        int n = epoll_wait(loop->epoll_fd, &event, 1, timeout_ms);
        if (n < 0 && errno != EINTR)
            return error_errno(err, "cannot wait for events");
        if (n == 1) {
            struct loop_source *source = event.data.ptr;
            source->ready(source, event.events);
        }
    }
}
