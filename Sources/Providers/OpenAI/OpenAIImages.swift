/// Requests of `POST {base}/images/generations`, and of `POST {base}/images/edits` where the input has
/// images. Facts are from the types of the official Python SDK, `openai` 3.52.0.
///
/// Option `image_response_format` (`b64_json` or `url`): sent to servers that have the parameter;
/// OpenAI's own models refuse it and always send the image itself.
enum OpenAIImages {
  private static let own: Set<String> = ["model", "prompt", "image", "stream", "partial_images"]

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    let input = try OpenAIInput(parts)
    guard !input.text.isEmpty else {
      throw Failure(.unsendable, message: "an image needs a text that says what it shows")
    }
    let format =
      parts.param("response_format") == nil ? parts.options["image_response_format"]?.string : nil
    guard !input.files.isEmpty else {
      var writer = JSONWriter(reserving: call.request.count + 128)
      writer.beginObject()
      writer.member("model", call.model)
      writer.member("prompt", input.text)
      for (name, value) in parts.params where !own.contains(name) {
        writer.key(name)
        writer.splice(value)
      }
      if let format { writer.member("response_format", format) }
      writer.endObject()
      return try parts.post(
        path: try variant.path("/images/generations", parts), auth: variant.auth,
        body: writer.bytes)
    }
    var form = Multipart(
      seed: call.request, reserving: input.files.reduce(0) { $0 + $1.bytes.count })
    form.field("model", call.model)
    form.field("prompt", input.text)
    for (name, value) in parts.params where !own.contains(name) { form.field(name, value) }
    if let format { form.field("response_format", format) }
    for file in input.files { form.file(input.files.count > 1 ? "image[]" : "image", file) }
    form.end()
    return try parts.post(
      path: try variant.path("/images/edits", parts), auth: variant.auth, form)
  }
}

extension RequestParts {
  /// A request with a form in place of JSON.
  func post(
    path: String, auth: String, _ form: Multipart
  ) throws(Failure) -> ProviderRequest {
    var request = try post(path: path, auth: auth, body: form.bytes)
    request.headers.removeAll { $0.name.lowercased() == "content-type" }
    request.headers.append(("content-type", form.contentType))
    return request
  }
}

/// Answers of the image endpoints: `data[]` with `b64_json` or `url`.
struct OpenAIImageAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id", "request-id"]
  /// More images are not asked for.
  private static let mostImages = 16

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()

  func reply() -> Reply { result }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    let format = json["output_format"]?.string.map { "image/\($0 == "svg" ? "svg+xml" : $0)" }
    var files: [ProducedFile] = []
    for image in (json["data"]?.elements ?? []).prefix(Self.mostImages) {
      if let bytes = image["b64_json"]?.string.flatMap(Base64.bytes), !bytes.isEmpty {
        let type = imageType(of: bytes) ?? format ?? "application/octet-stream"
        files.append(ProducedFile(mediaType: type, content: .bytes(bytes)))
      } else if let url = image["url"]?.string, !url.isEmpty {
        files.append(ProducedFile(mediaType: format ?? "image/png", content: .url(url)))
      } else {
        return ""
      }
    }
    result.model = json["model"]?.string
    result.files = files
    result.finishReason = "stop"
    result.usage = usage(json["usage"], files.count, json)
    if let said = json["data"]?.elements.first?["revised_prompt"]?.string, !said.isEmpty {
      var writer = JSONWriter()
      writer.beginObject()
      writer.member("role", "assistant")
      writer.member("content", "")
      writer.member("revised_prompt", said)
      writer.endObject()
      result.message = writer.bytes
    }
    isComplete = !files.isEmpty
    return ""
  }

  /// Tokens where the model is billed by them, and always how many images of which quality and size.
  private func usage(_ json: JSON?, _ count: Int, _ answer: JSON) -> Usage {
    var usage = Usage()
    if let json, let input = json["input_tokens"]?.int, let output = json["output_tokens"]?.int,
      Usage.isCount(input), Usage.isCount(output)
    {
      usage.input = input
      usage.output = output
      if let images = json["input_tokens_details"]?["image_tokens"]?.int, images > 0 {
        usage.units["image_input"] = String(min(images, input))
      }
      if let images = json["output_tokens_details"]?["image_tokens"]?.int {
        usage.units["image_output"] = String(max(0, min(images, output)))
      } else {
        usage.units["image_output"] = String(output)
      }
    }
    let variant = [answer["quality"]?.string, answer["size"]?.string].compactMap(\.self)
      .joined(separator: "_").lowercased()
    let isName =
      variant.utf8.count <= 60
      && variant.utf8.allSatisfy {
        (0x30...0x39).contains($0) || (0x61...0x7A).contains($0) || $0 == 0x5F || $0 == 0x2D
      }
    usage.units[variant.isEmpty || !isName ? "images" : "images:\(variant)"] = String(count)
    return usage
  }
}
