// A typed door to libcurl, the three Linux calls an event loop needs, and what keeps a process to
// itself.
//
// Two reasons for it to exist: `curl_easy_setopt` and its relatives are variadic, which Swift does
// not import (nor prctl), and Glibc's module exports neither epoll, eventfd nor pthread_setname_np.
// Nothing here decides anything; each function forwards to one call.
#ifndef MARTLET_CCURL_H
#define MARTLET_CCURL_H

#include <curl/curl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// `curl_global_init` with everything; call it once, before any other thread uses libcurl.
CURLcode martlet_curl_start(void);

typedef size_t (*martlet_curl_data_callback)(char *bytes, size_t size, size_t count, void *context);
typedef int (*martlet_curl_prerequest_callback)(
    void *context, char *remote, char *local, int remote_port, int local_port);
typedef curl_socket_t (*martlet_curl_open_callback)(
    void *context, curlsocktype purpose, struct curl_sockaddr *address);
typedef int (*martlet_curl_socket_callback)(
    CURL *easy, curl_socket_t socket, int what, void *context, void *socket_context);
typedef int (*martlet_curl_timer_callback)(CURLM *multi, long timeout_ms, void *context);

// One forwarder for each type of value an option takes.
CURLcode martlet_curl_set_long(CURL *easy, CURLoption option, long value);
CURLcode martlet_curl_set_offset(CURL *easy, CURLoption option, curl_off_t value);
CURLcode martlet_curl_set_string(CURL *easy, CURLoption option, const char *value);
CURLcode martlet_curl_set_pointer(CURL *easy, CURLoption option, void *value);
CURLcode martlet_curl_set_list(CURL *easy, CURLoption option, struct curl_slist *value);
CURLcode martlet_curl_set_data_callback(
    CURL *easy, CURLoption option, martlet_curl_data_callback value);
CURLcode martlet_curl_set_prerequest_callback(CURL *easy, martlet_curl_prerequest_callback value);
CURLcode martlet_curl_set_open_callback(CURL *easy, martlet_curl_open_callback value);

// Copies the IP address out of a socket address and gives its length: 4, 16, or 0 for other families.
size_t martlet_curl_address(const struct curl_sockaddr *address, uint8_t bytes[16]);
// The socket that libcurl would open itself. -1 and errno on failure.
curl_socket_t martlet_curl_open(const struct curl_sockaddr *address);

// Overwrites the texts of a list with zeros, and frees it.
void martlet_curl_wipe_list(struct curl_slist *list);
// Overwrites memory in a way that no compiler leaves out.
void martlet_wipe(void *bytes, size_t count);

// Zero (or null) where libcurl has no answer.
long martlet_curl_get_long(CURL *easy, CURLINFO info);
curl_off_t martlet_curl_get_offset(CURL *easy, CURLINFO info);
void *martlet_curl_get_private(CURL *easy);
/// The socket of the connection that a transfer used, which has ended; CURL_SOCKET_BAD: it is closed.
curl_socket_t martlet_curl_get_socket(CURL *easy);
/// Whether something lies unread in a socket, or it was closed.
bool martlet_curl_has_input(curl_socket_t socket);

CURLMcode martlet_curl_multi_set_long(CURLM *multi, CURLMoption option, long value);
CURLMcode martlet_curl_multi_set_callbacks(
    CURLM *multi, martlet_curl_socket_callback on_socket, martlet_curl_timer_callback on_timer,
    void *context);

// Takes the next finished transfer out of the message queue. False where there is none.
bool martlet_curl_multi_next_done(CURLM *multi, CURL **easy, CURLcode *result);

// A file descriptor that became ready, or for which readiness is asked.
typedef struct {
  int fd;
  bool readable;
  bool writable;
  bool failed;
} martlet_readiness;

// -1 and errno on failure, as the calls they forward to.
int martlet_epoll_create(void);
int martlet_epoll_watch(int epoll, int fd, bool readable, bool writable, bool known);
int martlet_epoll_forget(int epoll, int fd);
// Fills at most `capacity` elements (no more than 256); timeout in milliseconds, -1 for ever.
int martlet_epoll_wait(int epoll, martlet_readiness *ready, int capacity, int timeout_ms);

int martlet_event_create(void);
void martlet_event_signal(int fd);
void martlet_event_clear(int fd);

// Names the calling thread (at most 15 bytes) and blocks every signal on it, SIGPIPE included:
// libcurl's TLS writes to sockets that the other side may have closed.
void martlet_thread_setup(const char *name);

// No core dump of this process, and no reading of its memory or environment, nor tracing it, by
// other processes of the same user. False where the system refuses one of them.
bool martlet_process_close(void);
// The argument of that number in the memory that `ps` shows, to be overwritten; null where there is
// none, or the C library does not tell.
char *martlet_process_argument(int index);

#endif
