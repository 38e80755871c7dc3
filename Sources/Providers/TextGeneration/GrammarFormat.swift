/// OpenAI's `response_format`, said to servers that take a grammar instead:
/// `{"type": "json_object", "value": <schema>}`, as `huggingface_hub` sends it to its own inference.
enum GrammarFormat {
  /// The schema that is asked for; nil where there is none, so that nothing can be said.
  static func schema(of format: JSON?) -> JSON? {
    format?["json_schema"]?["schema"] ?? format?["value"]
  }

  /// The request of a chat in OpenAI's protocol, its `response_format` translated or left out.
  static func chat(_ call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    guard let format = parts.param("response_format") else { return try OpenAI.request(for: call) }
    let schema = schema(of: format)
    if schema == nil { parts.leaveOut("response_format") }
    var writer = JSONWriter(reserving: call.request.count + 64)
    writer.beginObject()
    for (name, value) in parts.request.members where name != "params" {
      writer.key(name)
      writer.splice(value)
    }
    writer.key("params")
    writer.beginObject()
    for (name, value) in parts.request["params"]?.members ?? [] where name != "response_format" {
      writer.key(name)
      writer.splice(value)
    }
    if let schema {
      writer.key("response_format")
      writer.beginObject()
      writer.member("type", "json_object")
      writer.key("value")
      writer.splice(schema)
      writer.endObject()
    }
    writer.endObject()
    writer.endObject()
    var call = call
    call.request = writer.bytes
    var request = try parts.accounted(OpenAI.request(for: call))
    // What only the other left out: the option may name parameters of its own.
    for name in try OpenAI.request(for: call).dropped where !request.dropped.contains(name) {
      request.dropped.append(name)
    }
    return request
  }
}
