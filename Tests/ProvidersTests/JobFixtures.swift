/// Recorded shapes of answers that are jobs, after the official SDKs' types.
extension Fixture {
  static let responsesStream = """
    event: response.created
    data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","created_at":1,"status":"in_progress","error":null,"incomplete_details":null,"model":"gpt-5-2026","output":[],"usage":null,"service_tier":"auto"}}

    event: response.in_progress
    data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"gpt-5-2026","output":[],"usage":null}}

    event: response.output_item.added
    data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"type":"reasoning","id":"rs_1","summary":[]}}

    event: response.reasoning_summary_text.delta
    data: {"type":"response.reasoning_summary_text.delta","sequence_number":3,"item_id":"rs_1","output_index":0,"summary_index":0,"delta":"Birds."}

    event: response.output_item.done
    data: {"type":"response.output_item.done","sequence_number":4,"output_index":0,"item":{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"Birds."}],"encrypted_content":"gAAA"}}

    event: response.output_item.added
    data: {"type":"response.output_item.added","sequence_number":5,"output_index":1,"item":{"type":"message","id":"msg_1","role":"assistant","status":"in_progress","content":[]}}

    event: response.content_part.added
    data: {"type":"response.content_part.added","sequence_number":6,"item_id":"msg_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}

    event: response.output_text.delta
    data: {"type":"response.output_text.delta","sequence_number":7,"item_id":"msg_1","output_index":1,"content_index":0,"delta":"Grüße, \\ud83d","logprobs":[],"obfuscation":"xx"}

    event: response.output_text.delta
    data: {"type":"response.output_text.delta","sequence_number":8,"item_id":"msg_1","output_index":1,"content_index":0,"delta":"\\udc26!","logprobs":[]}

    event: response.output_text.done
    data: {"type":"response.output_text.done","sequence_number":9,"item_id":"msg_1","output_index":1,"content_index":0,"text":"Grüße, 🐦!","logprobs":[]}

    event: response.output_item.added
    data: {"type":"response.output_item.added","sequence_number":10,"output_index":2,"item":{"type":"function_call","id":"fc_1","call_id":"call_a","name":"weather","arguments":"","status":"in_progress"}}

    event: response.function_call_arguments.delta
    data: {"type":"response.function_call_arguments.delta","sequence_number":11,"item_id":"fc_1","output_index":2,"delta":"{\\"city\\":"}

    event: response.function_call_arguments.delta
    data: {"type":"response.function_call_arguments.delta","sequence_number":12,"item_id":"fc_1","output_index":2,"delta":"\\"Oslo\\"}"}

    event: response.function_call_arguments.done
    data: {"type":"response.function_call_arguments.done","sequence_number":13,"item_id":"fc_1","output_index":2,"name":"weather","arguments":"{\\"city\\":\\"Oslo\\"}"}

    event: response.completed
    data: {"type":"response.completed","sequence_number":14,"response":\(responsesDone)}


    """

  /// A response that is complete, on one line.
  static let responsesDone = """
    {"id":"resp_1","object":"response","created_at":1,"status":"completed","error":null,"incomplete_details":null,"model":"gpt-5-2026","output":[{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"Birds."}],"encrypted_content":"gAAA"},{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Grüße, 🐦!","annotations":[]}]},{"type":"function_call","id":"fc_1","call_id":"call_a","name":"weather","arguments":"{\\"city\\":\\"Oslo\\"}","status":"completed"}],"service_tier":"priority","tool_usage":{"web_search":{"num_requests":2}},"usage":{"input_tokens":120,"input_tokens_details":{"cached_tokens":64,"cache_write_tokens":32,"cache_write_tokens_details":{"ttl_30m_tokens":20,"ttl_12h_tokens":12}},"output_tokens":48,"output_tokens_details":{"reasoning_tokens":40},"total_tokens":168}}
    """

  static let responsesQueued = """
    {"id":"resp_1","object":"response","created_at":1,"status":"queued","background":true,"error":null,"incomplete_details":null,"model":"gpt-5-2026","output":[],"usage":null}
    """

  /// A prediction; `body` are its members from the status on.
  static func prediction(_ body: String, urls: String = "", id: String = "pr1zd0ab") -> String {
    """
    {"id":"\(id)","model":"meta/llama","version":"hidden","input":{"prompt":"Hi"},"logs":"","data_removed":false,"created_at":"2026-11-21T10:00:00Z","urls":{"get":"https://api.replicate.com/v1/predictions/\(id)","cancel":"https://api.replicate.com/v1/predictions/\(id)/cancel"\(urls)},\(body)}
    """
  }

  static let predictionStarted = prediction(
    #""status":"starting","output":null,"error":null"#,
    urls: #","stream":"https://stream.replicate.com/v1/files/abc""#)

  static let predictionDone = prediction(
    #"""
    "status":"succeeded","output":["Grü","ße,\n"," ","🐦!"],"error":null,"metrics":{"input_token_count":12,"output_token_count":4,"predict_time":1.284541,"total_time":2.5}
    """#)

  static let predictionStream = """
    event: output
    id: 100:0
    data: Grü

    : hi

    event: logs
    id: 101:0
    data: Prompt: Hi

    event: output
    id: 102:0
    data: ße,
    data:

    event: output
    id: 103:0
    data:  \("")

    event: output
    id: 104:0
    data: 🐦!

    event: done
    id: 105:0
    data: {}


    """
}
