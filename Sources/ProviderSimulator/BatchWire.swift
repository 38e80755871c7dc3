/// What is said of batches and of their results, in each family's form.
enum BatchWire {
  static func job(_ job: BatchStore.Job, at milliseconds: Int, withResults: Bool = true) -> [UInt8]
  {
    switch job.family {
    case .openAI: openAI(job)
    case .anthropic: anthropic(job)
    case .gemini: gemini(job, withResults: withResults)
    }
  }

  static func list(_ elements: [[UInt8]], hasMore: Bool, last: String? = nil) -> [UInt8] {
    var out = Array(#"{"object":"list","data":["#.utf8)
    join(elements, into: &out)
    out += Array(#"],"has_more":\#(hasMore),"last_id":\#(quoted(last))}"#.utf8)
    return out
  }

  static func operations(_ elements: [[UInt8]], next: String?) -> [UInt8] {
    if elements.isEmpty { return Array("{}".utf8) }
    var out = Array(#"{"operations":["#.utf8)
    join(elements, into: &out)
    out += Array("]".utf8)
    if let next { out += Array(#","nextPageToken":"\#(next)""#.utf8) }
    out += Array("}".utf8)
    return out
  }

  /// Results as lines.
  static func lines(_ results: [BatchStore.Result], _ family: BatchEndpoint.Family) -> [UInt8] {
    var out: [UInt8] = []
    for result in results {
      out += line(result, family)
      out.append(UInt8(ascii: "\n"))
    }
    return out
  }

  // MARK: OpenAI

  private static func openAI(_ job: BatchStore.Job) -> [UInt8] {
    let status = job.end?.rawValue ?? (job.cancelled != nil ? "cancelling" : "in_progress")
    let completed = job.results.filter(isSuccess).count
    let created = job.created / 1_000
    var out = Array(
      """
      {"id":"\(job.id)","object":"batch","endpoint":"\(job.endpoint)","model":null,"errors":
      """.utf8)
    if job.end == .failed {
      out += Array(
        #"{"object":"list","data":[{"code":"\#(job.directives.code)","line":1,"message":"simulated","param":null}]}"#
          .utf8)
    } else {
      out += Array("null".utf8)
    }
    let hasOutput = completed > 0
    let hasErrors = job.results.count > completed
    out += Array(
      """
      ,"input_file_id":"\(job.inputFile)","completion_window":"24h","status":"\(status)",\
      "output_file_id":\(hasOutput ? "\"\(job.id)-output\"" : "null"),\
      "error_file_id":\(hasErrors ? "\"\(job.id)-errors\"" : "null"),"created_at":\(created),\
      "expires_at":\(created + 86_400),"request_counts":{"total":\(job.members.count),\
      "completed":\(completed),"failed":\(job.results.count - completed)},"metadata":
      """.utf8)
    out += job.label
    out.append(UInt8(ascii: "}"))
    return out
  }

  /// The contents of the files that an ended batch names.
  static func file(_ id: String, of job: BatchStore.Job) -> [UInt8]? {
    switch id {
    case "\(job.id)-output": lines(job.results.filter(isSuccess), .openAI)
    case "\(job.id)-errors": lines(job.results.filter { !isSuccess($0) }, .openAI)
    default: nil
    }
  }

  private static func isSuccess(_ result: BatchStore.Result) -> Bool {
    if case .response(200, _, _) = result.content { return true }
    return false
  }

  // MARK: Anthropic

  private static func anthropic(_ job: BatchStore.Job) -> [UInt8] {
    let total = job.members.count
    var counts = (succeeded: 0, errored: 0, canceled: 0, expired: 0)
    for result in job.results {
      switch result.content {
      case .response(200, _, _): counts.succeeded += 1
      case .response: counts.errored += 1
      case .cancelled: counts.canceled += 1
      case .expired: counts.expired += 1
      }
    }
    let processing = job.end == nil ? total : 0
    let status = job.end != nil ? "ended" : job.cancelled != nil ? "canceling" : "in_progress"
    let created = WallClock.rfc3339(job.created / 1_000)
    let cancelled = job.cancelled.map { "\"\(WallClock.rfc3339($0 / 1_000))\"" } ?? "null"
    let ended = job.end != nil ? "\"\(created)\"" : "null"
    let results = job.end != nil ? "\"/v1/messages/batches/\(job.id)/results\"" : "null"
    return Array(
      """
      {"id":"\(job.id)","type":"message_batch","processing_status":"\(status)",\
      "request_counts":{"processing":\(processing),"succeeded":\(counts.succeeded),\
      "errored":\(counts.errored),"canceled":\(counts.canceled),"expired":\(counts.expired)},\
      "created_at":"\(created)","expires_at":"\(WallClock.rfc3339(job.created / 1_000 + 86_400))",\
      "ended_at":\(ended),"cancel_initiated_at":\(cancelled),"archived_at":null,\
      "results_url":\(results)}
      """.utf8)
  }

  // MARK: Gemini

  private static func gemini(_ job: BatchStore.Job, withResults: Bool) -> [UInt8] {
    let state =
      switch job.end {
      case nil: "RUNNING"
      case .completed: "SUCCEEDED"
      case .failed: "FAILED"
      case .expired: "EXPIRED"
      case .cancelled: "CANCELLED"
      }
    let created = WallClock.rfc3339(job.created / 1_000)
    var out = Array(
      """
      {"name":"batches/\(job.id)","metadata":{"@type":\
      "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",\
      "model":"\(job.endpoint)","displayName":"
      """.utf8)
    out += JSONText.escaped(String(decoding: job.label, as: UTF8.self))
    out += Array(
      """
      ","state":"BATCH_STATE_\(state)","name":"batches/\(job.id)","createTime":"\(created)",\
      "updateTime":"\(created)","batchStats":{"requestCount":"\(job.members.count)"}
      """.utf8)
    if withResults, !job.results.isEmpty {
      out += Array(#","output":{"inlinedResponses":{"inlinedResponses":["#.utf8)
      // Of what was not done nothing is said.
      let answered = job.results.filter { result in
        if case .response = result.content { return true }
        return false
      }
      join(answered.map { line($0, .gemini) }, into: &out)
      out += Array("]}}".utf8)
    }
    out.append(UInt8(ascii: "}"))
    if job.end != nil { out += Array(#","done":true"#.utf8) }
    if job.end == .failed {
      out += Array(
        #","error":{"code":8,"message":"simulated","status":"\#(job.directives.code)"}"#.utf8)
    }
    out.append(UInt8(ascii: "}"))
    return out
  }

  // MARK: One result

  private static func line(
    _ result: BatchStore.Result, _ family: BatchEndpoint.Family
  ) -> [UInt8] {
    let id = String(decoding: JSONText.escaped(result.id), as: UTF8.self)
    switch (family, result.content) {
    case (.openAI, .response(let status, let number, let body)):
      return Array(
        #"{"id":"batch_req_\#(number)","custom_id":"\#(id)","response":{"status_code":\#(status),"request_id":"\#(requestID(number))","body":"#
          .utf8) + body + Array(#"},"error":null}"#.utf8)
    case (.openAI, let content):
      var code = "batch_expired"
      if case .cancelled = content { code = "batch_cancelled" }
      return Array(
        #"{"id":"batch_req_0","custom_id":"\#(id)","response":null,"error":{"code":"\#(code)","message":"simulated"}}"#
          .utf8)
    case (.anthropic, .response(let status, _, let body)):
      let type = status == 200 ? #""succeeded","message""# : #""errored","error""#
      return Array(#"{"custom_id":"\#(id)","result":{"type":\#(type):"#.utf8) + body
        + Array("}}".utf8)
    case (.anthropic, let content):
      var type = "expired"
      if case .cancelled = content { type = "canceled" }
      return Array(#"{"custom_id":"\#(id)","result":{"type":"\#(type)"}}"#.utf8)
    case (.gemini, .response(let status, _, let body)):
      if status == 200 {
        return Array(#"{"response":"#.utf8) + body
          + Array(#","metadata":{"key":"\#(id)"}}"#.utf8)
      }
      let code = [400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 503: 14, 504: 4][status] ?? 13
      return Array(
        #"{"error":{"code":\#(code),"message":"simulated"},"metadata":{"key":"\#(id)"}}"#.utf8)
    case (.gemini, let content):
      var code = 4
      if case .cancelled = content { code = 1 }
      return Array(
        #"{"error":{"code":\#(code),"message":"simulated"},"metadata":{"key":"\#(id)"}}"#.utf8)
    }
  }

  private static func requestID(_ number: UInt64) -> String {
    let digits = String(number, radix: 16)
    return "req_" + String(repeating: "0", count: 16 - digits.utf8.count) + digits
  }

  private static func quoted(_ text: String?) -> String { text.map { "\"\($0)\"" } ?? "null" }

  private static func join(_ elements: [[UInt8]], into out: inout [UInt8]) {
    for (index, element) in elements.enumerated() {
      if index > 0 { out.append(UInt8(ascii: ",")) }
      out += element
    }
  }
}
