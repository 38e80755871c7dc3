import CCurl
import Glibc

/// One libcurl easy handle and the transfer it runs at the moment; used again for the next one.
/// Confined to the transfer thread.
final class Exchange {
  let easy: UnsafeMutableRawPointer
  private let errorText: UnsafeMutablePointer<CChar>
  /// libcurl reads the request's body from here while it sends: no Swift array stays put for that.
  private var bodyCopy = UnsafeMutableRawBufferPointer(start: nil, count: 0)
  private var headerList: UnsafeMutablePointer<curl_slist>?

  private(set) var id = TransferID(number: 0)
  var sink: (any TransferSink)?
  /// Called within `receive` when the sink has enough.
  var onEarlyEnd: ((Exchange) -> Void)?
  /// Told what the sink held and holds; false stops the transfer.
  var onHeld: ((Int, Int) -> Bool)?
  /// Gives the socket of a kept connection.
  var socketOf: ((ConnectionEnds) -> Int32?)?
  /// Those of the connection that it uses, once it does.
  private(set) var ends: ConnectionEnds?
  var drainUntil: UInt64 = 0
  private(set) var isDraining = false

  /// How long it may take to begin to answer, in milliseconds.
  private(set) var patience = 0
  /// The longest silence, in milliseconds; 0: any.
  private(set) var stall = 0
  /// When something was heard of it.
  var lastSign: UInt64 = 0
  private var uploaded = 0
  private var started: UInt64 = 0
  private var firstByte: UInt64?
  private var headers: [String: String] = [:]
  private var headIsDone = false
  private var headerBytes = 0
  private var headerFields = 0
  private var heldBytes = 0
  private var bodyBytes = 0
  private var requestBytes = 0
  private var limits = (header: 0, fields: 0, body: 0, held: 0)
  private var publicOnly = false
  private var isProxied = false
  private var allowedNetworks: [IPNetwork] = []
  /// Sockets that were opened, and those that were not, for want of a public address.
  private var sockets = (opened: 0, forbidden: 0)
  private var resolvedList: UnsafeMutablePointer<curl_slist>?
  private var attempts = 0
  private var mayHaveSentAll = false
  /// Why a callback stopped the transfer.
  private var fault: TransferFailure?
  /// The kept connection was not to be used: the transfer is to begin again, on another.
  private(set) var needsFreshConnection = false

  private static let keptBodyCapacity = 64 << 10
  private static let drainBytes = 64 << 10

  init?() {
    guard let easy = curl_easy_init() else { return nil }
    self.easy = easy
    errorText = .allocate(capacity: Int(CURL_ERROR_SIZE))
    errorText.initialize(repeating: 0, count: Int(CURL_ERROR_SIZE))
  }

  deinit {
    curl_easy_cleanup(easy)
    martlet_curl_wipe_list(headerList)
    curl_slist_free_all(resolvedList)
    bodyCopy.deallocate()
    errorText.deallocate()
  }

  /// Sets the handle up. Gives the reason where the request cannot be sent.
  func prepare(
    _ request: HTTPRequest, id: TransferID, sink: any TransferSink, at time: UInt64,
    _ configuration: TransferPool.Configuration
  ) -> String? {
    if let problem = request.problem { return problem }
    self.id = id
    self.sink = sink
    started = time
    limits = (
      request.maxHeaderBytes, request.maxHeaderFields, request.maxResponseBytes,
      request.maxHeldBytes
    )
    publicOnly = request.publicOnly
    allowedNetworks = configuration.allowedNetworks
    requestBytes = request.body.count
    patience = request.firstAnswerTimeout
    stall = request.stallTimeout
    errorText[0] = 0

    set(CURLOPT_PRIVATE, Unmanaged.passUnretained(self).toOpaque())
    set(CURLOPT_ERRORBUFFER, errorText)
    set(CURLOPT_NOSIGNAL, 1)
    // Aborting a transfer must not wait for a name lookup that hangs.
    set(CURLOPT_QUICK_EXIT, 1)
    set(CURLOPT_PROTOCOLS_STR, "http,https")
    set(CURLOPT_FOLLOWLOCATION, 0)
    // With HTTP/1.1 a cancelled transfer closes its own connection, and what left is known exactly.
    set(CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1)
    set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1)
    set(CURLOPT_TCP_NODELAY, 1)
    set(CURLOPT_TCP_KEEPALIVE, 1)
    set(CURLOPT_MAXAGE_CONN, configuration.keptConnectionAge)
    set(CURLOPT_SSL_VERIFYPEER, 1)
    set(CURLOPT_SSL_VERIFYHOST, 2)
    set(CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2)
    if let file = configuration.certificateAuthorities {
      set(CURLOPT_CAINFO, file)
      // Debian's libcurl trusts what lies in a folder, too.
      set(CURLOPT_CAPATH, nil)
    }
    // An empty proxy is none, whatever the environment says. Behind a proxy the address that is
    // connected to would be the proxy's.
    let proxy = request.publicOnly ? "" : configuration.proxy ?? ""
    isProxied = !proxy.isEmpty
    set(CURLOPT_PROXY, proxy)
    set(CURLOPT_NETRC, Int(CURL_NETRC_IGNORED.rawValue))
    set(CURLOPT_HTTP09_ALLOWED, 0)

    set(CURLOPT_CONNECTTIMEOUT_MS, max(1, request.connectTimeout))
    set(CURLOPT_TIMEOUT_MS, max(0, request.totalTimeout))

    let context = Unmanaged.passUnretained(self).toOpaque()
    martlet_curl_set_data_callback(easy, CURLOPT_WRITEFUNCTION, bodyArrived)
    set(CURLOPT_WRITEDATA, context)
    martlet_curl_set_data_callback(easy, CURLOPT_HEADERFUNCTION, headerArrived)
    set(CURLOPT_HEADERDATA, context)
    martlet_curl_set_prerequest_callback(easy, requestBegins)
    set(CURLOPT_PREREQDATA, context)
    if publicOnly {
      martlet_curl_set_open_callback(easy, socketOpens)
      set(CURLOPT_OPENSOCKETDATA, context)
    }
    for entry in configuration.resolved {
      if let longer = curl_slist_append(resolvedList, entry) { resolvedList = longer }
    }
    if resolvedList != nil { martlet_curl_set_list(easy, CURLOPT_RESOLVE, resolvedList) }

    setBody(request)
    if let signature = request.signature {
      set(CURLOPT_AWS_SIGV4, "aws:amz:\(signature.region):s3")
      set(CURLOPT_USERPWD, signature.credentials)
    }
    setHeaders(request.headers, isSigned: request.signature != nil)
    let code = martlet_curl_set_string(easy, CURLOPT_URL, request.url)
    return code == CURLE_OK ? nil : "libcurl refuses the address"
  }

  private func setBody(_ request: HTTPRequest) {
    if request.method == "GET", request.body.isEmpty { return }
    if request.method == "HEAD" { return set(CURLOPT_NOBODY, 1) }
    if bodyCopy.count < request.body.count || bodyCopy.baseAddress == nil {
      bodyCopy.deallocate()
      bodyCopy = .allocate(byteCount: max(1_024, request.body.count), alignment: 1)
    }
    bodyCopy.copyBytes(from: request.body)
    set(CURLOPT_POST, 1)
    martlet_curl_set_offset(easy, CURLOPT_POSTFIELDSIZE_LARGE, numericCast(request.body.count))
    set(CURLOPT_POSTFIELDS, bodyCopy.baseAddress)
    if request.method != "POST" { set(CURLOPT_CUSTOMREQUEST, request.method) }
  }

  private func setHeaders(_ headers: [(name: String, value: String)], isSigned: Bool) {
    // A name without a value takes the header out: no waiting for `100 Continue`, no form type.
    // A signature would cover it although it is not sent; a store answers `100 Continue` at once.
    if !isSigned { append("Expect:") }
    if !isSigned, !headers.contains(where: { $0.name.lowercased() == "content-type" }) {
      append("Content-Type:")
    }
    for (name, value) in headers {
      // libcurl's way to say a header with an empty value.
      let isEmpty = value.utf8.allSatisfy { $0 == 0x20 || $0 == 0x09 }
      append(isEmpty ? "\(name);" : "\(name): \(value)")
    }
    martlet_curl_set_list(easy, CURLOPT_HTTPHEADER, headerList)
  }

  private func append(_ line: String) {
    if let longer = curl_slist_append(headerList, line) { headerList = longer }
  }

  private func set(_ option: CURLoption, _ value: Int) {
    martlet_curl_set_long(easy, option, value)
  }

  private func set(_ option: CURLoption, _ value: String) {
    martlet_curl_set_string(easy, option, value)
  }

  private func set(_ option: CURLoption, _ value: UnsafeMutableRawPointer?) {
    martlet_curl_set_pointer(easy, option, value)
  }

  /// Forgets the transfer; the handle keeps its memory for the next one.
  func recycle() {
    curl_easy_reset(easy)
    martlet_curl_wipe_list(headerList)
    headerList = nil
    curl_slist_free_all(resolvedList)
    resolvedList = nil
    letGo()
    sink = nil
    onEarlyEnd = nil
    onHeld = nil
    socketOf = nil
    ends = nil
    isDraining = false
    firstByte = nil
    headers.removeAll(keepingCapacity: true)
    headIsDone = false
    headerBytes = 0
    headerFields = 0
    publicOnly = false
    sockets = (0, 0)
    bodyBytes = 0
    uploaded = 0
    attempts = 0
    mayHaveSentAll = false
    fault = nil
    needsFreshConnection = false
    // What libcurl made of header and body for sending is its own, and freed as it is.
    martlet_wipe(bodyCopy.baseAddress, min(requestBytes, bodyCopy.count))
    if bodyCopy.count > Self.keptBodyCapacity {
      bodyCopy.deallocate()
      bodyCopy = UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }
  }
}

// MARK: - What libcurl reports

extension Exchange {
  /// A kept connection may turn out to be dead after the request went out on it. libcurl would
  /// then send the request again on a fresh one; a model's answer may be paid for twice by that.
  /// Only where not a byte of it had left may it go again.
  ///
  /// A kept connection may have been opened by a request that was not for public addresses only.
  fileprivate func begin(_ ends: ConnectionEnds) -> Bool {
    self.ends = ends
    if publicOnly, !isAllowed(IPAddress(ends.remote)) {
      fault = Self.forbidden
      return false
    }
    attempts += 1
    lastSign = monotonicNanoseconds()
    if attempts > 1, hasSentAnything {
      // libcurl has begun to count anew; how much of the request left is no longer known.
      mayHaveSentAll = true
      fault = TransferFailure(
        kind: .reset, message: "the kept connection closed without a response")
      return false
    }
    // Something that nobody asked for would be taken for the answer to this request. Not every libcurl looks before it
    // uses a kept connection.
    if isReusing, socketOf?(ends).map(martlet_curl_has_input) ?? true {
      needsFreshConnection = true
      return false
    }
    return true
  }

  /// Whether a socket to this address may be opened.
  fileprivate func mayConnect(to bytes: UnsafeBufferPointer<UInt8>) -> Bool {
    let isAllowed = isAllowed(IPAddress(bytes: bytes))
    if isAllowed { sockets.opened += 1 } else { sockets.forbidden += 1 }
    return isAllowed
  }

  private func isAllowed(_ address: IPAddress?) -> Bool {
    guard let address else { return false }
    return address.isPublic || allowedNetworks.contains { $0.contains(address.destination) }
  }

  /// Does not say which address it is: who wrote the name must not learn what it means in here.
  private static let forbidden = TransferFailure(
    kind: .forbidden,
    message: "the provider's address does not lead to the public internet")

  /// To be called when it was taken out of libcurl, before it is given to it again.
  func takeFreshConnection() {
    needsFreshConnection = false
    set(CURLOPT_FRESH_CONNECT, 1)
  }

  /// That of the connection that it used; nil: it is closed.
  var socket: Int32? {
    let socket = martlet_curl_get_socket(easy)
    return socket == CURL_SOCKET_BAD ? nil : socket
  }

  private var isReusing: Bool { martlet_curl_get_long(easy, CURLINFO_NUM_CONNECTS) == 0 }

  private var hasSentAnything: Bool { martlet_curl_get_long(easy, CURLINFO_REQUEST_SIZE) > 0 }

  /// When it will have been silent for too long.
  var silentUntil: UInt64 { lastSign &+ UInt64(stall) &* 1_000_000 }

  /// Looks whether more of the body was sent.
  func noteUpload(at now: UInt64) {
    let sent = Int(martlet_curl_get_offset(easy, CURLINFO_SIZE_UPLOAD_T))
    if sent > uploaded { lastSign = now }
    uploaded = sent
  }

  /// Takes one line of a head. False stops the transfer.
  fileprivate func header(_ line: UnsafeRawBufferPointer) -> Bool {
    headerBytes += line.count
    lastSign = monotonicNanoseconds()
    guard headerBytes <= limits.header else {
      fault = TransferFailure(
        kind: .tooLarge, message: "the response's head exceeds \(limits.header) bytes")
      return false
    }
    // Trailers, after the body.
    if headIsDone { return true }
    var end = line.count
    while end > 0, line[end - 1] == 0x0a || line[end - 1] == 0x0d { end -= 1 }
    if end == 0 {
      let status = martlet_curl_get_long(easy, CURLINFO_RESPONSE_CODE)
      if status == 101 {
        fault = TransferFailure(
          kind: .invalidResponse, message: "the server changes to another protocol")
        return false
      }
      if (100..<200).contains(status) {
        headers.removeAll(keepingCapacity: true)
        headerFields = 0
      } else {
        headIsDone = true
        sink?.head(status: status, headers: headers)
      }
      return true
    }
    // The status line has no colon before its first space; libcurl has read it already.
    guard let colon = line[..<end].firstIndex(of: UInt8(ascii: ":")),
      !line[..<colon].contains(0x20)
    else { return true }
    headerFields += 1
    guard headerFields <= limits.fields else {
      fault = TransferFailure(
        kind: .tooLarge, message: "the response's head has more than \(limits.fields) fields")
      return false
    }
    var start = colon + 1
    while start < end, line[start] == 0x20 || line[start] == 0x09 { start += 1 }
    while end > start, line[end - 1] == 0x20 || line[end - 1] == 0x09 { end -= 1 }
    let name = Self.lowercased(line[..<colon])
    let value = String(decoding: line[start..<end], as: UTF8.self)
    if isCompressed(name, value) {
      fault = TransferFailure(
        kind: .invalidResponse, message: "the response is compressed, which was not asked for")
      return false
    }
    headers[name] = value
    return true
  }

  /// Names of headers are ASCII; in others nothing is to be compared.
  private static func lowercased(_ name: Slice<UnsafeRawBufferPointer>) -> String {
    String(unsafeUninitializedCapacity: name.count) { buffer in
      for (index, byte) in name.enumerated() {
        buffer[index] = (0x41...0x5a).contains(byte) ? byte | 0x20 : byte
      }
      return name.count
    }
  }

  /// A few kilobytes can be made to decompress into anything. libcurl would undo a transfer encoding
  /// without being asked.
  private func isCompressed(_ name: String, _ value: String) -> Bool {
    guard name == "content-encoding" || name == "transfer-encoding" else { return false }
    return value.lowercased().split(separator: ",").contains { part in
      let coding = part.filter { $0 != " " && $0 != "\t" }
      return coding != "identity" && !(coding == "chunked" && name == "transfer-encoding")
    }
  }

  /// The sink holds nothing any more.
  func letGo() {
    if heldBytes > 0 { _ = onHeld?(heldBytes, 0) }
    heldBytes = 0
  }

  /// Takes a piece of the body. False stops the transfer.
  fileprivate func receive(_ bytes: UnsafeRawBufferPointer) -> Bool {
    bodyBytes += bytes.count
    if isDraining { return bodyBytes - limits.body <= Self.drainBytes }
    guard bodyBytes <= limits.body else {
      fault = TransferFailure(
        kind: .tooLarge, message: "the response's body exceeds \(limits.body) bytes")
      return false
    }
    lastSign = monotonicNanoseconds()
    if firstByte == nil { firstByte = lastSign }
    guard sink?.body(bytes) == .enough else { return holdsItsShare() }
    isDraining = true
    limits.body = bodyBytes
    onEarlyEnd?(self)
    return true
  }

  private func holdsItsShare() -> Bool {
    let before = heldBytes
    heldBytes = sink?.heldBytes ?? 0
    let hasShare = onHeld?(before, heldBytes) != false
    guard heldBytes <= limits.held else {
      fault = TransferFailure(
        kind: .tooLarge, message: "the answer exceeds \(limits.held) bytes")
      return false
    }
    if hasShare { return true }
    fault = TransferFailure(
      kind: .tooLarge, message: "all answers under way together exceed the worker's memory for them"
    )
    return false
  }
}

// MARK: - The end

extension Exchange {
  func outcome(_ failure: TransferFailure?) -> TransferOutcome {
    let now = monotonicNanoseconds()
    let sent = Int(martlet_curl_get_offset(easy, CURLINFO_SIZE_UPLOAD_T))
    return TransferOutcome(
      failure: failure,
      requestSent: hasSentAnything && (sent >= requestBytes || mayHaveSentAll),
      firstByte: firstByte.map { Double($0 - started) / 1e6 },
      total: Double(now - started) / 1e6,
      bytesReceived: bodyBytes,
      bytesSent: sent,
      reusedConnection: attempts > 0 && isReusing)
  }

  /// What libcurl's result means; nil: success.
  func failure(of result: CURLcode) -> TransferFailure? {
    if let fault { return fault }
    guard result != CURLE_OK else { return nil }
    // Where other addresses of the name are public, what became of those is the reason.
    if sockets.forbidden > 0, sockets.opened == 0, result == CURLE_COULDNT_CONNECT,
      !hasSentAnything
    {
      return Self.forbidden
    }
    let kind = TransferFailure.Kind(result, hasSentAnything: hasSentAnything)
    // What libcurl says of a transfer may quote the proxy, whose name is the operator's, and its password. What it
    // says of certificates does not.
    let isQuotable = errorText[0] != 0 && (!isProxied || kind == .tls)
    let message = isQuotable ? UnsafePointer(errorText) : curl_easy_strerror(result)
    return TransferFailure(kind: kind, message: message.map { String(cString: $0) } ?? "")
  }
}

// MARK: - C callbacks

private func exchange(_ context: UnsafeMutableRawPointer?) -> Exchange? {
  context.map { Unmanaged<Exchange>.fromOpaque($0).takeUnretainedValue() }
}

/// A count other than the one given makes libcurl stop; for an empty piece that would be 0.
private func bodyArrived(
  bytes: UnsafeMutablePointer<CChar>?, size: Int, count: Int, context: UnsafeMutableRawPointer?
) -> Int {
  let total = size * count
  let piece = UnsafeRawBufferPointer(start: bytes, count: total)
  return exchange(context)?.receive(piece) == true ? total : total + 1
}

private func headerArrived(
  bytes: UnsafeMutablePointer<CChar>?, size: Int, count: Int, context: UnsafeMutableRawPointer?
) -> Int {
  let total = size * count
  let line = UnsafeRawBufferPointer(start: bytes, count: total)
  return exchange(context)?.header(line) == true ? total : total + 1
}

private func requestBegins(
  context: UnsafeMutableRawPointer?, remote: UnsafeMutablePointer<CChar>?,
  local: UnsafeMutablePointer<CChar>?, remotePort: Int32, localPort: Int32
) -> Int32 {
  let ends = ConnectionEnds(
    remote: remote.map { String(cString: $0) } ?? "", remotePort: remotePort,
    local: local.map { String(cString: $0) } ?? "", localPort: localPort)
  return exchange(context)?.begin(ends) == true ? CURL_PREREQFUNC_OK : CURL_PREREQFUNC_ABORT
}

private func socketOpens(
  context: UnsafeMutableRawPointer?, _: curlsocktype, address: UnsafeMutablePointer<curl_sockaddr>?
) -> curl_socket_t {
  guard let address, let exchange = exchange(context) else { return CURL_SOCKET_BAD }
  let isAllowed = withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 16) { bytes in
    let count = martlet_curl_address(address, bytes.baseAddress)
    return exchange.mayConnect(to: UnsafeBufferPointer(rebasing: bytes[..<count]))
  }
  return isAllowed ? martlet_curl_open(address) : CURL_SOCKET_BAD
}
