/// Requests of `POST {base}/moderations`. Images go as parts; text alone goes as one text, which older
/// models and other hosts take too.
enum OpenAIModeration {
  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    guard let input = parts.request["input"] else {
      throw Failure(.unsendable, message: "the request has no input")
    }
    parts.leaveOut(ParameterVocabulary.chat)
    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("input")
    if input.kind == .string {
      writer.splice(input)
    } else {
      try write(messages: input, to: &writer)
    }
    OpenAIParameters(parts: parts, variant: variant).write(to: &writer)
    writer.endObject()
    return try parts.post(
      path: try variant.path("/moderations", parts), auth: variant.auth, ownHeaders: [],
      body: writer.bytes)
  }

  /// The texts and images of all messages, in their order.
  private static func write(messages: JSON, to writer: inout JSONWriter) throws(Failure) {
    var found: [JSON] = []
    var texts: [String] = []
    for message in messages.elements {
      guard let content = message["content"] else { continue }
      for part in content.kind == .array ? content.elements : [content] {
        if let text = part.string ?? part["text"]?.string {
          texts.append(text)
          found.append(part)
        } else if part["type"]?.string == "image_url" {
          found.append(part)
        } else {
          throw Failure(.unsendable, message: "a moderation takes texts and images only")
        }
      }
    }
    guard !found.isEmpty else {
      throw Failure(.unsendable, message: "there is nothing in the messages to be judged")
    }
    guard texts.count < found.count else {
      return writer.string(texts.joined(separator: "\n"))
    }
    writer.beginArray()
    for part in found {
      if part.kind == .string {
        writer.beginObject()
        writer.member("type", "text")
        writer.key("text")
        writer.splice(part)
        writer.endObject()
      } else {
        writer.splice(part)
      }
    }
    writer.endArray()
  }
}

/// Answers of the Moderations endpoint. The message is the one result, `{"flagged", "categories",
/// "category_scores", …}`; where a host leaves `flagged` out (Mistral), it is whether any category
/// applies. The output is the names of those that do, joined with commas.
struct OpenAIModerationAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id", "request-id"]

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    result.model = json["model"]?.string
    result.requestID = json["id"]?.string
    result.usage = json["usage"].flatMap { Usage(openAI: $0) }
    // Several results are those of several texts, which are not sent.
    guard let verdict = json["results"]?.elements.first, verdict.kind == .object,
      verdict["categories"]?.kind == .object || verdict["flagged"]?.kind == .bool
    else { return "" }
    let applying = (verdict["categories"]?.members ?? []).filter { $0.value.bool == true }
    var writer = JSONWriter(reserving: verdict.raw.count + 32)
    writer.beginObject()
    writer.member("flagged", verdict["flagged"]?.bool ?? !applying.isEmpty)
    for (name, value) in verdict.members where name != "flagged" {
      writer.key(name)
      writer.copy(value)
    }
    writer.endObject()
    result.message = writer.bytes
    result.output = applying.map(\.key).joined(separator: ",")
    result.finishReason = "stop"
    isComplete = true
    return result.output
  }

  func reply() -> Reply { result }
}
