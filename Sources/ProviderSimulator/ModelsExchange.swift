import NIOCore

extension Responder {
  /// Models that are listed. Requests may name any other.
  static let listedModels = ["sim-small", "sim-medium", "sim-large", "sim-embed"]

  func models(_ context: Context) -> Exchange {
    var body = ByteBuffer()
    switch context.wire {
    case .openAI, .replicate: body.writeStaticString("{\"object\":\"list\",\"data\":[")
    case .anthropic: body.writeStaticString("{\"data\":[")
    case .gemini: body.writeStaticString("{\"models\":[")
    // These have lists of their own.
    case .ollama, .tgi, .tei, .huggingFace: break
    }
    for (index, id) in Self.listedModels.enumerated() {
      if index > 0 { body.writeStaticString(",") }
      write(model: id, context.wire, into: &body)
    }
    switch context.wire {
    case .openAI, .gemini, .ollama, .tgi, .tei, .huggingFace, .replicate:
      body.writeStaticString("]}")
    case .anthropic:
      body.writeStaticString(
        "],\"has_more\":false,\"first_id\":\"sim-small\",\"last_id\":\"sim-embed\"}")
    }
    return bytes(context, body)
  }

  func model(_ id: String, _ context: Context) -> Exchange {
    guard Self.listedModels.contains(id) else {
      return fail(context, ProviderFailure(context.wire, status: 404))
    }
    var body = ByteBuffer()
    write(model: id, context.wire, into: &body)
    return bytes(context, body)
  }

  private func write(model id: String, _ wire: Wire, into body: inout ByteBuffer) {
    body.writeStaticString(wire == .gemini ? "{\"name\":\"models/" : "{\"id\":\"")
    body.writeString(id)
    switch wire {
    case .openAI, .replicate:
      body.writeStaticString(
        "\",\"object\":\"model\",\"created\":1767225600,\"owned_by\":\"martlet-simulator\"}")
    case .ollama, .tgi, .tei, .huggingFace: body.writeStaticString("\"}")
    case .anthropic:
      body.writeStaticString("\",\"type\":\"model\",\"display_name\":\"")
      body.writeString(id)
      body.writeStaticString(
        "\",\"created_at\":\"2026-01-01T00:00:00Z\",\"lifecycle\":\"active\"}")
    case .gemini:
      body.writeStaticString("\",\"displayName\":\"")
      body.writeString(id)
      body.writeStaticString(
        "\",\"inputTokenLimit\":1048576,\"outputTokenLimit\":65536}")
    }
  }
}
