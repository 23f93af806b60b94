/* Put before a process with LD_PRELOAD: its syncs wait for as long as the file named by STALL_WHILE exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int stalled_call(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *path = getenv("STALL_WHILE");
    while (path != NULL && access(path, F_OK) == 0) {
        usleep(10 * 1000);
    }
    return real(fd);
}

int fdatasync(int fd) { return stalled_call("fdatasync", fd); }

int fsync(int fd) { return stalled_call("fsync", fd); }
