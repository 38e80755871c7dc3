#define _GNU_SOURCE
#include "CCurl.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { batch = 256 };

int martlet_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

int martlet_epoll_watch(int epoll, int fd, bool readable, bool writable, bool known) {
  struct epoll_event event = {0};
  event.events = (readable ? EPOLLIN : 0) | (writable ? EPOLLOUT : 0);
  event.data.fd = fd;
  int code = epoll_ctl(epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
  // libcurl may close and reopen a descriptor of the same number between two calls.
  if (code != 0 && errno == ENOENT) code = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  if (code != 0 && errno == EEXIST) code = epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
  return code;
}

int martlet_epoll_forget(int epoll, int fd) {
  struct epoll_event ignored = {0};
  return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &ignored);
}

int martlet_epoll_wait(int epoll, martlet_readiness *ready, int capacity, int timeout_ms) {
  struct epoll_event events[batch];
  int count = epoll_wait(epoll, events, capacity < batch ? capacity : batch, timeout_ms);
  for (int i = 0; i < count; i++) {
    ready[i].fd = events[i].data.fd;
    ready[i].readable = (events[i].events & EPOLLIN) != 0;
    ready[i].writable = (events[i].events & EPOLLOUT) != 0;
    ready[i].failed = (events[i].events & (EPOLLERR | EPOLLHUP)) != 0;
  }
  return count;
}

int martlet_event_create(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

void martlet_event_signal(int fd) {
  uint64_t one = 1;
  // A full counter is a signal that is already there; nothing else can fail here.
  while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void martlet_event_clear(int fd) {
  uint64_t count;
  while (read(fd, &count, sizeof count) < 0 && errno == EINTR) {
  }
}

void martlet_thread_setup(const char *name) {
  sigset_t every;
  sigfillset(&every);
  pthread_sigmask(SIG_BLOCK, &every, NULL);
  pthread_setname_np(pthread_self(), name);
}
