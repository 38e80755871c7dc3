internal import CLibpq

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

extension ConnectionHandle {
  /// Connects, blocking.
  ///
  /// `conninfo` is what libpq takes: a URI, `key=value` pairs, a database name, or nothing; what it
  /// leaves out comes from the environment (`PGHOST`, …) as usual. Added where it is silent:
  /// five seconds to connect, and probes that notice a vanished server within half a minute.
  init(opening conninfo: String, applicationName: String) throws(PostgresError) {
    try checkConninfo(conninfo)
    var settings: [(String, String)] = []
    // Before `dbname`: what the connection string says wins. Environment variables do not win over
    // this array, so a default stands back for one by hand.
    if getenv("PGCONNECT_TIMEOUT") == nil { settings.append(("connect_timeout", "5")) }
    settings.append(("keepalives_idle", "10"))
    settings.append(("keepalives_interval", "5"))
    settings.append(("keepalives_count", "3"))
    settings.append(("tcp_user_timeout", "30000"))
    settings.append(("fallback_application_name", applicationName))
    settings.append(("dbname", conninfo))
    // After it: not negotiable.
    settings.append(("client_encoding", "UTF8"))

    var keywords: [UnsafePointer<CChar>?] = []
    var values: [UnsafePointer<CChar>?] = []
    defer {
      for pointer in keywords + values { free(UnsafeMutablePointer(mutating: pointer)) }
    }
    for (keyword, value) in settings {
      keywords.append(strdup(keyword).map { UnsafePointer($0) })
      values.append(strdup(value).map { UnsafePointer($0) })
    }
    keywords.append(nil)
    values.append(nil)

    guard let pointer = PQconnectdbParams(keywords, values, 1) else {
      throw PostgresError(.connection, "out of memory")
    }
    guard PQstatus(pointer) == CONNECTION_OK else {
      var failure = PostgresError(.connection, connection: pointer)
      if let password = PQpass(pointer).map({ String(cString: $0) }), !password.isEmpty {
        failure.message = failure.message.replacing(password, with: "…")
      }
      PQfinish(pointer)
      throw failure
    }
    // Notices ("relation exists, skipping") would go to standard error.
    PQsetNoticeProcessor(pointer, ignoreNotice, nil)
    self.init(pointer: pointer)
  }
}

/// libpq quotes the piece that it could not parse, and that piece may be a password: a connection
/// string that does not parse is refused here in our own words.
private func checkConninfo(_ conninfo: String) throws(PostgresError) {
  if conninfo.utf8.contains(0) {
    throw PostgresError(.connection, "the connection string contains a NUL character")
  }
  let isURI = conninfo.hasPrefix("postgres://") || conninfo.hasPrefix("postgresql://")
  guard isURI || conninfo.contains("=") else { return }
  var reason: UnsafeMutablePointer<CChar>?
  guard let options = PQconninfoParse(conninfo, &reason) else {
    PQfreemem(reason)
    throw PostgresError(
      .connection,
      "the connection string is malformed: a URI such as postgresql://user@host:5432/database "
        + "or pairs such as host=… dbname=…, special characters of a URI percent-encoded")
  }
  defer { PQconninfoFree(options) }
  var option = options
  while let keyword = option.pointee.keyword {
    // The rest of a password with a bare @ in it lands in the host; a leading @ is a socket in the
    // abstract namespace.
    if strcmp(keyword, "host") == 0, let value = option.pointee.val, strchr(value, 0x40) != nil,
      value.pointee != 0x40
    {
      throw PostgresError(
        .connection, "the host contains an @: percent-encode it in the password as %40")
    }
    option += 1
  }
}

private func ignoreNotice(_: UnsafeMutableRawPointer?, _: UnsafePointer<CChar>?) {}
