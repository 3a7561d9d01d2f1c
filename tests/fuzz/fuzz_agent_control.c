/* What the agent receives on its control port, in pieces: a byte n says that a piece of n + 1 bytes follows. */
#include <time.h>
#include <unistd.h>

#include "agent/control_channel.h"
#include "control/control.h"
#include "fuzz.h"

/* What a message may ask for must not happen to the machine that runs this. */
int clock_settime(clockid_t clock, const struct timespec *time)
{
    (void)clock;
    (void)time;
    return 0;
}

int sethostname(const char *name, size_t length)
{
    (void)name;
    (void)length;
    return 0;
}

void sync(void)
{
}

static void ignore(void *owner)
{
    (void)owner;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct identity identity;
    struct control_channel channel = {
        .source = {.fd = -1},
        .identity = &identity,
        .random_fd = -1,
        .applied = ignore,
        .power_off = ignore,
    };
    while (size > 0) {
        size_t piece = MIN((size_t)data[0] + 1, size - 1);
        control_channel_receive(&channel, data + 1, piece);
        data += piece + 1;
        size -= piece + 1;
    }
    strbuf_done(&channel.received);
    strbuf_done(&channel.reply);
    return 0;
}
