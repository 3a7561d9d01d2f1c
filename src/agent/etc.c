#include "agent/etc.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"

#define FILE_LIMIT        (256 * 1024)
#define HOST_NAME_ADDRESS "127.0.1.1" /* Debian's convention: the host name has its own loopback address */

/*
 * Replaces the file by rename, so that no reader sees it half written. Not synced: it is made again at the next
 * boot or resume, and an fsync would cost a journal commit in front of the first command of every fork.
 */
static void replace_file(const char *path, const struct strbuf *content)
{
    char temporary[64];
    snprintf(temporary, sizeof(temporary), "%s.dormouse", path);
    CLEANUP_CLOSE int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return;
    fchmod(fd, 0644);
    if (content->failed || io_write_full(fd, content->data, content->length) < 0 || rename(temporary, path) < 0)
        unlink(temporary);
}

static char *read_text(const char *path)
{
    char *text;
    return io_read_file(path, FILE_LIMIT, &text, NULL) < 0 ? NULL : text;
}

void etc_ensure_resolver(void)
{
    struct stat status;
    if (stat("/etc/resolv.conf", &status) == 0 && status.st_size > 0)
        return;
    CLEANUP_STRBUF struct strbuf content = STRBUF_INIT;
    strbuf_puts(&content, "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
    replace_file("/etc/resolv.conf", &content);
}

/* Whether the line "address name name…" gives `name`. */
static bool line_names(const char *line, size_t length, const char *name)
{
    const char *end = line + length;
    const char *at = line + strcspn(line, " \t\n");
    while (at < end) {
        at += strspn(at, " \t");
        size_t word = strcspn(at, " \t\r\n#");
        if (word == strlen(name) && strncmp(at, name, word) == 0)
            return true;
        if (word == 0)
            return false;
        at += word;
    }
    return false;
}

static bool hosts_name(const char *text, const char *name)
{
    for (const char *line = text; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        if (*line != '#' && line_names(line, length, name))
            return true;
        line += length + (line[length] == '\n');
    }
    return false;
}

void etc_ensure_localhost(void)
{
    CLEANUP_FREE char *text = read_text("/etc/hosts");
    if (text != NULL && hosts_name(text, "localhost"))
        return;
    CLEANUP_STRBUF struct strbuf content = STRBUF_INIT;
    strbuf_puts(&content, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    if (text != NULL)
        strbuf_puts(&content, text);
    replace_file("/etc/hosts", &content);
}

void etc_set_host_name(const char *name)
{
    CLEANUP_FREE char *text = read_text("/etc/hosts");
    if (text != NULL && hosts_name(text, name))
        return;
    CLEANUP_STRBUF struct strbuf content = STRBUF_INIT;
    for (const char *line = text != NULL ? text : ""; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        if (strncmp(line, HOST_NAME_ADDRESS, strlen(HOST_NAME_ADDRESS)) != 0) {
            strbuf_append(&content, line, length);
            strbuf_puts(&content, "\n");
        }
        line += length + (line[length] == '\n');
    }
    strbuf_printf(&content, "%s %s\n", HOST_NAME_ADDRESS, name);
    replace_file("/etc/hosts", &content);
}

void etc_set_boot_host_name(void)
{
    CLEANUP_FREE char *text = read_text("/etc/hostname");
    const char *name = text != NULL ? text : "";
    size_t length = strcspn(name, " \t\r\n");
    if (length == 0 || length > HOST_NAME_MAX) {
        name = "dormouse";
        length = strlen(name);
    }
    CLEANUP_FREE char *host_name = strndup(name, length);
    if (host_name != NULL && sethostname(host_name, length) == 0)
        etc_set_host_name(host_name);
}
