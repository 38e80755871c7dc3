/// What every HTTP dialect reads from a call before it writes its own request.
struct RequestParts {
  let call: Call
  /// An object.
  let request: JSON
  /// Members of `params` that are not null, in their order.
  let params: [(key: String, value: JSON)]
  /// An object.
  let options: JSON

  init(_ call: Call) throws(Failure) {
    guard let request = JSON(call.request), request.kind == .object else {
      throw Failure(.unsendable, message: "the request is not a JSON object")
    }
    guard let options = JSON(call.options.isEmpty ? Array("{}".utf8) : call.options),
      options.kind == .object || options.kind == .null
    else {
      throw Failure(.unsendable, message: "the options of provider or model are not a JSON object")
    }
    if let params = request["params"], params.kind != .object {
      throw Failure(.unsendable, message: "params is not a JSON object")
    }
    self.call = call
    self.request = request
    self.options = options
    params = (request["params"]?.members ?? []).filter { $0.value.kind != .null }
  }

  func param(_ name: String) -> JSON? {
    params.last { $0.key == name }?.value
  }

  /// The messages of a chat: an array with at least one element.
  func messages() throws(Failure) -> JSON {
    guard let messages = request["messages"], messages.kind == .array else {
      throw Failure(.unsendable, message: "the request has no array of messages")
    }
    guard !messages.elements.isEmpty else {
      throw Failure(.unsendable, message: "the request has no message")
    }
    return messages
  }

  /// A request whose headers are the dialect's own and those of the provider's row, which replace
  /// own headers of the same name. The option `auth` says how the secret travels: `bearer`, or the
  /// name of the header that holds it (such as Azure's `api-key`).
  func post(
    path: String, auth: String, ownHeaders: [(name: String, value: String)], body: [UInt8]
  ) throws(Failure) -> ProviderRequest {
    var base = Substring(call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    let scheme = base.prefix(8).lowercased()
    guard scheme.hasPrefix("http://") || scheme.hasPrefix("https://"),
      base.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7F })
    else {
      throw Failure(
        .unsendable, message: "the base URL must begin with http:// or https:// and have no spaces")
    }
    var headers: [(name: String, value: String)] = [
      ("content-type", "application/json"),
      ("accept", call.stream && call.kind == .chat ? "text/event-stream" : "application/json"),
    ]
    headers += ownHeaders
    if let secret = call.secret {
      guard !secret.isEmpty, isHeaderValue(secret) else {
        throw Failure(
          .unsendable,
          message: "the secret is empty or holds characters that no HTTP header can carry")
      }
      let auth = options["auth"]?.string ?? auth
      headers.append(auth == "bearer" ? ("authorization", "Bearer \(secret)") : (auth, secret))
    }
    for (name, value) in call.headers.sorted(by: { $0.key < $1.key }) {
      guard isHeaderName(name), isHeaderValue(value) else {
        throw Failure(.unsendable, message: "a header of the provider's row is not valid HTTP")
      }
      headers.removeAll { $0.name.lowercased() == name.lowercased() }
      headers.append((name, value))
    }
    return ProviderRequest(url: base + path, headers: headers, body: body)
  }

  private func isHeaderValue(_ value: String) -> Bool {
    value.utf8.allSatisfy { ($0 >= 0x20 && $0 != 0x7F) || $0 == 0x09 }
  }

  /// A token of RFC 9110 §5.6.2.
  private func isHeaderName(_ name: String) -> Bool {
    !name.isEmpty
      && name.utf8.allSatisfy { byte in
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
        default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
        }
      }
  }
}
