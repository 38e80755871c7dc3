import CCurl

/// What names a proxy: `[SCHEME://][USER:PASSWORD@]HOST[:PORT]`.
package enum ProxyURL {
  private static let schemes = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"]

  /// Whether `text` is one. libcurl's own parser reads it, as for a transfer: it must not take a piece of a password with a bare
  /// `#`, `/`, `?` or `@` in it for anything else.
  package static func isValid(_ text: String) -> Bool {
    guard let url = curl_url() else { return false }
    defer { curl_url_cleanup(url) }
    let flags = UInt32(CURLU_NON_SUPPORT_SCHEME | CURLU_GUESS_SCHEME)
    guard curl_url_set(url, CURLUPART_URL, text, flags) == CURLUE_OK,
      let scheme = part(CURLUPART_SCHEME, of: url), schemes.contains(scheme)
    else { return false }
    return part(CURLUPART_PATH, of: url) == "/" && part(CURLUPART_QUERY, of: url) == nil
      && part(CURLUPART_FRAGMENT, of: url) == nil
  }

  private static func part(_ part: CURLUPart, of url: OpaquePointer) -> String? {
    var text: UnsafeMutablePointer<CChar>?
    guard curl_url_get(url, part, &text, 0) == CURLUE_OK, let text else { return nil }
    defer { curl_free(text) }
    return String(cString: text)
  }
}
