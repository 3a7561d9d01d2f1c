#include "template/template.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "host/assets.h"
#include "template/script.h"

void guest_kernel_done(struct guest_kernel *kernel)
{
    free(kernel->kernel);
    free(kernel->initrd);
    free(kernel->version);
    *kernel = (struct guest_kernel){0};
}

/* A release puts the agent among its files, a build tree beside its sources. */
static char *find_agent(struct error *err)
{
    char *agent = asset_find("dormouse-agent", NULL);
    return agent != NULL ? agent : asset_find("src/agent/dormouse-agent", err);
}

int guest_kernel_prepare(const char *directory, template_progress progress, void *context, struct guest_kernel *ret,
                         struct error *err)
{
    CLEANUP_FREE char *agent = find_agent(err);
    CLEANUP_FREE char *script = agent != NULL ? asset_find("recipes/kernel", err) : NULL;
    if (script == NULL)
        return -ENOENT;
    const char *const arguments[] = {script, directory, agent, NULL};
    CLEANUP_FREE char *result = NULL;
    int r = script_run(arguments, progress, context, &result, err);
    if (r < 0)
        return error_wrap(err, r, "cannot make the guest kernel");

    CLEANUP(guest_kernel_done) struct guest_kernel made = {0};
    if (sscanf(result, "%m[^\n]\n%m[^\n]\n%m[^\n]", &made.kernel, &made.initrd, &made.version) != 3)
        return error_set(err, EIO, "cannot make the guest kernel: %s does not say what it made", script);
    *ret = (struct guest_kernel){
        .kernel = TAKE_PTR(made.kernel), .initrd = TAKE_PTR(made.initrd), .version = TAKE_PTR(made.version)};
    return 0;
}

static bool is_recipe_name(const char *name)
{
    size_t length = strlen(name);
    return length > 0 && length <= 64 && name[0] != '.' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == length;
}

int rootfs_build(const struct rootfs_options *options, const char *output, template_progress progress,
                 void *context, uint64_t *ret_size, struct error *err)
{
    CLEANUP_FREE char *source = NULL;
    if (options->recipe == NULL) {
        source = realpath(options->source, NULL);
        if (source == NULL)
            return error_errno(err, "cannot make a root file system from %s", options->source);
    } else if (!is_recipe_name(options->recipe)) {
        return error_set(err, EINVAL, "'%s' cannot be the name of a recipe", options->recipe);
    }
    CLEANUP_FREE char *script = asset_find("recipes/rootfs", err);
    if (script == NULL)
        return -ENOENT;
    char size[32];
    snprintf(size, sizeof(size), "%" PRIu64, options->size_bytes);
    const char *const arguments[] = {script,
                                     output,
                                     size,
                                     options->cache,
                                     source != NULL ? "source" : "recipe",
                                     source != NULL ? source : options->recipe,
                                     NULL};
    CLEANUP_FREE char *result = NULL;
    int r = script_run(arguments, progress, context, &result, err);
    if (r < 0)
        return error_wrap(err, r, "cannot make the root file system");
    uint64_t made = strtoull(result, NULL, 10);
    if (made == 0)
        return error_set(err, EIO, "cannot make the root file system: %s does not say how large it is", script);
    *ret_size = made;
    return 0;
}
