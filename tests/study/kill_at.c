/* Preloaded (LD_PRELOAD): ends the process with SIGKILL at its n-th call that changes the disk below a folder.

kill_at(folder, n) arms it; n = 0 only counts, and calls_made() says how many there were. A write is cut off half-way,
as by a kill in the middle of it; every other call is not made at all.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long armed_for;
static atomic_long calls;

void kill_at(const char *path, long n) {
    snprintf(folder, sizeof folder, "%s", path);
    atomic_store(&calls, 0);
    atomic_store(&armed_for, n);
}

long calls_made(void) { return atomic_load(&calls); }

static int is_below(const char *path) {
    return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int fd_is_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* A path relative to a descriptor, as rmtree uses them, is below where the descriptor is. */
static int at_is_below(int fd, const char *path) { return path[0] == '/' ? is_below(path) : fd_is_below(fd); }

/* Counts a call; 1: it is the one at which the process ends. */
static int is_the_one(int counts) {
    return counts && atomic_fetch_add(&calls, 1) + 1 == atomic_load(&armed_for);
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define GENUINE(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))
#define KILL_IF(condition) do { if (is_the_one(condition)) end(); } while (0)

static int writes(int flags) { return flags & (O_CREAT | O_TRUNC); }

#define OPEN(name)                                                                  \
    int name(const char *path, int flags, ...) {                                    \
        va_list more;                                                               \
        va_start(more, flags);                                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;     \
        va_end(more);                                                               \
        KILL_IF(writes(flags) && is_below(path));                                   \
        return GENUINE(name)(path, flags, mode);                                    \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                \
    int name(int at, const char *path, int flags, ...) {                            \
        va_list more;                                                               \
        va_start(more, flags);                                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;     \
        va_end(more);                                                               \
        KILL_IF(writes(flags) && at_is_below(at, path));                            \
        return GENUINE(name)(at, path, flags, mode);                                \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *content, size_t size) {
    if (is_the_one(fd_is_below(fd))) {
        GENUINE(write)(fd, content, size / 2);
        end();
    }
    return GENUINE(write)(fd, content, size);
}

#define PWRITE(name, offset_t)                                                      \
    ssize_t name(int fd, const void *content, size_t size, offset_t offset) {       \
        if (is_the_one(fd_is_below(fd))) {                                          \
            GENUINE(name)(fd, content, size / 2, offset);                           \
            end();                                                                  \
        }                                                                           \
        return GENUINE(name)(fd, content, size, offset);                            \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_PATH(name, parameters, arguments, path)                                  \
    int name parameters {                                                           \
        KILL_IF(is_below(path));                                                    \
        return GENUINE(name) arguments;                                             \
    }
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path)
ON_PATH(unlink, (const char *path), (path), path)
ON_PATH(rmdir, (const char *path), (path), path)
ON_PATH(rename, (const char *from, const char *to), (from, to), to)
ON_PATH(link, (const char *from, const char *to), (from, to), to)

#define ON_DESCRIPTOR(name, parameters, arguments)                                  \
    int name parameters {                                                           \
        KILL_IF(fd_is_below(fd));                                                   \
        return GENUINE(name) arguments;                                             \
    }
ON_DESCRIPTOR(fsync, (int fd), (fd))
ON_DESCRIPTOR(fdatasync, (int fd), (fd))
ON_DESCRIPTOR(ftruncate, (int fd, off_t size), (fd, size))
ON_DESCRIPTOR(ftruncate64, (int fd, off64_t size), (fd, size))

#define AT(name, parameters, arguments, at, path)                                   \
    int name parameters {                                                           \
        KILL_IF(at_is_below(at, path));                                             \
        return GENUINE(name) arguments;                                             \
    }
AT(unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path)
AT(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), at, path)
AT(renameat, (int from_at, const char *from, int at, const char *to), (from_at, from, at, to), at, to)
AT(linkat, (int from_at, const char *from, int at, const char *to, int flags), (from_at, from, at, to, flags), at, to)
