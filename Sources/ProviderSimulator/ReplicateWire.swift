import NIOCore

/// Predictions of Replicate and the events of their streams, as read by the official SDK.
enum ReplicateWire {
  /// - Parameters:
  ///   - base: scheme and authority of this server.
  ///   - streams: whether the prediction names a stream.
  static func prediction(
    _ job: JobStore.Job, status: String, base: String, streams: Bool, now: String
  ) -> String {
    let answer = job.answer
    let id = ResponsesWire.hex(answer.id)
    let model = String(decoding: answer.model, as: UTF8.self)
    let isOver = status == "succeeded"
    let output = isOver ? "[\(pieces(answer).map { #""\#($0)""# }.joined(separator: ","))]" : "null"
    let seconds = Double(max(1, answer.usage.output)) / 100
    let metrics =
      isOver || status == "failed" || status == "canceled"
      ? #"{"predict_time":\#(seconds),"total_time":\#(seconds)"#
        + (isOver
          ? #","input_token_count":\#(answer.usage.input),"output_token_count":\#(answer.usage.output)"#
          : "")
        + "}" : "{}"
    let error =
      status == "failed"
      ? #""\#(job.directives.errorMessage ?? "The prediction failed (simulated).")""# : "null"
    let stream = streams ? #","stream":"\#(base)/v1/stream/\#(id)""# : ""
    let times = isOver ? #""\#(now)""# : "null"
    return
      #"{"id":"\#(id)","model":"\#(model)","version":"hidden","input":{},"logs":"","output":\#(output),"error":\#(error),"#
      + #""status":"\#(status)","created_at":"\#(now)","started_at":\#(times),"completed_at":\#(times),"metrics":\#(metrics),"#
      + #""urls":{"get":"\#(base)/v1/predictions/\#(id)","cancel":"\#(base)/v1/predictions/\#(id)/cancel"\#(stream)}}"#
  }

  /// All events of the stream, each with what it counts as. The text is as it is, not escaped.
  static func events(_ answer: Answer) -> [(EventStream.Event, String)] {
    var events: [(EventStream.Event, String)] = []
    func add(_ event: EventStream.Event, _ name: String, _ data: String) {
      let lines = data.split(separator: "\n", omittingEmptySubsequences: false)
        .map { "data: \($0)\n" }.joined()
      events.append((event, "event: \(name)\nid: \(answer.created):\(events.count)\n\(lines)\n"))
    }
    for piece in pieces(answer) {
      let plain = Array(piece.utf8).withUnsafeBytes { JSONText.unescaped($0) }
      add(.tokens(1), "output", plain)
    }
    add(.closing, "done", "{}")
    return events
  }

  /// The error inside of a stream.
  static func error(_ failure: ProviderFailure) -> String {
    "event: error\nid: 0:1000000\ndata: \(failure.message)\n\nevent: done\nid: 0:1000001\ndata: {\"reason\":\"error\"}\n\n"
  }

  /// Escaped for JSON.
  private static func pieces(_ answer: Answer) -> [String] {
    var pieces: [String] = []
    var offset = 0
    while offset < answer.text.count {
      let end = answer.text.deltaEnd(from: offset)
      pieces.append(ResponsesWire.text(answer, offset..<end))
      offset = end
    }
    return pieces
  }
}
