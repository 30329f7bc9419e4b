/* Faults at the n-th file-system call: an LD_PRELOAD library.
 *
 * Calls that change files below one directory are counted; at call number `at` (and the `times - 1` calls after it) the
 * chosen thing happens: the process is killed before or after the call, the call fails, it writes only half, it
 * happens but reports failure, the process stops. Everything lives in one small shared mapping, so the count goes on across
 * fork and exec, and the test that armed it can read it after the process is dead.
 *
 * Wrappers make the raw system call themselves, so there is nothing to look up and nothing to recurse into.
 * Blind spots: stores through a memory mapping, raw system calls of others, and libc's own stdio (fwrite).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum op { WRITE, PWRITE, WRITEV, PWRITEV, COPY, FSYNC, FDATASYNC, FTRUNCATE, FALLOCATE, CREATE, MKDIR, RENAME, LINK,
          SYMLINK, UNLINK, RMDIR, CHMOD, CLOSE, OPEN, READ, STAT, FLOCK, N_OPS };
static const char *const OP_NAMES =
    "write pwrite writev pwritev copy fsync fdatasync ftruncate fallocate create mkdir rename link "
    "symlink unlink rmdir chmod close open read stat flock";

enum action { COUNT, KILL_BEFORE, KILL_AFTER, KILL_TORN, FAIL, FAIL_AFTER, SHORT, STOP_BEFORE, STOP_AFTER };
static const char *const ACTION_NAMES =
    "count kill_before kill_after kill_torn fail fail_after short stop_before stop_after";

#define PATH_BYTES 4096
struct state {
    int armed, action, error, log_data;
    uint64_t ops, at, times, calls, fired, per_op[N_OPS];
    char prefix[PATH_BYTES], match[256], log[PATH_BYTES];
};
static struct state *state;

/* ---- control, called through ctypes ---- */

const char *fault_op_names(void) { return OP_NAMES; }
const char *fault_action_names(void) { return ACTION_NAMES; }

/* Map the shared state; the file is made if it is not there. */
int fault_attach(const char *path) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    if (syscall(SYS_ftruncate, fd, sizeof(struct state)) != 0) return -1;
    void *memory = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (memory == MAP_FAILED) return -1;
    state = memory;
    return 0;
}

void fault_disarm(void) { __atomic_store_n(&state->armed, 0, __ATOMIC_SEQ_CST); }

int fault_arm(const char *prefix, const char *match, uint64_t ops, int action, int error, uint64_t at, uint64_t times,
              const char *log, int log_data) {
    if (strlen(prefix) >= PATH_BYTES || strlen(log) >= PATH_BYTES || strlen(match) >= sizeof(state->match)) return -1;
    fault_disarm();
    memset(state, 0, sizeof *state);
    strcpy(state->prefix, prefix);
    strcpy(state->match, match);
    strcpy(state->log, log);
    state->ops = ops;
    state->action = action;
    state->error = error;
    state->at = at;
    state->times = times;
    state->log_data = log_data;
    __atomic_store_n(&state->armed, 1, __ATOMIC_SEQ_CST);
    return 0;
}

uint64_t fault_calls(void) { return __atomic_load_n(&state->calls, __ATOMIC_SEQ_CST); }
uint64_t fault_fired(void) { return __atomic_load_n(&state->fired, __ATOMIC_SEQ_CST); }
uint64_t fault_op_calls(int op) { return __atomic_load_n(&state->per_op[op], __ATOMIC_SEQ_CST); }

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULT_STATE");
    if (path != NULL && fault_attach(path) != 0) _exit(97);
}

/* ---- which calls are meant ---- */

static int wanted(int op) {
    return state != NULL && __atomic_load_n(&state->armed, __ATOMIC_SEQ_CST) && (state->ops >> op & 1);
}

static void path_of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_BYTES - 1);
    out[n < 0 ? 0 : n] = 0;
}

static void path_at(int dirfd, const char *path, char *out) {
    out[0] = 0;
    if (path == NULL) return;
    if (path[0] != '/') {
        if (dirfd == AT_FDCWD) {
            if (syscall(SYS_getcwd, out, PATH_BYTES) < 0) out[0] = 0;
        } else {
            path_of_fd(dirfd, out);
        }
        strncat(out, "/", PATH_BYTES - strlen(out) - 1);
    }
    strncat(out, path, PATH_BYTES - strlen(out) - 1);
}

static int below(const char *path) {
    size_t n = strlen(state->prefix);
    return strncmp(path, state->prefix, n) == 0 && (path[n] == '/' || path[n] == 0)
        && (state->match[0] == 0 || strstr(path, state->match) != NULL);
}

/* Count a call and say what is to happen to it. */
static int decide(int op, const char *path, const char *path2) {
    int saved = errno;
    if (!below(path) && !below(path2)) return -1;
    uint64_t n = __atomic_add_fetch(&state->calls, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&state->per_op[op], 1, __ATOMIC_SEQ_CST);
    errno = saved;
    if (n < state->at || n - state->at >= state->times) return COUNT;
    __atomic_add_fetch(&state->fired, 1, __ATOMIC_SEQ_CST);
    return state->action;
}

/* ---- what happens ---- */

static void die(void) {
    for (;;) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

static void stop(void) { syscall(SYS_kill, syscall(SYS_getpid), SIGSTOP); }

struct entry { uint32_t op, pid, path_bytes, path2_bytes; int64_t result, offset; uint64_t data_bytes, number; };

/* One record of the log: header, path, second path, data; a single write to a file opened for appending. */
static void note(int op, const char *path, const char *path2, int64_t result, int64_t offset, const struct iovec *data,
                 int pieces) {
    if (state->log[0] == 0) return;
    int fd = syscall(SYS_openat, AT_FDCWD, state->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    struct entry head = {op, syscall(SYS_getpid), strlen(path), strlen(path2), result, offset, 0, fault_calls()};
    struct iovec out[3 + 64] = {{&head, sizeof head}, {(void *)path, head.path_bytes}, {(void *)path2, head.path2_bytes}};
    int n = 3;
    uint64_t left = state->log_data && result > 0 ? (uint64_t)result : 0;
    for (int i = 0; i < pieces && i < 64 && left > 0; i++) {
        out[n] = data[i];
        if (out[n].iov_len > left) out[n].iov_len = left;
        left -= out[n].iov_len;
        head.data_bytes += out[n++].iov_len;
    }
    syscall(SYS_writev, fd, out, n);
    syscall(SYS_close, fd);
}

struct call {
    int op;
    const char *path, *path2;
    int64_t offset;             /* of the data, or the length for ftruncate; -1: the file's own position */
    const struct iovec *data;   /* what a write would write */
    int pieces, fd, act;
};

/* Before the call: returns 1 if it must not be made (errno is set). */
static int before(struct call *c) {
    c->act = decide(c->op, c->path, c->path2 ? c->path2 : "");
    if (c->act == KILL_BEFORE) die();
    if (c->act == STOP_BEFORE) stop();
    if (c->act != FAIL) return 0;
    errno = state->error;
    return 1;
}

/* After the call: returns what the caller gets. */
static long after(struct call *c, long result) {
    int saved = errno;
    if (c->act < 0) return result;
    if (c->data && c->offset == -1 && result > 0) c->offset = syscall(SYS_lseek, c->fd, 0, SEEK_CUR) - result;
    note(c->op, c->path, c->path2 ? c->path2 : "", result, c->offset, c->data, c->pieces);
    if (c->act == KILL_AFTER || c->act == KILL_TORN) die();
    if (c->act == STOP_AFTER) stop();
    errno = saved;
    if (c->act != FAIL_AFTER) return result;
    errno = state->error;
    return -1;
}

static size_t half(struct call *c, size_t n) {
    return (c->act == SHORT || c->act == KILL_TORN) && n > 1 ? n / 2 : n;
}

/* A call on paths. */
#define ON_PATHS(op_, path_, path2_, real)                                              \
    do {                                                                                \
        struct call c = {.op = op_, .path = path_, .path2 = path2_, .act = -1, .fd = -1}; \
        if (before(&c)) return -1;                                                      \
        return after(&c, (real));                                                       \
    } while (0)

/* A call on a descriptor. */
#define ON_FD(op_, fd_, offset_, real)                                                  \
    do {                                                                                \
        if (!wanted(op_)) return (real);                                                \
        char path[PATH_BYTES];                                                          \
        path_of_fd(fd_, path);                                                          \
        struct call c = {.op = op_, .path = path, .offset = offset_, .act = -1, .fd = fd_}; \
        if (before(&c)) return -1;                                                      \
        return after(&c, (real));                                                       \
    } while (0)

/* ---- data ---- */

static long write_some(int op, int fd, const void *data, size_t n, off_t offset) {
    char path[PATH_BYTES];
    path_of_fd(fd, path);
    struct iovec piece = {(void *)data, n};
    struct call c = {.op = op, .path = path, .offset = offset, .data = &piece, .pieces = 1, .fd = fd, .act = -1};
    if (before(&c)) return -1;
    n = half(&c, n);
    return after(&c, op == WRITE ? syscall(SYS_write, fd, data, n) : syscall(SYS_pwrite64, fd, data, n, offset));
}

static long write_pieces(int op, int fd, const struct iovec *data, int pieces, off_t offset) {
    char path[PATH_BYTES];
    path_of_fd(fd, path);
    struct call c = {.op = op, .path = path, .offset = offset, .data = data, .pieces = pieces, .fd = fd, .act = -1};
    if (before(&c)) return -1;
    struct iovec first = data[0];
    if (c.act == SHORT || c.act == KILL_TORN) {
        first.iov_len = pieces > 1 ? first.iov_len : half(&c, first.iov_len);
        pieces = 1;
        data = &first;
    }
    return after(&c, op == WRITEV ? syscall(SYS_writev, fd, data, pieces)
                                  : syscall(SYS_pwritev, fd, data, pieces, offset, 0L));
}

ssize_t write(int fd, const void *data, size_t n) {
    return wanted(WRITE) ? write_some(WRITE, fd, data, n, -1) : syscall(SYS_write, fd, data, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
    return wanted(PWRITE) ? write_some(PWRITE, fd, data, n, offset) : syscall(SYS_pwrite64, fd, data, n, offset);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return pwrite64(fd, data, n, offset); }
ssize_t writev(int fd, const struct iovec *data, int pieces) {
    return wanted(WRITEV) && pieces > 0 ? write_pieces(WRITEV, fd, data, pieces, -1)
                                        : syscall(SYS_writev, fd, data, pieces);
}
ssize_t pwritev64(int fd, const struct iovec *data, int pieces, off64_t offset) {
    return wanted(PWRITEV) && pieces > 0 ? write_pieces(PWRITEV, fd, data, pieces, offset)
                                         : syscall(SYS_pwritev, fd, data, pieces, offset, 0L);
}
ssize_t pwritev(int fd, const struct iovec *data, int pieces, off_t offset) {
    return pwritev64(fd, data, pieces, offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *data, int pieces, off64_t offset, int flags) {
    if (offset == -1) ON_FD(WRITEV, fd, -1, syscall(SYS_pwritev2, fd, data, pieces, offset, 0L, flags));
    ON_FD(PWRITEV, fd, offset, syscall(SYS_pwritev2, fd, data, pieces, offset, 0L, flags));
}
ssize_t pwritev2(int fd, const struct iovec *data, int pieces, off_t offset, int flags) {
    return pwritev64v2(fd, data, pieces, offset, flags);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t n) { ON_FD(COPY, out, 0, syscall(SYS_sendfile, out, in, offset, n)); }
ssize_t sendfile(int out, int in, off_t *offset, size_t n) { return sendfile64(out, in, offset, n); }
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags) {
    ON_FD(COPY, out, 0, syscall(SYS_copy_file_range, in, in_at, out, out_at, n, flags));
}
int fsync(int fd) { ON_FD(FSYNC, fd, 0, syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { ON_FD(FDATASYNC, fd, 0, syscall(SYS_fdatasync, fd)); }
int ftruncate64(int fd, off64_t length) { ON_FD(FTRUNCATE, fd, length, syscall(SYS_ftruncate, fd, length)); }
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
int fallocate64(int fd, int mode, off64_t at, off64_t n) { ON_FD(FALLOCATE, fd, at, syscall(SYS_fallocate, fd, mode, at, n)); }
int fallocate(int fd, int mode, off_t at, off_t n) { return fallocate64(fd, mode, at, n); }
int posix_fallocate64(int fd, off64_t at, off64_t n) { return fallocate64(fd, 0, at, n) == 0 ? 0 : errno; }
int posix_fallocate(int fd, off_t at, off_t n) { return posix_fallocate64(fd, at, n); }
int fchmod(int fd, mode_t mode) { ON_FD(CHMOD, fd, 0, syscall(SYS_fchmod, fd, mode)); }
int flock(int fd, int operation) { ON_FD(FLOCK, fd, 0, syscall(SYS_flock, fd, operation)); }
ssize_t read(int fd, void *data, size_t n) { ON_FD(READ, fd, 0, syscall(SYS_read, fd, data, n)); }
ssize_t pread64(int fd, void *data, size_t n, off64_t at) { ON_FD(READ, fd, at, syscall(SYS_pread64, fd, data, n, at)); }
ssize_t pread(int fd, void *data, size_t n, off_t at) { return pread64(fd, data, n, at); }

/* Closing what was written to; it always closes, and may report an error all the same, as NFS does. */
int close(int fd) {
    if (!wanted(CLOSE) || (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY) return syscall(SYS_close, fd);
    char path[PATH_BYTES];
    path_of_fd(fd, path);
    struct call c = {.op = CLOSE, .path = path, .act = -1, .fd = -1};
    if (before(&c)) {
        int error = errno;
        syscall(SYS_close, fd);
        errno = error;
        return -1;
    }
    return after(&c, syscall(SYS_close, fd));
}

/* ---- names ---- */

static int open_at(int dirfd, const char *name, int flags, mode_t mode) {
    int op = flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE ? CREATE : OPEN;
    if (!wanted(op)) return syscall(SYS_openat, dirfd, name, flags, mode);
    char path[PATH_BYTES];
    path_at(dirfd, name, path);
    ON_PATHS(op, path, NULL, syscall(SYS_openat, dirfd, name, flags, mode));
}

#define MODE_OF(flags, mode)                                              \
    mode_t mode = 0;                                                      \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode = va_arg(rest, mode_t);                                      \
        va_end(rest);                                                     \
    }

int open64(const char *name, int flags, ...) { MODE_OF(flags, mode) return open_at(AT_FDCWD, name, flags, mode); }
int open(const char *name, int flags, ...) { MODE_OF(flags, mode) return open_at(AT_FDCWD, name, flags, mode); }
int openat64(int fd, const char *name, int flags, ...) { MODE_OF(flags, mode) return open_at(fd, name, flags, mode); }
int openat(int fd, const char *name, int flags, ...) { MODE_OF(flags, mode) return open_at(fd, name, flags, mode); }
int __open_2(const char *name, int flags) { return open_at(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return open_at(AT_FDCWD, name, flags, 0); }
int creat64(const char *name, mode_t mode) { return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat(const char *name, mode_t mode) { return creat64(name, mode); }

/* A call on one name. */
#define ON_NAME(op_, dirfd, name, real)               \
    do {                                              \
        if (!wanted(op_)) return (real);              \
        char path[PATH_BYTES];                        \
        path_at(dirfd, name, path);                   \
        ON_PATHS(op_, path, NULL, real);              \
    } while (0)

/* A call on two names. */
#define ON_NAMES(op_, dirfd, name, dirfd2, name2, real) \
    do {                                              \
        if (!wanted(op_)) return (real);              \
        char path[PATH_BYTES], path2[PATH_BYTES];     \
        path_at(dirfd, name, path);                   \
        path_at(dirfd2, name2, path2);                \
        ON_PATHS(op_, path, path2, real);             \
    } while (0)

int mkdirat(int fd, const char *name, mode_t mode) { ON_NAME(MKDIR, fd, name, syscall(SYS_mkdirat, fd, name, mode)); }
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int unlinkat(int fd, const char *name, int flags) {
    if (flags & AT_REMOVEDIR) ON_NAME(RMDIR, fd, name, syscall(SYS_unlinkat, fd, name, flags));
    ON_NAME(UNLINK, fd, name, syscall(SYS_unlinkat, fd, name, flags));
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int truncate64(const char *name, off64_t n) { ON_NAME(FTRUNCATE, AT_FDCWD, name, syscall(SYS_truncate, name, n)); }
int truncate(const char *name, off_t n) { return truncate64(name, n); }
int fchmodat(int fd, const char *name, mode_t mode, int flags) {
    (void)flags; /* the kernel's call has none */
    ON_NAME(CHMOD, fd, name, syscall(SYS_fchmodat, fd, name, mode));
}
int chmod(const char *name, mode_t mode) { return fchmodat(AT_FDCWD, name, mode, 0); }
int renameat2(int fd, const char *name, int fd2, const char *name2, unsigned flags) {
    ON_NAMES(RENAME, fd, name, fd2, name2, syscall(SYS_renameat2, fd, name, fd2, name2, flags));
}
int renameat(int fd, const char *name, int fd2, const char *name2) { return renameat2(fd, name, fd2, name2, 0); }
int rename(const char *name, const char *name2) { return renameat2(AT_FDCWD, name, AT_FDCWD, name2, 0); }
int linkat(int fd, const char *name, int fd2, const char *name2, int flags) {
    ON_NAMES(LINK, fd, name, fd2, name2, syscall(SYS_linkat, fd, name, fd2, name2, flags));
}
int link(const char *name, const char *name2) { return linkat(AT_FDCWD, name, AT_FDCWD, name2, 0); }
int symlinkat(const char *target, int fd, const char *name) { ON_NAME(SYMLINK, fd, name, syscall(SYS_symlinkat, target, fd, name)); }
int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

static int stat_at(int fd, const char *name, void *out, int flags) {
    if (flags & AT_EMPTY_PATH) return syscall(SYS_newfstatat, fd, name, out, flags);
    ON_NAME(STAT, fd, name, syscall(SYS_newfstatat, fd, name, out, flags));
}
int stat64(const char *name, struct stat64 *out) { return stat_at(AT_FDCWD, name, out, 0); }
int stat(const char *name, struct stat *out) { return stat_at(AT_FDCWD, name, out, 0); }
int lstat64(const char *name, struct stat64 *out) { return stat_at(AT_FDCWD, name, out, AT_SYMLINK_NOFOLLOW); }
int lstat(const char *name, struct stat *out) { return stat_at(AT_FDCWD, name, out, AT_SYMLINK_NOFOLLOW); }
int fstatat64(int fd, const char *name, struct stat64 *out, int flags) { return stat_at(fd, name, out, flags); }
int fstatat(int fd, const char *name, struct stat *out, int flags) { return stat_at(fd, name, out, flags); }
