import FoundationEssentials

/// An event of a generation's stream.
struct StreamEvent: Sendable, Equatable {
  enum Kind: Sendable, Equatable {
    case running
    case delta(String)
    /// The text so far is void; the answer starts again.
    case reset(reason: String)
    case retry(reason: String)
    case end(status: String)
    case unknown
  }

  var seq: Int
  var kind: Kind
}

/// Puts events from two sources, notifications and ai.read_stream(), into one order: each once, none left
/// out.
struct StreamCursor: Sendable {
  enum Verdict: Equatable {
    case event(StreamEvent)
    /// Seen before.
    case known
    /// There is more than this brought: read behind `last`.
    case gap
  }

  /// Number of the last event that was taken.
  private(set) var last = 0
  private(set) var hasEnded = false

  private struct Members: Decodable {
    var seq: Int?
    var type: String?
    var text: String?
    var reason: String?
    var status: String?
    /// The event was too large for a notification.
    var more: Bool?
  }

  /// Takes a notification's payload. What is not an event counts as a gap: the truth is in the table.
  mutating func take(_ payload: String) -> Verdict {
    guard
      let members = try? JSONDecoder().decode(Members.self, from: Data(payload.utf8)),
      let seq = members.seq, let type = members.type
    else { return .gap }
    if seq <= last { return .known }
    guard seq == last + 1, members.more != true else { return .gap }
    return .event(accept(seq, type, members))
  }

  /// Takes a row of ai.read_stream(); gives its event unless it was seen before.
  mutating func take(seq: Int, type: String, data: [UInt8]) -> StreamEvent? {
    guard seq > last else { return nil }
    let members = try? JSONDecoder().decode(Members.self, from: Data(data))
    return accept(seq, type, members ?? Members())
  }

  private mutating func accept(_ seq: Int, _ type: String, _ members: Members) -> StreamEvent {
    last = seq
    let kind: StreamEvent.Kind
    switch type {
    case "running": kind = .running
    case "delta": kind = .delta(members.text ?? "")
    case "reset": kind = .reset(reason: members.reason ?? "")
    case "retry": kind = .retry(reason: members.reason ?? "")
    case "end":
      kind = .end(status: members.status ?? "")
      hasEnded = true
    default: kind = .unknown
    }
    return StreamEvent(seq: seq, kind: kind)
  }
}
