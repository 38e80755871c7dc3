/// What every HTTP dialect reads from a call before it writes its own request, and the account of the
/// parameters that it leaves out.
///
/// A dialect calls `leaveOut` for what its protocol cannot say, writes what is left in `params`, and
/// hands its request to `post` (or `accounted`), which names in `dropped` what was left out, or
/// refuses the call where its parameters say `strict`.
struct RequestParts {
  let call: Call
  /// An object.
  let request: JSON
  /// Members of `params` that are not null and not left out, in their order. `strict` is not among
  /// them: it is Martlet's own.
  private(set) var params: [(key: String, value: JSON)]
  /// An object.
  let options: JSON
  /// Names of parameters that were given and left out, in their order.
  private(set) var dropped: [String] = []
  /// Whether the call fails rather than be sent without some of its parameters: `params.strict`, else
  /// the option `strict`, else no.
  let isStrict: Bool

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
    isStrict = request["params"]?["strict"]?.bool ?? options["strict"]?.bool ?? false
    params = (request["params"]?.members ?? []).filter {
      $0.value.kind != .null && $0.key != "strict"
    }
    guard !params.isEmpty, let unsupported = options["unsupported_params"]?.elements else { return }
    // An answer longer than what was reserved for it would break a budget.
    leaveOut(Set(unsupported.compactMap(\.string)).subtracting(ParameterVocabulary.limits))
  }

  /// Leaves parameters out, of those that were given. What would change nothing anyway (a penalty of
  /// 0, `"logprobs": false`) goes without being named.
  mutating func leaveOut(_ names: Set<String>) {
    params.removeAll { name, value in
      guard names.contains(name) else { return false }
      if !ParameterVocabulary.asksForNothing(name, value), !dropped.contains(name) {
        dropped.append(name)
      }
      return true
    }
  }

  /// Leaves one parameter out, where it was given.
  mutating func leaveOut(_ name: String) { leaveOut([name]) }

  /// The request with the names of what was left out. Throws `unsendable` with the code
  /// `unsupported_parameter` where the call is strict and something was.
  func accounted(_ request: ProviderRequest) throws(Failure) -> ProviderRequest {
    if isStrict, !dropped.isEmpty {
      throw Failure(unsupported: dropped)
    }
    var request = request
    request.dropped = dropped
    return request
  }

  /// The parameter of this name; nil where it was not given, or was left out.
  func param(_ name: String) -> JSON? {
    params.last { $0.key == name }?.value
  }

  /// Refuses what would change what is asked, and be more than the bound of an answer reserves: several.
  func refuseSeveralAnswers() throws(Failure) {
    for name in ["n", "best_of"] { try Self.refuseSeveralAnswers(name, param(name)) }
  }

  /// The same by the name that a protocol has for it.
  static func refuseSeveralAnswers(_ name: String, _ count: JSON?) throws(Failure) {
    guard let count, count.int != 1 else { return }
    throw Failure(.unsendable, message: "\(name) must be 1: a generation has one answer")
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

  /// The input of any kind but a chat: a text that is not empty.
  func text() throws(Failure) -> String {
    guard let input = request["input"], input.kind == .string else {
      throw Failure(.unsendable, message: "the request has no text as its input")
    }
    guard let text = input.string, !text.isEmpty else {
      throw Failure(.unsendable, message: "the input is empty")
    }
    return text
  }

  /// The input of an embedding: a text, or an array of up to 2,048.
  func texts() throws(Failure) -> JSON {
    guard let input = request["input"] else {
      throw Failure(.unsendable, message: "the request has no input")
    }
    if input.kind == .string { return input }
    let texts = input.elements
    guard !texts.isEmpty, texts.allSatisfy({ $0.kind == .string }) else {
      throw Failure(.unsendable, message: "an embedding needs a text or several")
    }
    guard texts.count <= OpenAIEmbeddings.maxTexts else {
      throw Failure(
        .unsendable,
        message: "one call embeds at most \(OpenAIEmbeddings.maxTexts) texts, not \(texts.count)")
    }
    return input
  }

  /// The base URL without slashes at its end.
  var base: Substring {
    var base = Substring(call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    return base
  }

  /// `path` without `prefix` where the base URL already ends in that: people configure both.
  func path(_ path: String, after prefix: String) -> String {
    base.hasSuffix(prefix) && path.hasPrefix(prefix) ? String(path.dropFirst(prefix.count)) : path
  }

  /// A request whose headers are the dialect's own and those of the provider's row, which replace
  /// own headers of the same name. The option `auth` says how the secret travels: `bearer`, or the
  /// name of the header that holds it (such as Azure's `api-key`). `streamType` is the content type
  /// of a stream, asked for where the answer is to be one. `base` stands for the provider's own.
  func post(
    base: Substring? = nil, path: String, auth: String = "bearer",
    ownHeaders: [(name: String, value: String)] = [],
    streamType: String = "text/event-stream", body: [UInt8]
  ) throws(Failure) -> ProviderRequest {
    let base = base ?? self.base
    let scheme = base.prefix(8).lowercased()
    guard scheme.hasPrefix("http://") || scheme.hasPrefix("https://"),
      base.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7F })
    else {
      throw Failure(
        .unsendable, message: "the base URL must begin with http:// or https:// and have no spaces")
    }
    var headers: [(name: String, value: String)] = [
      ("content-type", "application/json"),
      ("accept", call.stream ? streamType : "application/json"),
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
    return try accounted(ProviderRequest(url: base + path, headers: headers, body: body))
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
