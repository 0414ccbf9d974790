// Programs for the tests of injection: a stand-in for a container's shim, targets that do all kinds of
// things while something is injected into them, and programs to inject. Linked statically.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void say(const char *text) {
    (void)!write(1, text, strlen(text));
}

// --- a shim: starts a program, reaps whatever becomes its child, tells how it ended ----------------

static int shim(char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        close(null);
        execv(argv[0], argv);
        _exit(126);
    }
    printf("started %d\n", child);
    fflush(stdout);
    for (;;) {
        struct pollfd in = {0, POLLIN, 0};
        int status;
        pid_t pid;
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            if (WIFEXITED(status)) printf("ended %d code %d\n", pid, WEXITSTATUS(status));
            else printf("ended %d signal %d\n", pid, WTERMSIG(status));
            fflush(stdout);
        }
        // SIGCHLD is not waited for: looking often is enough here.
        if (poll(&in, 1, 2) > 0) break;
    }
    // Our input was closed: end what is left.
    for (;;) {
        char path[64], list[65536];
        snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
        int fd = open(path, O_RDONLY);
        ssize_t n = read(fd, list, sizeof list - 1);
        close(fd);
        if (n <= 0) return 0;
        list[n] = 0;
        for (char *p = strtok(list, " "); p; p = strtok(NULL, " ")) kill(atoi(p), SIGKILL);
        waitpid(-1, NULL, 0);
    }
}

// --- targets ---------------------------------------------------------------------------------------

static volatile sig_atomic_t signals;
static void count(int n) { (void)n; signals++; }

static void *spin(void *counter) {
    volatile unsigned long *c = counter;
    for (;;) (*c)++;
    return NULL;
}

static void *spin_to(void *end) {
    volatile unsigned long c = 0;
    while (c < (unsigned long)(uintptr_t)end) c++;
    return (void *)c;
}

// Denies one system call, with an errno or with SIGSYS.
static void deny(long number, unsigned action) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(125);
}

#ifdef __x86_64__
static volatile unsigned long aborts;

// Stays in a restartable sequence, out of which only its abort handler leads, until it was aborted so
// many times.
static void restartable(unsigned long times) {
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    __asm__ volatile(
        ".pushsection .data\n\t"
        ".balign 32\n"
        "3:\t.long 0, 0\n\t"
        ".quad 1f, 2f - 1f, 4f\n\t"
        ".popsection\n"
        "5:\tleaq 3b(%%rip), %%rax\n\t"
        "movq %%rax, 8(%[area])\n"
        "1:\tpause\n\t"
        "jmp 1b\n"
        "2:\t.long 0x53053053\n"
        "4:\tincq %[aborts]\n\t"
        "cmpq %[times], %[aborts]\n\t"
        "jb 5b\n\t"
        "movq $0, 8(%[area])\n"
        : [aborts] "+m"(aborts)
        : [area] "r"(area), [times] "r"(times)
        : "rax", "memory", "cc");
}
#endif

static void *sleep_for_ever(void *unused) {
    (void)unused;
    for (;;) pause();
    return NULL;
}

static long number_of(const char *name) {
    if (!strcmp(name, "memfd_create")) return SYS_memfd_create;
    if (!strcmp(name, "execveat")) return SYS_execveat;
    if (!strcmp(name, "clone")) return SYS_clone;
    if (!strcmp(name, "fchmod")) return SYS_fchmod;
    return -1;
}

static int target(int argc, char **argv) {
    const char *what = argv[0];
    long number = argc > 1 ? atol(argv[1]) : 0;
    char line[128];
    if (!strcmp(what, "sleep")) {
        // Ends with 3 if it was interrupted, and tells how long it slept.
        struct timespec t = {number / 1000, number % 1000 * 1000000};
        long long begun = now_ms();
        say("ready\n");
        int result = syscall(SYS_nanosleep, &t, NULL);
        snprintf(line, sizeof line, "slept %lld\n", now_ms() - begun);
        say(line);
        return result == 0 ? 7 : 3;
    }
    if (!strcmp(what, "poll")) {
        long long begun = now_ms();
        say("ready\n");
        int result = poll(NULL, 0, number);
        snprintf(line, sizeof line, "slept %lld\n", now_ms() - begun);
        say(line);
        return result == 0 ? 7 : 3;
    }
    if (!strcmp(what, "epoll")) {
        int fd = epoll_create1(0), interruptions = 0, result;
        struct epoll_event event;
        long long end = now_ms() + number;
        say("ready\n");
        while ((result = epoll_wait(fd, &event, 1, end > now_ms() ? end - now_ms() : 0)) < 0 && errno == EINTR)
            interruptions++;
        snprintf(line, sizeof line, "interrupted %d\n", interruptions);
        say(line);
        return result == 0 ? 7 : 3;
    }
    if (!strcmp(what, "epoll-thread")) {
        pthread_t t;
        pthread_create(&t, NULL, sleep_for_ever, NULL);
        return target(argc, (char *[]){"epoll", argv[1], NULL});
    }
#ifdef __x86_64__
    if (!strcmp(what, "restartable")) {
        say("ready\n");
        restartable(number);
        return 7;
    }
#endif
    if (!strcmp(what, "main-ended")) {
        pthread_t t;
        pthread_create(&t, NULL, sleep_for_ever, NULL);
        say("ready\n");
        pthread_exit(NULL);
    }
    if (!strcmp(what, "first-process")) {
        // The first of a PID namespace of its own, where executable memfds are as restricted.
        if (unshare(CLONE_NEWPID)) return 3;
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            int fd = open("/proc/sys/vm/memfd_noexec", O_WRONLY);
            if (write(fd, argv[1], 1) != 1) _exit(3);
            close(fd);
            say("restricted\n");
            for (;;) pause();
        }
        say("ready\n");
        snprintf(line, sizeof line, "first %d\n", child);
        say(line);
        waitpid(child, NULL, 0);
        return 3;
    }
    if (!strcmp(what, "futex")) {
        static unsigned word;
        struct timespec t = {number / 1000, number % 1000 * 1000000};
        long long begun = now_ms();
        say("ready\n");
        int result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0);
        int error = errno;
        snprintf(line, sizeof line, "slept %lld\n", now_ms() - begun);
        say(line);
        return result == -1 && error == ETIMEDOUT ? 7 : 3;
    }
    if (!strcmp(what, "read")) {
        // Blocked in a read from a pipe that a child of it writes after a while.
        int ends[2];
        (void)!pipe(ends);
        pid_t child = fork();
        if (child == 0) {
            usleep(number * 1000);
            (void)!write(ends[1], "x", 1);
            _exit(0);
        }
        char byte = 0;
        say("ready\n");
        ssize_t got = read(ends[0], &byte, 1);
        waitpid(child, NULL, 0);
        return got == 1 && byte == 'x' ? 7 : 3;
    }
    if (!strcmp(what, "wait")) {
        // A child that is no child of ours must not show up in wait.
        pid_t child = fork();
        if (child == 0) {
            usleep(number * 1000);
            _exit(9);
        }
        int status = 0;
        say("ready\n");
        pid_t got = wait(&status);
        return got == child && WEXITSTATUS(status) == 9 && wait(NULL) == -1 && errno == ECHILD ? 7 : 3;
    }
    if (!strcmp(what, "busy")) {
        // Counts in registers with a checksum: any register that changes shows.
        say("ready\n");
        unsigned long a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
        double x = 1.0;
        for (long i = 0; i < number; i++) {
            a = a * 6364136223846793005UL + b;
            b ^= a >> 7;
            c += b;
            d = d * 31 + c;
            e ^= d << 3;
            f += e ^ a;
            x = x * 1.0000001 + 0.5;
            if (x > 1e6) x = 1.0;
        }
        snprintf(line, sizeof line, "sum %lx %.17g\n", a ^ b ^ c ^ d ^ e ^ f, x);
        say(line);
        return 7;
    }
    if (!strcmp(what, "threads")) {
        pthread_t t[8];
        unsigned long end = number;
        for (int i = 0; i < 8; i++) pthread_create(&t[i], NULL, spin_to, (void *)(uintptr_t)end);
        say("ready\n");
        int good = 1;
        for (int i = 0; i < 8; i++) {
            void *result;
            pthread_join(t[i], &result);
            good &= (unsigned long)(uintptr_t)result == end;
        }
        return good ? 7 : 3;
    }
    if (!strcmp(what, "spinning-threads")) {
        static unsigned long counters[8];
        for (int i = 0; i < 8; i++) {
            pthread_t t;
            pthread_create(&t, NULL, spin, &counters[i]);
        }
        say("ready\n");
        for (;;) pause();
    }
    if (!strcmp(what, "timer")) {
        // A signal every half millisecond and one realtime signal of its own for each: none may be lost.
        struct sigaction action = {.sa_handler = count};
        sigaction(SIGALRM, &action, NULL);
        sigaction(SIGRTMIN + 3, &action, NULL);
        say("ready\n");
        long sent = 0;
        struct itimerval every = {{0, 500}, {0, 500}};
        setitimer(ITIMER_REAL, &every, NULL);
        long long end = now_ms() + number;
        while (now_ms() < end) {
            struct timespec t = {0, 100000};
            nanosleep(&t, NULL);
            union sigval value = {0};
            sigqueue(getpid(), SIGRTMIN + 3, value);
            sent++;
        }
        memset(&every, 0, sizeof every);
        setitimer(ITIMER_REAL, &every, NULL);
        return signals > sent ? 7 : 3;
    }
    if (!strcmp(what, "signals")) {
        // Counts the realtime signals that others send; says so at SIGTERM.
        struct sigaction action = {.sa_handler = count};
        sigaction(SIGRTMIN + 3, &action, NULL);
        sigset_t terminate;
        sigemptyset(&terminate);
        sigaddset(&terminate, SIGTERM);
        sigprocmask(SIG_BLOCK, &terminate, NULL);
        say("ready\n");
        for (;;) {
            sigset_t pending;
            sigpending(&pending);
            if (sigismember(&pending, SIGTERM)) break;
            pause();
        }
        snprintf(line, sizeof line, "got %d\n", (int)signals);
        say(line);
        return 7;
    }
    if (!strcmp(what, "suspend")) {
        // Waits with a mask of its own for a signal that is blocked otherwise.
        struct sigaction action = {.sa_handler = count};
        sigaction(SIGUSR1, &action, NULL);
        sigset_t blocked, none;
        sigemptyset(&none);
        sigemptyset(&blocked);
        sigaddset(&blocked, SIGUSR1);
        sigprocmask(SIG_BLOCK, &blocked, NULL);
        say("ready\n");
        int result = sigsuspend(&none);
        return result == -1 && errno == EINTR && signals == 1 ? 7 : 3;
    }
    if (!strcmp(what, "vfork")) {
        // Its main thread is in uninterruptible sleep for as long as its child lives.
        say("ready\n");
        if (vfork() == 0) {
            struct timespec t = {number / 1000, number % 1000 * 1000000};
            syscall(SYS_nanosleep, &t, NULL);
            _exit(0);
        }
        return 7;
    }
    if (!strcmp(what, "vfork-thread")) {
        // The same, with a second thread that sleeps.
        pthread_t t;
        static unsigned long counter;
        pthread_create(&t, NULL, spin, &counter);
        return target(argc, (char *[]){"vfork", argv[1], NULL});
    }
    if (!strcmp(what, "zombie")) {
        say("ready\n");
        pid_t child = fork();
        if (child == 0) _exit(0);
        snprintf(line, sizeof line, "zombie %d\n", child);
        say(line);
        for (;;) pause();
    }
    if (!strcmp(what, "no-descriptors")) {
        struct rlimit limit = {8, 8};
        setrlimit(RLIMIT_NOFILE, &limit);
        while (dup(0) >= 0) {}
        say("ready\n");
        for (;;) pause();
    }
    if (!strcmp(what, "no-processes")) {
        struct rlimit limit = {1, 1};
        setrlimit(RLIMIT_NPROC, &limit);
        say("ready\n");
        for (;;) pause();
    }
    if (!strcmp(what, "no-memory")) {
        struct rlimit limit = {0, 0};
        say("ready\n");
        setrlimit(RLIMIT_AS, &limit);
        for (;;) pause();
    }
    if (!strcmp(what, "deny") || !strcmp(what, "trap")) {
        deny(number_of(argv[1]),
             what[0] == 'd' ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_TRAP);
        say("ready\n");
        for (;;) pause();
    }
    return 124;
}

// --- programs to inject ----------------------------------------------------------------------------

static int injected(int argc, char **argv) {
    const char *how = argv[0];
    if (!strcmp(how, "early")) return 5;
    if (!strcmp(how, "mute")) for (;;) pause();
    if (!strcmp(how, "report") && argc > 1) {
        // What it has: its status, its directory, an argument and a variable.
        char status[16384], cwd[4096];
        int fd = open("/proc/self/status", O_RDONLY);
        ssize_t n = read(fd, status, sizeof status - 1);
        close(fd);
        status[n > 0 ? n : 0] = 0;
        FILE *out = fopen(argv[1], "w");
        if (!out) return 6;
        fprintf(out, "%s", status);
        fprintf(out, "cwd:\t%s\n", getcwd(cwd, sizeof cwd));
        fprintf(out, "argument:\t%s\n", argc > 2 ? argv[2] : "");
        fprintf(out, "variable:\t%s\n", getenv("VARIABLE") ? getenv("VARIABLE") : "");
        fprintf(out, "dumpable:\t%d\n", prctl(PR_GET_DUMPABLE));
        fprintf(out, "sealed:\t%d\n", open("/proc/self/exe", O_RDWR) < 0);
        fclose(out);
    }
    raise(SIGSTOP);
    if (!strcmp(how, "stay")) for (;;) pause();
    return 42;
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "shim")) return shim(argv + 2);
    if (argc > 2 && !strcmp(argv[1], "target")) return target(argc - 2, argv + 2);
    if (argc > 2 && !strcmp(argv[1], "injected")) return injected(argc - 2, argv + 2);
    return 123;
}
