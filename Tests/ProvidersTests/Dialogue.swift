import HTTP
import Providers
import Testing

/// One response of several.
struct Answered: Sendable {
  var status = 200
  var type = "application/json"
  var headers: [String: String] = [:]
  var body: [UInt8] = []
  var end = TransferEnd.complete
  /// No response at all.
  var isMissing = false

  static func json(_ text: String, status: Int = 200, headers: [String: String] = [:]) -> Answered {
    Answered(status: status, headers: headers, body: Array(text.utf8))
  }

  static func stream(_ body: [UInt8], end: TransferEnd = .complete) -> Answered {
    Answered(type: "text/event-stream", body: body, end: end)
  }

  static func nothing(_ signal: Failure.Signal = .reset) -> Answered {
    Answered(end: .broken(signal, "gone"), isMissing: true)
  }
}

/// A call with all its requests, answered by a server that a test plays.
struct Dialogue {
  var reading: Reading
  /// What was asked after the first request.
  var asked: [FollowUp] = []
  var farewell: FollowUp?

  var paths: [String] {
    asked.map { next in
      switch next.target {
      case .path(let path): path
      case .url(let url): url
      }
    }
  }

  /// `server` is given what is asked; nil: the first request.
  init(
    _ call: Call, most: Int = 60, _ server: (FollowUp?) throws -> Answered
  ) throws {
    var reader = try dialect(of: call).reader(for: call)
    var shown = ""
    var next: FollowUp?
    while true {
      let answer = try server(next)
      shown += try Self.receive(answer, &reader)
      guard let following = reader.followUp(answer.end) else {
        let wasComplete = reader.isComplete
        reading = Reading(
          outcome: reader.finish(answer.end), shown: shown, wasComplete: wasComplete)
        farewell = reader.farewell
        return
      }
      asked.append(following)
      next = following
      if asked.count > most {
        Issue.record("it asks for ever")
        reading = Reading(outcome: reader.finish(answer.end), shown: shown, wasComplete: false)
        return
      }
    }
  }

  /// Answers in turn; the last one over and over.
  init(_ call: Call, _ answers: [Answered]) throws {
    var rest = answers[...]
    try self.init(call) { _ in rest.count > 1 ? rest.removeFirst() : rest[rest.startIndex] }
  }

  private static func receive(
    _ answer: Answered, _ reader: inout any ResponseReader
  ) throws -> String {
    guard !answer.isMissing else { return "" }
    var headers = answer.headers
    headers["content-type"] = answer.type
    switch reader.head(ResponseHead(status: answer.status, headers: headers)) {
    case .whole:
      return answer.body.isEmpty ? "" : reader.receive(event: nil, data: answer.body)
    case .lines:
      Issue.record("no job sends lines")
      return ""
    case .events:
      var shown = ""
      var parser = SSEParser()
      try answer.body.withUnsafeBytes { bytes in
        var events: [(id: String?, name: String?, data: [UInt8])] = []
        var id: String?
        try parser.feed(bytes, onID: { id = $0 }) { name, data in
          events.append((id, name, data))
          id = nil
          return true
        }
        for event in events where !reader.isComplete {
          if let id = event.id { reader.eventID(id) }
          shown += reader.receive(event: event.name, data: event.data)
        }
      }
      return shown
    }
  }
}
