/// Replicate's predictions: `POST {base}/v1/models/{owner}/{name}/predictions` for a model
/// (`owner/name`), `/v1/predictions` for a version (`owner/name:version`, or the version alone),
/// `/v1/deployments/{owner}/{name}/predictions` for a deployment (`deployments/owner/name`). Facts are from
/// the official Python SDK, `replicate` 1.0.7, and from docs of Replicate's HTTP API.
///
/// A prediction is a job. An answer that comes whole is waited for by the request itself (`Prefer: wait`) and
/// asked for after that; a stream is read where the prediction says, taken up after the last event that
/// arrived, and followed by a last question for what it used. Where nobody waits any more the prediction is
/// cancelled; should the worker be gone by then, Replicate itself ends it (`Cancel-After`, the call's time).
///
/// Kinds: `chat`, `completion`, `transcription` (text), `image`, `speech` (files). What an input is called
/// depends on the model; options: `prompt_param` (`prompt` by default), `system_param` (`system_prompt`),
/// `messages_param` (none; where given the messages go there as they are), `image_param` (`image`),
/// `max_tokens_param` (`max_tokens`), `input` (an object of more inputs), `wait_s` (60; 0: not at all),
/// `poll_ms` (500) and `poll_max_ms` (5,000).
package enum Replicate: Dialect {
  package static let name = "replicate"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    switch call.kind {
    case .chat, .completion, .transcription, .image, .speech: break
    default:
      throw Failure(.unsendable, message: "the dialect replicate has no \(call.kind.rawValue)")
    }
    let target = try ReplicateTarget(call)
    let input = try ReplicateInput(call)
    var writer = JSONWriter(reserving: call.request.count + 256)
    writer.beginObject()
    if let version = target.version { writer.member("version", version) }
    writer.key("input")
    writer.splice(input.json)
    if streams(call) { writer.member("stream", true) }
    writer.endObject()
    var headers: [(name: String, value: String)] = [("accept", "application/json")]
    let wait = min(max(input.parts.options["wait_s"]?.int ?? 60, 0), 60)
    if !streams(call), wait > 0 { headers.append(("prefer", "wait=\(wait)")) }
    if let timeout = call.timeout, timeout >= 5_000 {
      headers.append(("cancel-after", "\(min(timeout / 1_000, 86_400))s"))
    }
    var request = try input.parts.post(
      path: target.path, auth: "bearer", ownHeaders: headers, body: writer.bytes)
    // One `accept` is enough; the stream is at another address.
    let accepts = request.headers.indices.filter { request.headers[$0].name == "accept" }
    if accepts.count > 1 { request.headers.remove(at: accepts[0]) }
    return request
  }

  package static func reader(for call: Call) -> any ResponseReader {
    AnswerReader(ReplicateAnswer(to: call), for: call)
  }

  static func streams(_ call: Call) -> Bool {
    call.stream && (call.kind == .chat || call.kind == .completion)
  }

  /// What goes before a path: a base that already ends in the API's version is what some configure.
  static func prefix(_ base: String) -> String {
    var base = Substring(base)
    while base.hasSuffix("/") { base.removeLast() }
    return base.hasSuffix("/v1") ? "" : "/v1"
  }
}

/// Where a prediction is made.
struct ReplicateTarget {
  let path: String
  let version: String?

  init(_ call: Call) throws(Failure) {
    let prefix = Replicate.prefix(call.baseURL)
    let parts = call.model.split(separator: "/", omittingEmptySubsequences: false)
    guard !call.model.isEmpty, parts.allSatisfy({ Self.isName($0) }) else {
      throw Failure(
        .unsendable,
        message: "a model of Replicate is owner/name, owner/name:version or deployments/owner/name")
    }
    let last = parts[parts.count - 1].split(separator: ":", omittingEmptySubsequences: false)
    switch (parts.count, last.count) {
    case (1, 1), (2, 2):
      path = "\(prefix)/predictions"
      version = String(last[last.count - 1])
    case (2, 1):
      path = "\(prefix)/models/\(parts[0])/\(parts[1])/predictions"
      version = nil
    case (3, 1) where parts[0] == "deployments":
      path = "\(prefix)/deployments/\(parts[1])/\(parts[2])/predictions"
      version = nil
    default:
      throw Failure(
        .unsendable,
        message: "a model of Replicate is owner/name, owner/name:version or deployments/owner/name")
    }
  }

  private static func isName(_ part: Substring) -> Bool {
    !part.isEmpty && part.first != "." && part.first != ":" && part.last != ":"
      && part.utf8.allSatisfy { byte in
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
        default: "-_.:".utf8.contains(byte)
        }
      }
  }
}
