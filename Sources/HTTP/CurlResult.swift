import CCurl

extension TransferFailure.Kind {
  /// What libcurl's result means to us.
  init(_ result: CURLcode, hasSentAnything: Bool) {
    switch result {
    case CURLE_COULDNT_RESOLVE_PROXY, CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_CONNECT,
      CURLE_PROXY:
      // After a kept connection died under the request, libcurl may fail to make a new one.
      self = hasSentAnything ? .reset : .connect
    case CURLE_OPERATION_TIMEDOUT:
      self = .timeout
    case CURLE_SSL_CONNECT_ERROR, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CERTPROBLEM,
      CURLE_SSL_CIPHER, CURLE_SSL_CACERT_BADFILE, CURLE_SSL_CRL_BADFILE, CURLE_SSL_ISSUER_ERROR,
      CURLE_SSL_ENGINE_INITFAILED, CURLE_USE_SSL_FAILED, CURLE_SSL_PINNEDPUBKEYNOTMATCH,
      CURLE_SSL_INVALIDCERTSTATUS, CURLE_SSL_CLIENTCERT:
      self = hasSentAnything ? .reset : .tls
    case CURLE_PARTIAL_FILE:
      self = .truncated
    case CURLE_GOT_NOTHING, CURLE_SEND_ERROR, CURLE_RECV_ERROR, CURLE_SEND_FAIL_REWIND,
      CURLE_SSL_SHUTDOWN_FAILED:
      self = .reset
    case CURLE_FILESIZE_EXCEEDED:
      self = .tooLarge
    case CURLE_OUT_OF_MEMORY where hasSentAnything:
      // How libcurl names one line of a head, or a trailer, beyond its own limit of 100 KB.
      self = .tooLarge
    case CURLE_URL_MALFORMAT, CURLE_BAD_FUNCTION_ARGUMENT:
      self = .invalidRequest
    case CURLE_UNSUPPORTED_PROTOCOL, CURLE_WEIRD_SERVER_REPLY, CURLE_BAD_CONTENT_ENCODING:
      self = .invalidResponse
    default:
      self = .other
    }
  }
}
