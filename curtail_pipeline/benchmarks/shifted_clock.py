"""A wall clock that can be set, for the processes of one run alone: the library's clock calls are interposed.

`LD_PRELOAD` with a few lines of C that add an offset from a file to the real-time clock; monotonic clocks go on. It
takes Linux and a C compiler.
"""

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long long *offset_s;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIFTED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *place = file < 0 ? MAP_FAILED : mmap(0, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) offset_s = place;
}
int clock_gettime(clockid_t id, struct timespec *out) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, out);
    if (!code && offset_s && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) out->tv_sec += *offset_s;
    return code;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    int code = clock_gettime(CLOCK_REALTIME, &now);
    if (out) { out->tv_sec = now.tv_sec; out->tv_usec = now.tv_nsec / 1000; }
    return code;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def compiler() -> str | None:
    """Where there is one."""
    return shutil.which("cc") or shutil.which("gcc")


class ShiftedClock:
    """Args:
    folder: for the library and the offset.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock.offset"
        self.jump_to(0)
        self.environment: dict[str, str] = {}
        """For the processes whose clock it is; nothing where there is no compiler."""
        if (found := compiler()) is not None:
            (folder / "clock.c").write_text(SOURCE)
            library = folder / "clock.so"
            subprocess.run(
                [found, "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "clock.c"), "-ldl"], check=True
            )
            self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self._file)}

    def jump_to(self, seconds: int) -> None:
        """Off by so much from now on, behind when negative."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as stream:  # mapped: never replaced
            stream.write(struct.pack("=q", seconds))
