/*
 * A talker in a Corosync process group: says numbered messages at a steady rate and writes down
 * everything it hears, its own words too.
 *
 *   cpg_load MEMBERS RATE SIZE FILE
 *
 * Waits until the group has MEMBERS members, then talks until it reads "stop" on standard input,
 * goes on listening until it reads "finish". Each order is answered with its own word. Lines of
 * FILE: "D node number ns" heard, "C members" membership changed, "S count" said by this one.
 */
#include <corosync/cpg.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static FILE *out;
static size_t members;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void heard(cpg_handle_t h, const struct cpg_name *g, uint32_t node, uint32_t pid, void *msg,
                  size_t length)
{
    uint64_t number = UINT64_MAX;
    (void)h, (void)g, (void)pid;
    if (length >= sizeof number)
        memcpy(&number, msg, sizeof number);
    fprintf(out, "D %u %llu %llu\n", node, (unsigned long long)number,
            (unsigned long long)now_ns());
}

static void changed(cpg_handle_t h, const struct cpg_name *g, const struct cpg_address *all,
                    size_t count, const struct cpg_address *left, size_t lefts,
                    const struct cpg_address *joined, size_t joins)
{
    (void)h, (void)g, (void)all, (void)left, (void)lefts, (void)joined, (void)joins;
    members = count;
    fprintf(out, "C %zu\n", count);
}

static void answer(const char *word)
{
    printf("%s\n", word);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    size_t wanted = strtoul(argv[1], NULL, 10);
    uint64_t period = 1000000000u / strtoul(argv[2], NULL, 10);
    size_t size = strtoul(argv[3], NULL, 10);
    char *message = calloc(1, size);
    out = fopen(argv[4], "w");
    if (!message || !out || size < sizeof(uint64_t))
        return 2;

    cpg_callbacks_t callbacks = {.cpg_deliver_fn = heard, .cpg_confchg_fn = changed};
    struct cpg_name group = {.length = 3, .value = "lab"};
    cpg_handle_t handle;
    int fd;
    if (cpg_initialize(&handle, &callbacks) != CS_OK || cpg_fd_get(handle, &fd) != CS_OK)
        return 1;
    cs_error_t joined;
    while ((joined = cpg_join(handle, &group)) == CS_ERR_TRY_AGAIN)
        usleep(20000);
    if (joined != CS_OK)
        return 1;

    int talking = 0, stopped = 0;
    uint64_t said = 0, due = 0;
    for (;;) {
        if (!talking && !stopped && members == wanted) {
            talking = 1;
            due = now_ns();
            answer("talking");
        }
        uint64_t now = now_ns();
        int timeout = 100;
        if (talking)
            timeout = due > now ? (int)((due - now) / 1000000u) : 0;
        struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        poll(fds, 2, timeout);
        if (fds[0].revents) {
            cs_error_t result = cpg_dispatch(handle, CS_DISPATCH_ALL);
            if (result != CS_OK && result != CS_ERR_TRY_AGAIN) {
                fprintf(stderr, "cpg_dispatch: %d\n", result);
                return 1;
            }
        }
        if (fds[1].revents) {
            char line[64] = "";
            ssize_t length = read(0, line, sizeof line - 1);
            if (length <= 0)
                return 3;
            if (strncmp(line, "stop", 4) == 0) {
                talking = 0, stopped = 1;
                fprintf(out, "S %llu\n", (unsigned long long)said);
                answer("stop");
            } else {
                fclose(out);
                answer("finish");
                return 0;
            }
        }
        if (talking && now_ns() >= due) {
            struct iovec words = {.iov_base = message, .iov_len = size};
            memcpy(message, &said, sizeof said);
            /* A full queue says try again: the same number is said at the next turn. */
            cs_error_t result = cpg_mcast_joined(handle, CPG_TYPE_AGREED, &words, 1);
            if (result == CS_OK) {
                said++;
                due += period;
            } else if (result == CS_ERR_TRY_AGAIN) {
                due = now_ns() + 2000000u;
            } else {
                fprintf(stderr, "cpg_mcast_joined: %d\n", result);
                return 1;
            }
        }
    }
}
