// The yardstick: what the kernel charges for one write(2) of an event's frame
// to each of many connections, and nothing else. It takes connections, answers
// their upgrades without looking at them, and obeys the lines that every server
// of this benchmark obeys (runServer in server_linux.go), without "memory". It
// never reads from a connection again, so it does not notice that one ends.
//
// The event is its argument.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { max_conns = 65536 };

static int fds[max_conns];
static int conns;

static long long monotonic(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void fail(const char *what)
{
	printf("error \"%s: %s\"\n", what, strerror(errno));
	exit(1);
}

// frame_of makes a text frame of the server; it returns its length.
static size_t frame_of(const char *text, unsigned char *frame)
{
	size_t size = strlen(text), head = 2;
	frame[0] = 0x81;
	if (size < 126) {
		frame[1] = size;
	} else {
		frame[1] = 126;
		frame[2] = size >> 8;
		frame[3] = size & 255;
		head = 4;
	}
	memcpy(frame + head, text, size);
	return head + size;
}

static void send_frame(int fd, const unsigned char *frame, size_t size)
{
	if (write(fd, frame, size) != (ssize_t)size)
		fail("write");
}

static void take_connection(int listener)
{
	// The answer to the key that the load generator always sends.
	static const char answer[] =
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Accept: Bz3qJYTGdOe8gUSpLosEdiLKDrk=\r\n\r\n";
	static const struct timeval patience = { .tv_sec = 5 };
	static const int on = 1;
	char request[4096];
	size_t have = 0;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0 || conns == max_conns)
		fail("accept");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	while (have < 4 || memcmp(request + have - 4, "\r\n\r\n", 4) != 0) {
		ssize_t n = read(fd, request + have, sizeof request - have);
		if (n <= 0)
			fail("upgrade");
		have += n;
	}
	send_frame(fd, (const unsigned char *)answer, sizeof answer - 1);
	fds[conns++] = fd;
}

static void broadcast(const char *text, int times)
{
	unsigned char frame[1024];
	size_t size = frame_of(text, frame);
	long long began = monotonic();
	for (int i = 0; i < times; i++)
		for (int j = 0; j < conns; j++)
			send_frame(fds[j], frame, size);
	printf("%lld\n", began);
}

static void push(const char *text, const char *how, int n)
{
	unsigned char frame[1024];
	char stamped[64];
	if (n > conns)
		n = conns;
	for (int i = 0; i < n; i++) { // to n different ones, in no order
		int j = i + rand() % (conns - i), fd = fds[j];
		fds[j] = fds[i];
		fds[i] = fd;
		if (strcmp(how, "flat") == 0) {
			send_frame(fd, frame, frame_of(text, frame));
			continue;
		}
		long long now = monotonic();
		snprintf(stamped, sizeof stamped, "{\"event\":\"bench\",\"data\":\"@%019lld\"}", now);
		send_frame(fd, frame, frame_of(stamped, frame));
		if (strcmp(how, "rest") == 0) {
			usleep(250);
			continue;
		}
		for (long long end = monotonic() + 250000; monotonic() < end;)
			;
	}
	puts("0");
}

static void obey(const char *line, const char *text)
{
	char how[8];
	int n;
	if (strncmp(line, "conns", 5) == 0) {
		printf("%d\n", conns);
	} else if (strncmp(line, "cpu", 3) == 0) {
		struct rusage r;
		getrusage(RUSAGE_SELF, &r);
		printf("%lld\n", (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000000LL +
			(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1000LL);
	} else if (sscanf(line, "broadcast %d", &n) == 1) {
		broadcast(text, n);
	} else if (sscanf(line, "push %7s %d", how, &n) == 2) {
		push(text, how, n);
	} else {
		puts("error \"unknown command\"");
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof address;
	struct rlimit limit;
	char line[256];
	if (argc != 2 || strlen(argv[1]) > 1000)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0); // so that poll knows what fgets has not read
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 4096) < 0 ||
		getsockname(listener, (struct sockaddr *)&address, &size) < 0)
		fail("listen");
	printf("%d\n", ntohs(address.sin_port));
	struct pollfd watched[] = { { .fd = 0, .events = POLLIN }, { .fd = listener, .events = POLLIN } };
	for (;;) {
		if (poll(watched, 2, -1) < 0)
			fail("poll");
		if (watched[1].revents)
			take_connection(listener);
		if (watched[0].revents) {
			if (!fgets(line, sizeof line, stdin))
				return 0;
			obey(line, argv[1]);
		}
	}
}
