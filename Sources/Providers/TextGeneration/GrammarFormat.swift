/// OpenAI's `response_format`, said to servers that take a grammar instead:
/// `{"type": "json_object", "value": <schema>}`, as `huggingface_hub` sends it to its own inference.
enum GrammarFormat {
  /// The schema that is asked for; nil where the format is text.
  static func schema(of format: JSON?) throws(Failure) -> JSON? {
    switch format?["type"]?.string {
    case nil, "text": return nil
    case "json_schema":
      guard let schema = format?["json_schema"]?["schema"] else {
        throw Failure(.unsendable, message: "response_format.json_schema has no schema")
      }
      return schema
    case "json_object":
      guard let own = format?["value"] else {
        throw Failure(
          .unsendable, message: "this provider needs a schema: response_format of type json_schema")
      }
      return own
    case let type?:
      throw Failure(
        .unsendable, message: "this provider knows no response_format of type \"\(type)\"")
    }
  }

  /// The chat with its `response_format` translated, all else as it was.
  static func rewritten(_ call: Call) throws(Failure) -> Call {
    let parts = try RequestParts(call)
    guard let format = parts.param("response_format") else { return call }
    let schema = try schema(of: format)
    var writer = JSONWriter(reserving: call.request.count + 64)
    writer.beginObject()
    for (name, value) in parts.request.members where name != "params" {
      writer.key(name)
      writer.splice(value)
    }
    writer.key("params")
    writer.beginObject()
    for (name, value) in parts.params where name != "response_format" {
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
    return call
  }
}
