// A shim for LD_PRELOAD that makes the file operations of one process fail, stop short or kill it, when it is told to.
//
// faults_arm says which calls count: those of the named operations on files whose path contains a given part. Of these the
// call number `first` (from 0) and, if `sticky`, all later ones meet the fault. faults_hits tells how many calls counted.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAIL = 1, SHORT = 2, KILL = 3 };

static _Atomic int kind;  // 0: off
static _Atomic long calls;
static char operations[256], part[1024];
static long first;
static int sticky, error_number;
static size_t limit;

void faults_arm(int what, const char *ops, const char *path_part, long at, int stays, int number, size_t most) {
    kind = 0;
    calls = 0;
    snprintf(operations, sizeof operations, " %s ", ops);
    snprintf(part, sizeof part, "%s", path_part);
    first = at, sticky = stays, error_number = number, limit = most;
    kind = what;
}

long faults_hits(void) { return calls; }

// Whether this call meets the fault. A kill does not return.
static int meets(const char *operation, const char *path) {
    if (!kind) return 0;
    char name[32];
    snprintf(name, sizeof name, " %s ", operation);
    if (!strstr(operations, name) || !strstr(path, part)) return 0;
    long number = calls++;
    if (number != first && !(sticky && number > first)) return 0;
    if (kind == KILL) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return 1;
}

static int fd_meets(const char *operation, int fd) {
    if (!kind) return 0;
    int before = errno;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    errno = before;
    return meets(operation, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAILS(met) if ((met) && kind == FAIL) { errno = error_number; return -1; }
#define CUTS(met, count) if ((met) && kind == SHORT && (count) > limit) (count) = limit;

static ssize_t cut_vector(int fd, const struct iovec *vector, int count, off_t offset, int met, int flags) {
    ssize_t (*real)(int, const struct iovec *, int, off_t, int) = REAL(preadv2);
    FAILS(met)
    if (met && kind == SHORT && count > 0) {
        struct iovec one = {vector[0].iov_base, vector[0].iov_len < limit ? vector[0].iov_len : limit};
        if (one.iov_len) return real(fd, &one, 1, offset, flags);
    }
    return real(fd, vector, count, offset, flags);
}

ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t o, int flags) {
    return cut_vector(fd, v, n, o, fd_meets("pread", fd), flags);
}
ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t o) {
    return cut_vector(fd, v, n, o, fd_meets("pread", fd), 0);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    int met = fd_meets("pread", fd);
    FAILS(met) CUTS(met, count)
    return REAL(pread64)(fd, buffer, count, offset);
}
ssize_t pread(int fd, void *buffer, size_t count, off_t offset) { return pread64(fd, buffer, count, offset); }

ssize_t read(int fd, void *buffer, size_t count) {
    int met = fd_meets("read", fd);
    FAILS(met) CUTS(met, count)
    return REAL(read)(fd, buffer, count);
}

ssize_t write(int fd, const void *buffer, size_t count) {
    int met = fd_meets("write", fd);
    FAILS(met) CUTS(met, count)
    return REAL(write)(fd, buffer, count);
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t offset) {
    int met = fd_meets("pwrite", fd);
    FAILS(met) CUTS(met, count)
    return REAL(pwrite64)(fd, buffer, count, offset);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) {  // returns its error
    if (fd_meets("fallocate", fd) && kind == FAIL) return error_number;
    return REAL(posix_fallocate64)(fd, offset, length);
}

int ftruncate64(int fd, off64_t length) {
    FAILS(fd_meets("truncate", fd))
    return REAL(ftruncate64)(fd, length);
}

int fsync(int fd) {
    FAILS(fd_meets("fsync", fd))
    return REAL(fsync)(fd);
}

int close(int fd) {  // as NFS does: closed, and yet an error
    int met = fd_meets("close", fd), result = REAL(close)(fd);
    FAILS(met)
    return result;
}

int rename(const char *from, const char *to) {
    FAILS(meets("rename", to))
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    FAILS(meets("unlink", path))
    return REAL(unlink)(path);
}

int rmdir(const char *path) {
    FAILS(meets("rmdir", path))
    return REAL(rmdir)(path);
}

int mkdir(const char *path, mode_t mode) {
    FAILS(meets("mkdir", path))
    return REAL(mkdir)(path, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    FAILS(meets("open", path))
    return REAL(open64)(path, flags, mode);
}
