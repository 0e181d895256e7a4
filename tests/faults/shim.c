/* Counts, logs and breaks the calls by which a process changes files below one folder.

   Preloaded (LD_PRELOAD); idle until shim_arm. Every call that writes, syncs, renames, links,
   truncates, makes or removes something below the folder, or opens it for writing, has a number.
   At the chosen number the fault happens once, or (FULL, DEAD) from there on.

   The real work is done by the C library's syscall(), so no wrapper calls another. What the C
   library does inside itself (fwrite's buffer) is not seen; test_shim.py holds the log against
   strace's, so that nothing of that kind goes unnoticed. */

#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define CLONE_WHOLE 0x40049409UL /* FICLONE */
#define CLONE_RANGE 0x4020940dUL /* FICLONERANGE */

/* The same numbers as faults/driver.py. */
enum mode {
    NONE, KILL_BEFORE, KILL_AFTER, KILL_HALFWAY, NO_SPACE, BROKEN, SHORT, FULL, DEAD, STOP_BEFORE
};

/* What a call needs of the disk: FULL fails only the calls that need room. */
enum need { NO_ROOM, ROOM, DATA };

static atomic_long counter;
static long target;
static int mode, active, log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    static long (*next)(long, ...);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "syscall");
    return next(number, a, b, c, d, e, f);
}

#define RAW6(n, a, b, c, d, e, f) \
    call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define RAW5(n, a, b, c, d, e) RAW6(n, a, b, c, d, e, 0)
#define RAW4(n, a, b, c, d) RAW6(n, a, b, c, d, 0, 0)
#define RAW3(n, a, b, c) RAW6(n, a, b, c, 0, 0, 0)
#define RAW2(n, a, b) RAW6(n, a, b, 0, 0, 0, 0)
#define RAW1(n, a) RAW6(n, a, 0, 0, 0, 0, 0)

/* Number 0: nothing is broken, only counted. */
EXPORT void shim_arm(const char *folder, long number, int what, int log)
{
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
    target = number;
    mode = what;
    log_fd = log;
    atomic_store(&counter, 0);
    active = 1;
}

EXPORT long shim_disarm(void)
{
    active = 0;
    return atomic_load(&counter);
}

static void place_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = RAW4(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

static void resolve(int folder, const char *name, char *path)
{
    char place[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD)
        RAW2(SYS_getcwd, place, PATH_MAX);
    else
        place_of(folder, place);
    if (snprintf(path, PATH_MAX, "%s/%s", place, name) >= PATH_MAX)
        path[0] = 0;
}

static int is_watched(const char *path)
{
    return !strncmp(path, root, root_length) && (!path[root_length] || path[root_length] == '/');
}

static void tell(char mark, long number, const char *name, const char *path, size_t size)
{
    char line[PATH_MAX + 128];
    if (log_fd < 0)
        return;
    int length =
        snprintf(line, sizeof line, "%c\t%ld\t%s\t%zu\t%s\n", mark, number, name, size, path);
    RAW3(SYS_write, log_fd, line, length);
}

static void end(int number) { RAW2(SYS_kill, getpid(), number); }

/* What is to be done with this call: NONE, KILL_AFTER, KILL_HALFWAY, SHORT; or -1, with errno. */
static int note(const char *name, const char *path, enum need need, size_t size)
{
    int saved = errno;
    long number = atomic_fetch_add(&counter, 1) + 1;
    int sticky = mode == FULL || mode == DEAD;
    int hit = target && (sticky ? number >= target : number == target);
    if (mode == FULL && need == NO_ROOM)
        hit = 0;
    if ((mode == SHORT || mode == KILL_HALFWAY) && (need != DATA || size < 2))
        hit = 0;
    tell(hit ? '!' : '.', number, name, path, size);
    errno = saved;
    if (!hit)
        return NONE;
    switch (mode) {
    case KILL_BEFORE: end(SIGKILL); return NONE;
    case STOP_BEFORE: end(SIGSTOP); return NONE;
    case NO_SPACE: case FULL: errno = ENOSPC; return -1;
    case BROKEN: case DEAD: errno = EIO; return -1;
    default: return mode;
    }
}

static int note_fd(const char *name, int fd, enum need need, size_t size)
{
    char path[PATH_MAX];
    int saved = errno;
    if (!active)
        return NONE;
    place_of(fd, path);
    errno = saved;
    return is_watched(path) ? note(name, path, need, size) : NONE;
}

static int note_path(const char *name, int folder, const char *file, enum need need)
{
    char path[PATH_MAX];
    int saved = errno;
    if (!active || !file)
        return NONE;
    resolve(folder, file, path);
    errno = saved;
    return is_watched(path) ? note(name, path, need, 0) : NONE;
}

static int note_two(const char *name, int from, const char *file, int to, const char *other,
                    enum need need)
{
    char path[PATH_MAX];
    if (!active || !file || !other)
        return NONE;
    resolve(to, other, path);
    return is_watched(path) ? note(name, path, need, 0) : note_path(name, from, file, need);
}

static long after(int fault, long result)
{
    if (fault == KILL_AFTER || fault == KILL_HALFWAY)
        end(SIGKILL);
    return result;
}

#define SIMPLE(noted, real)          \
    do {                             \
        int fault = (noted);         \
        if (fault < 0)               \
            return -1;               \
        return after(fault, (real)); \
    } while (0)

/* As SIMPLE, with `length` halved where the fault says so. */
#define SIZED(noted, length, real)                    \
    do {                                              \
        int fault = (noted);                          \
        if (fault < 0)                                \
            return -1;                                \
        if (fault == SHORT || fault == KILL_HALFWAY)  \
            (length) /= 2;                            \
        return after(fault, (real));                  \
    } while (0)

/* writing */

EXPORT ssize_t write(int fd, const void *data, size_t n)
{
    SIZED(note_fd("write", fd, DATA, n), n, RAW3(SYS_write, fd, data, n));
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    SIZED(note_fd("pwrite", fd, DATA, n), n, RAW4(SYS_pwrite64, fd, data, n, at));
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return pwrite64(fd, data, n, at);
}

static size_t total(const struct iovec *parts, int count)
{
    size_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += parts[i].iov_len;
    return sum;
}

/* The first half of the bytes; with one part it becomes a plain write of half of it. */
static long some_parts(const char *name, int fd, const struct iovec *parts, int count, off64_t at,
                       int flags)
{
    int fault = note_fd(name, fd, DATA, total(parts, count));
    struct iovec half;
    if (fault < 0)
        return -1;
    if (fault == SHORT || fault == KILL_HALFWAY) {
        half = parts[0];
        if (count > 1)
            count /= 2;
        else {
            half.iov_len /= 2;
            parts = &half;
        }
    }
    if (at == -1 && !flags)
        return after(fault, RAW3(SYS_writev, fd, parts, count));
    return after(fault, RAW6(SYS_pwritev2, fd, parts, count, at, 0, flags));
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return some_parts("writev", fd, parts, count, -1, 0);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    return some_parts("pwritev", fd, parts, count, at, 0);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
{
    return some_parts("pwritev", fd, parts, count, at, 0);
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    return some_parts("pwritev2", fd, parts, count, at, flags);
}

EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{
    return some_parts("pwritev2", fd, parts, count, at, flags);
}

EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n,
                               unsigned flags)
{
    SIZED(note_fd("copy_file_range", out, DATA, n), n,
          RAW6(SYS_copy_file_range, in, from, out, to, n, flags));
}

EXPORT ssize_t sendfile64(int out, int in, off64_t *from, size_t n)
{
    SIZED(note_fd("sendfile", out, DATA, n), n, RAW4(SYS_sendfile, out, in, from, n));
}

EXPORT ssize_t sendfile(int out, int in, off_t *from, size_t n)
{
    return sendfile64(out, in, from, n);
}

EXPORT ssize_t splice(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags)
{
    SIZED(note_fd("splice", out, DATA, n), n, RAW6(SYS_splice, in, from, out, to, n, flags));
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    long argument = va_arg(rest, long);
    va_end(rest);
    if (request != CLONE_WHOLE && request != CLONE_RANGE)
        return RAW3(SYS_ioctl, fd, request, argument);
    SIMPLE(note_fd("ioctl-clone", fd, ROOM, 0), RAW3(SYS_ioctl, fd, request, argument));
}

/* A file that is written through memory would escape: it is counted, so that the test sees it. */
EXPORT void *mmap64(void *at, size_t n, int rights, int flags, int fd, off64_t offset)
{
    int shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    if (fd >= 0 && shared && (rights & PROT_WRITE) && note_fd("mmap", fd, ROOM, n) < 0)
        return MAP_FAILED;
    return (void *)RAW6(SYS_mmap, at, n, rights, flags, fd, offset);
}

EXPORT void *mmap(void *at, size_t n, int rights, int flags, int fd, off_t offset)
{
    return mmap64(at, n, rights, flags, fd, offset);
}

/* syncing */

EXPORT int fsync(int fd) { SIMPLE(note_fd("fsync", fd, ROOM, 0), RAW1(SYS_fsync, fd)); }

EXPORT int fdatasync(int fd)
{
    SIMPLE(note_fd("fdatasync", fd, ROOM, 0), RAW1(SYS_fdatasync, fd));
}

EXPORT int syncfs(int fd) { SIMPLE(note_fd("syncfs", fd, ROOM, 0), RAW1(SYS_syncfs, fd)); }

EXPORT int sync_file_range(int fd, off64_t from, off64_t n, unsigned flags)
{
    SIMPLE(note_fd("sync_file_range", fd, ROOM, 0),
           RAW4(SYS_sync_file_range, fd, from, n, flags));
}

/* lengths */

EXPORT int ftruncate64(int fd, off64_t n)
{
    SIMPLE(note_fd("ftruncate", fd, ROOM, 0), RAW2(SYS_ftruncate, fd, n));
}

EXPORT int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }

EXPORT int truncate64(const char *path, off64_t n)
{
    SIMPLE(note_path("truncate", AT_FDCWD, path, ROOM), RAW2(SYS_truncate, path, n));
}

EXPORT int truncate(const char *path, off_t n) { return truncate64(path, n); }

EXPORT int fallocate64(int fd, int how, off64_t from, off64_t n)
{
    SIMPLE(note_fd("fallocate", fd, ROOM, 0), RAW4(SYS_fallocate, fd, how, from, n));
}

EXPORT int fallocate(int fd, int how, off_t from, off_t n) { return fallocate64(fd, how, from, n); }

/* Returns the error instead of setting errno. */
EXPORT int posix_fallocate64(int fd, off64_t from, off64_t n)
{
    int saved = errno;
    int fault = note_fd("posix_fallocate", fd, ROOM, 0);
    int failed = fault < 0 || after(fault, RAW4(SYS_fallocate, fd, 0, from, n)) < 0;
    int code = failed ? errno : 0;
    errno = saved;
    return code;
}

EXPORT int posix_fallocate(int fd, off_t from, off_t n) { return posix_fallocate64(fd, from, n); }

/* opening for writing */

static int is_writing(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
}

static int open_at(int folder, const char *path, int flags, mode_t rights)
{
    if (!is_writing(flags))
        return RAW4(SYS_openat, folder, path, flags, rights);
    SIMPLE(note_path("open", folder, path, ROOM), RAW4(SYS_openat, folder, path, flags, rights));
}

#define OPENER(signature, folder)                        \
    EXPORT int signature                                 \
    {                                                    \
        mode_t rights = 0;                               \
        if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
            va_list rest;                                \
            va_start(rest, flags);                       \
            rights = va_arg(rest, int);                  \
            va_end(rest);                                \
        }                                                \
        return open_at(folder, path, flags, rights);     \
    }

OPENER(open(const char *path, int flags, ...), AT_FDCWD)
OPENER(open64(const char *path, int flags, ...), AT_FDCWD)
OPENER(openat(int folder, const char *path, int flags, ...), folder)
OPENER(openat64(int folder, const char *path, int flags, ...), folder)

EXPORT int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
EXPORT int __openat_2(int at, const char *path, int flags) { return open_at(at, path, flags, 0); }
EXPORT int __openat64_2(int at, const char *path, int flags) { return open_at(at, path, flags, 0); }

EXPORT int creat64(const char *path, mode_t rights)
{
    return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, rights);
}

EXPORT int creat(const char *path, mode_t rights) { return creat64(path, rights); }

static FILE *stream(const char *symbol, const char *path, const char *how)
{
    FILE *(*next)(const char *, const char *);
    int fault = strpbrk(how, "wa+") ? note_path("fopen", AT_FDCWD, path, ROOM) : NONE;
    if (fault < 0)
        return NULL;
    *(void **)&next = dlsym(RTLD_NEXT, symbol);
    FILE *file = next(path, how);
    after(fault, 0);
    return file;
}

EXPORT FILE *fopen(const char *path, const char *how) { return stream("fopen", path, how); }
EXPORT FILE *fopen64(const char *path, const char *how) { return stream("fopen64", path, how); }

/* names */

static int rename_at(const char *name, int from, const char *old, int to, const char *new,
                     unsigned flags)
{
    SIMPLE(note_two(name, from, old, to, new, NO_ROOM),
           RAW5(SYS_renameat2, from, old, to, new, flags));
}

EXPORT int rename(const char *old, const char *new)
{
    return rename_at("rename", AT_FDCWD, old, AT_FDCWD, new, 0);
}

EXPORT int renameat(int from, const char *old, int to, const char *new)
{
    return rename_at("renameat", from, old, to, new, 0);
}

EXPORT int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    return rename_at("renameat2", from, old, to, new, flags);
}

EXPORT int linkat(int from, const char *old, int to, const char *new, int flags)
{
    SIMPLE(note_two("link", from, old, to, new, ROOM),
           RAW5(SYS_linkat, from, old, to, new, flags));
}

EXPORT int link(const char *old, const char *new)
{
    return linkat(AT_FDCWD, old, AT_FDCWD, new, 0);
}

EXPORT int symlinkat(const char *text, int folder, const char *path)
{
    SIMPLE(note_path("symlink", folder, path, ROOM), RAW3(SYS_symlinkat, text, folder, path));
}

EXPORT int symlink(const char *text, const char *path) { return symlinkat(text, AT_FDCWD, path); }

EXPORT int unlinkat(int folder, const char *path, int flags)
{
    SIMPLE(note_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, NO_ROOM),
           RAW3(SYS_unlinkat, folder, path, flags));
}

EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

EXPORT int mkdirat(int folder, const char *path, mode_t rights)
{
    SIMPLE(note_path("mkdir", folder, path, ROOM), RAW3(SYS_mkdirat, folder, path, rights));
}

EXPORT int mkdir(const char *path, mode_t rights) { return mkdirat(AT_FDCWD, path, rights); }

EXPORT int fchmod(int fd, mode_t rights)
{
    SIMPLE(note_fd("fchmod", fd, NO_ROOM, 0), RAW2(SYS_fchmod, fd, rights));
}

EXPORT int chmod(const char *path, mode_t rights)
{
    SIMPLE(note_path("chmod", AT_FDCWD, path, NO_ROOM),
           RAW3(SYS_fchmodat, AT_FDCWD, path, rights));
}

/* By number: what a library does through syscall() comes back to the wrapper of that call. */

EXPORT long syscall(long number, ...)
{
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    switch (number) {
    case SYS_write: return write(a, (void *)b, c);
    case SYS_pwrite64: return pwrite64(a, (void *)b, c, d);
    case SYS_writev: return writev(a, (void *)b, c);
    case SYS_pwritev: return pwritev64(a, (void *)b, c, d);
    case SYS_pwritev2: return pwritev64v2(a, (void *)b, c, d, f);
    case SYS_copy_file_range: return copy_file_range(a, (void *)b, c, (void *)d, e, f);
    case SYS_sendfile: return sendfile64(a, b, (void *)c, d);
    case SYS_splice: return splice(a, (void *)b, c, (void *)d, e, f);
    case SYS_ioctl: return ioctl(a, b, c);
    case SYS_fsync: return fsync(a);
    case SYS_fdatasync: return fdatasync(a);
    case SYS_syncfs: return syncfs(a);
    case SYS_sync_file_range: return sync_file_range(a, b, c, d);
    case SYS_ftruncate: return ftruncate64(a, b);
    case SYS_truncate: return truncate64((char *)a, b);
    case SYS_fallocate: return fallocate64(a, b, c, d);
    case SYS_openat: return open_at(a, (char *)b, c, d);
    case SYS_renameat2: return renameat2(a, (char *)b, c, (char *)d, e);
    case SYS_linkat: return linkat(a, (char *)b, c, (char *)d, e);
    case SYS_symlinkat: return symlinkat((char *)a, b, (char *)c);
    case SYS_unlinkat: return unlinkat(a, (char *)b, c);
    case SYS_mkdirat: return mkdirat(a, (char *)b, c);
    case SYS_fchmod: return fchmod(a, b);
#ifdef SYS_open /* the older forms, which aarch64 does not have */
    case SYS_open: return open_at(AT_FDCWD, (char *)a, b, c);
    case SYS_creat: return creat64((char *)a, b);
    case SYS_rename: return rename((char *)a, (char *)b);
    case SYS_link: return link((char *)a, (char *)b);
    case SYS_symlink: return symlink((char *)a, (char *)b);
    case SYS_unlink: return unlink((char *)a);
    case SYS_rmdir: return rmdir((char *)a);
    case SYS_mkdir: return mkdir((char *)a, b);
    case SYS_chmod: return chmod((char *)a, b);
#endif
#ifdef SYS_renameat
    case SYS_renameat: return renameat(a, (char *)b, c, (char *)d);
#endif
    default: return RAW6(number, a, b, c, d, e, f);
    }
}
