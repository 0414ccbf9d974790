/* The only program in a sandbox without a shell: what tests ask of a main process or of a task.
 *
 * sandbox-tool MODE [ARGUMENT], where MODE is one of those of usage() below. */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static int usage(void)
{
	fputs("usage: sandbox-tool MODE [ARGUMENT]\n"
	      "  sleep        sleep until a signal ends it\n"
	      "  spin         be busy in user space, without system calls\n"
	      "  threads N    be busy in N threads besides the main one, which sleeps\n"
	      "  exit N       end with code N\n"
	      "  signal N     end by signal N\n"
	      "  core         end by SIGABRT, with a core file if the limits allow one\n"
	      "  alloc MIB    write to so much memory, print \"allocated\", and sleep\n"
	      "  print TEXT   print TEXT and end\n"
	      "  error TEXT   print TEXT to standard error and end\n"
	      "  ids          print the real user and group, and the process and its session\n"
	      "  identity     print all that a process inherits from its container\n",
	      stderr);
	return 64;
}

static long number(const char *text)
{
	char *end;
	errno = 0;
	long value = strtol(text, &end, 10);
	if (errno != 0 || *text == '\0' || *end != '\0' || value < 0) {
		fprintf(stderr, "sandbox-tool: not a number: %s\n", text);
		exit(64);
	}
	return value;
}

static volatile unsigned long turns;

static void *spin(void *unused)
{
	(void)unused;
	for (;;)
		turns++;
	return NULL;
}

static int sleep_forever(void)
{
	for (;;)
		pause();
	return 0;
}

static int threads(long count)
{
	for (long i = 0; i < count; i++) {
		pthread_t thread;
		int error = pthread_create(&thread, NULL, spin, NULL);
		if (error != 0) {
			fprintf(stderr, "sandbox-tool: thread %ld: %s\n", i, strerror(error));
			return 1;
		}
	}
	return sleep_forever();
}

static int end_by_signal(long signal_number)
{
	/* The first process of a container ignores what it does not handle, save SIGKILL and SIGSTOP
	 * from outside; a task is not the first. */
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	signal((int)signal_number, SIG_DFL);
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_UNBLOCK, &all, NULL);
	if (kill(getpid(), (int)signal_number) != 0) {
		perror("sandbox-tool: signal");
		return 1;
	}
	return sleep_forever();
}

static int allocate(long mebibytes)
{
	size_t size = (size_t)mebibytes << 20;
	char *memory = malloc(size);
	if (memory == NULL) {
		perror("sandbox-tool: alloc");
		return 1;
	}
	/* Page by page, with a value that no page has before. */
	for (size_t at = 0; at < size; at += 4096)
		((volatile char *)memory)[at] = 1;
	puts("allocated");
	fflush(stdout);
	return sleep_forever();
}

static void print_file(const char *title, const char *path)
{
	char buffer[4096];
	size_t length;
	FILE *file = fopen(path, "r");
	printf("== %s\n", title);
	if (file == NULL) {
		printf("%s\n", strerror(errno));
		return;
	}
	while ((length = fread(buffer, 1, sizeof buffer, file)) > 0)
		fwrite(buffer, 1, length, stdout);
	fclose(file);
}

static int count_lines(const char *path)
{
	int lines = 0, byte;
	FILE *file = fopen(path, "r");
	if (file == NULL)
		return -1;
	while ((byte = getc(file)) != EOF)
		lines += byte == '\n';
	fclose(file);
	return lines;
}

static int identity(void)
{
	static const char *const spaces[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
	char text[4096], path[64];
	gid_t groups[64];

	print_file("status", "/proc/self/status");
	print_file("cgroup", "/proc/self/cgroup");
	print_file("limits", "/proc/self/limits");
	print_file("oom_score_adj", "/proc/self/oom_score_adj");
	printf("== mounts\n%d\n== namespaces\n", count_lines("/proc/self/mountinfo"));
	for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
		snprintf(path, sizeof path, "/proc/self/ns/%s", spaces[i]);
		ssize_t length = readlink(path, text, sizeof text);
		printf("%.*s\n", length < 0 ? 0 : (int)length, text);
	}
	printf("== ids\n%d %d %d %d", (int)getuid(), (int)geteuid(), (int)getgid(), (int)getegid());
	int count = getgroups(sizeof groups / sizeof *groups, groups);
	for (int i = 0; i < count; i++)
		printf(" %d", (int)groups[i]);
	mode_t mask = umask(0);
	printf("\n== umask\n%04o\n== directory\n", (unsigned)mask);
	puts(getcwd(text, sizeof text) == NULL ? strerror(errno) : text);
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	const char *argument = argc > 2 ? argv[2] : NULL;

	if (strcmp(mode, "sleep") == 0)
		return sleep_forever();
	if (strcmp(mode, "spin") == 0) {
		spin(NULL);
		return 0;
	}
	if (strcmp(mode, "core") == 0) {
		struct rlimit limit;
		getrlimit(RLIMIT_CORE, &limit);
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_CORE, &limit);
		abort();
	}
	if (strcmp(mode, "ids") == 0) {
		printf("uid=%d gid=%d pid=%d sid=%d\n", (int)getuid(), (int)getgid(), (int)getpid(),
		       (int)getsid(0));
		return 0;
	}
	if (strcmp(mode, "identity") == 0)
		return identity();
	if (argument == NULL)
		return usage();
	if (strcmp(mode, "threads") == 0)
		return threads(number(argument));
	if (strcmp(mode, "exit") == 0)
		return (int)number(argument);
	if (strcmp(mode, "signal") == 0)
		return end_by_signal(number(argument));
	if (strcmp(mode, "alloc") == 0)
		return allocate(number(argument));
	if (strcmp(mode, "print") == 0)
		return puts(argument) < 0;
	if (strcmp(mode, "error") == 0)
		return fprintf(stderr, "%s\n", argument) < 0;
	return usage();
}
