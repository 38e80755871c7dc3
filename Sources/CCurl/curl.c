#define _GNU_SOURCE
#include "CCurl.h"

#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

CURLcode martlet_curl_start(void) { return curl_global_init(CURL_GLOBAL_ALL); }

CURLcode martlet_curl_set_long(CURL *easy, CURLoption option, long value) {
  return curl_easy_setopt(easy, option, value);
}

CURLcode martlet_curl_set_offset(CURL *easy, CURLoption option, curl_off_t value) {
  return curl_easy_setopt(easy, option, value);
}

CURLcode martlet_curl_set_string(CURL *easy, CURLoption option, const char *value) {
  return curl_easy_setopt(easy, option, value);
}

CURLcode martlet_curl_set_pointer(CURL *easy, CURLoption option, void *value) {
  return curl_easy_setopt(easy, option, value);
}

CURLcode martlet_curl_set_list(CURL *easy, CURLoption option, struct curl_slist *value) {
  return curl_easy_setopt(easy, option, value);
}

CURLcode martlet_curl_set_data_callback(
    CURL *easy, CURLoption option, martlet_curl_data_callback value) {
  return curl_easy_setopt(easy, option, value);
}

CURLcode martlet_curl_set_prerequest_callback(CURL *easy, martlet_curl_prerequest_callback value) {
  return curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, value);
}

CURLcode martlet_curl_set_open_callback(CURL *easy, martlet_curl_open_callback value) {
  return curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, value);
}

size_t martlet_curl_address(const struct curl_sockaddr *address, uint8_t bytes[16]) {
  // `addr` is declared as the short generic type; `addrlen` bytes are there.
  const void *start = &address->addr;
  if (address->family == AF_INET && address->addrlen >= sizeof(struct sockaddr_in)) {
    memcpy(bytes, (const char *)start + offsetof(struct sockaddr_in, sin_addr), 4);
    return 4;
  }
  if (address->family == AF_INET6 && address->addrlen >= sizeof(struct sockaddr_in6)) {
    memcpy(bytes, (const char *)start + offsetof(struct sockaddr_in6, sin6_addr), 16);
    return 16;
  }
  return 0;
}

curl_socket_t martlet_curl_open(const struct curl_sockaddr *address) {
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

void martlet_curl_wipe_list(struct curl_slist *list) {
  for (struct curl_slist *item = list; item != NULL; item = item->next) {
    if (item->data != NULL) martlet_wipe(item->data, strlen(item->data));
  }
  curl_slist_free_all(list);
}

void martlet_wipe(void *bytes, size_t count) { explicit_bzero(bytes, count); }

long martlet_curl_get_long(CURL *easy, CURLINFO info) {
  long value = 0;
  return curl_easy_getinfo(easy, info, &value) == CURLE_OK ? value : 0;
}

curl_off_t martlet_curl_get_offset(CURL *easy, CURLINFO info) {
  curl_off_t value = 0;
  return curl_easy_getinfo(easy, info, &value) == CURLE_OK ? value : 0;
}

void *martlet_curl_get_private(CURL *easy) {
  char *value = NULL;
  return curl_easy_getinfo(easy, CURLINFO_PRIVATE, &value) == CURLE_OK ? value : NULL;
}

curl_socket_t martlet_curl_get_socket(CURL *easy) {
  curl_socket_t value = CURL_SOCKET_BAD;
  return curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &value) == CURLE_OK ? value : CURL_SOCKET_BAD;
}

bool martlet_curl_has_input(curl_socket_t socket) {
  struct pollfd look = {.fd = socket, .events = POLLIN};
  return poll(&look, 1, 0) != 0;
}

CURLMcode martlet_curl_multi_set_long(CURLM *multi, CURLMoption option, long value) {
  return curl_multi_setopt(multi, option, value);
}

CURLMcode martlet_curl_multi_set_callbacks(
    CURLM *multi, martlet_curl_socket_callback on_socket, martlet_curl_timer_callback on_timer,
    void *context) {
  CURLMcode code = curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
  if (code == CURLM_OK) code = curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, context);
  if (code == CURLM_OK) code = curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
  if (code == CURLM_OK) code = curl_multi_setopt(multi, CURLMOPT_TIMERDATA, context);
  return code;
}

bool martlet_curl_multi_next_done(CURLM *multi, CURL **easy, CURLcode *result) {
  int left = 0;
  CURLMsg *message;
  while ((message = curl_multi_info_read(multi, &left)) != NULL) {
    if (message->msg == CURLMSG_DONE) {
      *easy = message->easy_handle;
      *result = message->data.result;
      return true;
    }
  }
  return false;
}
