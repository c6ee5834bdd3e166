/* Loaded before libc into a process under test (LD_PRELOAD): makes its disk slow and its clock wrong, as the file FAULTS_TWEAKS says
 * at the time. The file is two numbers of 64 bits: how long each flush of the disk takes in addition, and how far the clock is ahead,
 * both in milliseconds. Clocks that only count from some start are left alone, as they are where an operator sets a clock. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct tweaks {
    int64_t flush_ms;
    int64_t clock_ms;
};

static const volatile struct tweaks *tweaks;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_TWEAKS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof(struct tweaks), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED)
        tweaks = map;
}

static void linger(void) {
    int64_t ms = tweaks ? tweaks->flush_ms : 0;
    if (ms > 0) {
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        nanosleep(&time, NULL);
    }
}

int fsync(int file) {
    linger();
    return syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    linger();
    return syscall(SYS_fdatasync, file);
}

int clock_gettime(clockid_t clock, struct timespec *to) {
    int answer = syscall(SYS_clock_gettime, clock, to);
    int64_t ms = tweaks ? tweaks->clock_ms : 0;
    if (answer == 0 && ms != 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t nanos = to->tv_nsec + ms % 1000 * 1000000;
        to->tv_sec += ms / 1000 + (nanos < 0 ? -1 : nanos / 1000000000);
        to->tv_nsec = (nanos + 1000000000) % 1000000000;
    }
    return answer;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int answer = clock_gettime(CLOCK_REALTIME, &now);
    if (answer == 0) {
        to->tv_sec = now.tv_sec;
        to->tv_usec = now.tv_nsec / 1000;
    }
    return answer;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}
