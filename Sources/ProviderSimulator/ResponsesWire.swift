import NIOCore

/// Bodies and stream events of OpenAI's Responses API, as read by the official SDK.
enum ResponsesWire {
  static func response(
    _ answer: Answer, status: String, isBackground: Bool, error: ProviderFailure? = nil
  ) -> String {
    let isOver = status == "completed" || status == "incomplete"
    let model = String(decoding: answer.model, as: UTF8.self)
    var failure = "null"
    if let error {
      failure =
        #"{"code":\#(quoted(error.code ?? "server_error")),"message":\#(quoted(error.message))}"#
    }
    return
      #"{"id":"\#(id(answer))","object":"response","created_at":\#(answer.created),"status":"\#(status)","#
      + #""background":\#(isBackground),"error":\#(failure),"incomplete_details":\#(details(answer, status)),"#
      + #""instructions":null,"max_output_tokens":null,"metadata":{},"model":"\#(model)","#
      + #""output":[\#(isOver ? items(answer) : "")],"parallel_tool_calls":true,"previous_response_id":null,"#
      + #""reasoning":{"effort":null,"summary":null},"service_tier":"\#(String(decoding: answer.serviceTier, as: UTF8.self))","#
      + #""store":true,"temperature":1.0,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"#
      + #""top_p":1.0,"truncation":"disabled","usage":\#(isOver ? usage(answer.usage) : "null"),"user":null}"#
  }

  /// How an answer that came to its end is called.
  static func status(_ answer: Answer) -> String {
    ["length", "content_filter"].contains(finish(answer)) ? "incomplete" : "completed"
  }

  /// All events of the stream, each with what it counts as.
  static func events(_ answer: Answer, isBackground: Bool) -> [(EventStream.Event, String)] {
    var events: [(EventStream.Event, String)] = []
    func add(_ event: EventStream.Event, _ type: String, _ members: String) {
      let json = #"{"type":"\#(type)","sequence_number":\#(events.count),\#(members)}"#
      events.append((event, "event: \(type)\ndata: \(json)\n\n"))
    }
    let started = response(answer, status: "in_progress", isBackground: isBackground)
    add(.opening, "response.created", #""response":\#(started)"#)
    add(.opening, "response.in_progress", #""response":\#(started)"#)
    var index = 0
    if hasText(answer) {
      let item = "msg_\(hex(answer.id))"
      let place = #""item_id":"\#(item)","output_index":0,"content_index":0"#
      add(
        .opening, "response.output_item.added",
        #""output_index":0,"item":{"id":"\#(item)","type":"message","status":"in_progress","role":"assistant","content":[]}"#
      )
      add(
        .opening, "response.content_part.added",
        #"\#(place),"part":{"type":"output_text","annotations":[],"logprobs":[],"text":""}"#)
      var offset = 0
      while offset < answer.text.count {
        let end = answer.text.deltaEnd(from: offset)
        add(
          .tokens(answer.text.tokens(in: offset..<end)), "response.output_text.delta",
          #"\#(place),"delta":"\#(text(answer, offset..<end))","logprobs":[]"#)
        offset = end
      }
      add(
        .closing, "response.output_text.done",
        #"\#(place),"text":"\#(text(answer, 0..<answer.text.count))","logprobs":[]"#)
      add(.closing, "response.output_item.done", #""output_index":0,"item":\#(message(answer))"#)
      index = 1
    }
    for call in answer.toolCalls {
      let arguments = String(decoding: call.arguments, as: UTF8.self)
      let id = #""item_id":"fc_\#(hex(call.id))","output_index":\#(index)"#
      add(
        .opening, "response.output_item.added",
        #""output_index":\#(index),"item":\#(functionCall(call, arguments: "", status: "in_progress"))"#
      )
      var rest = arguments.unicodeScalars[...]
      while !rest.isEmpty {
        let piece = String(rest.prefix(12))
        rest = rest.dropFirst(12)
        add(
          .tokens(1), "response.function_call_arguments.delta", #"\#(id),"delta":\#(quoted(piece))"#
        )
      }
      add(
        .closing, "response.function_call_arguments.done",
        #"\#(id),"name":"\#(String(decoding: call.name, as: UTF8.self))","arguments":\#(quoted(arguments))"#
      )
      add(
        .closing, "response.output_item.done",
        #""output_index":\#(index),"item":\#(functionCall(call, arguments: arguments, status: "completed"))"#
      )
      index += 1
    }
    let status = status(answer)
    let whole = response(answer, status: status, isBackground: isBackground)
    add(.closing, "response.\(status)", #""response":\#(whole)"#)
    return events
  }

  /// The error inside of a stream.
  static func error(_ failure: ProviderFailure) -> String {
    let code = failure.code.map(quoted) ?? #""server_error""#
    return "event: error\ndata: "
      + #"{"type":"error","sequence_number":1000000,"code":\#(code),"message":\#(quoted(failure.message)),"param":null}"#
      + "\n\n"
  }

  static func id(_ answer: Answer) -> String { "resp_\(hex(answer.id))" }

  private static func hasText(_ answer: Answer) -> Bool {
    answer.toolCalls.isEmpty || answer.text.count > 0
  }

  private static func finish(_ answer: Answer) -> String {
    String(decoding: answer.finish, as: UTF8.self)
  }

  private static func details(_ answer: Answer, _ status: String) -> String {
    guard status == "incomplete" else { return "null" }
    return #"{"reason":"\#(finish(answer) == "length" ? "max_output_tokens" : "content_filter")"}"#
  }

  private static func items(_ answer: Answer) -> String {
    let text = hasText(answer) ? [message(answer)] : []
    let calls = answer.toolCalls.map {
      functionCall(
        $0, arguments: String(decoding: $0.arguments, as: UTF8.self), status: "completed")
    }
    return (text + calls).joined(separator: ",")
  }

  private static func message(_ answer: Answer) -> String {
    #"{"id":"msg_\#(hex(answer.id))","type":"message","status":"completed","role":"assistant","content":["#
      + #"{"type":"output_text","annotations":[],"logprobs":[],"text":"\#(text(answer, 0..<answer.text.count))"}]}"#
  }

  private static func functionCall(
    _ call: Answer.ToolCall, arguments: String, status: String
  ) -> String {
    #"{"id":"fc_\#(hex(call.id))","type":"function_call","status":"\#(status)","call_id":"call_\#(hex(call.id))","#
      + #""name":"\#(String(decoding: call.name, as: UTF8.self))","arguments":\#(quoted(arguments))}"#
  }

  private static func usage(_ usage: TokenUsage) -> String {
    #"{"input_tokens":\#(usage.input),"input_tokens_details":{"cached_tokens":\#(usage.cached),"#
      + #""cache_write_tokens":\#(usage.write5m + usage.write1h)},"output_tokens":\#(usage.output),"#
      + #""output_tokens_details":{"reasoning_tokens":\#(usage.reasoning)},"total_tokens":\#(usage.input + usage.output)}"#
  }

  static func text(_ answer: Answer, _ range: Range<Int>) -> String {
    var buffer = ByteBuffer()
    answer.text.write(range, to: &buffer)
    return String(buffer: buffer)
  }

  static func quoted(_ text: String) -> String {
    "\"\(String(decoding: JSONText.escaped(text), as: UTF8.self))\""
  }

  static func hex(_ number: UInt64) -> String {
    var buffer = ByteBuffer()
    buffer.writeHex(number)
    return String(buffer: buffer)
  }
}
