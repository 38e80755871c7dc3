import NIOCore
import NIOHTTP1

/// Endpoints of OpenAI's protocol whose requests or answers are files.
enum MediaEndpoint: String, CaseIterable {
  case images = "/v1/images/generations"
  case imageEdits = "/v1/images/edits"
  case speech = "/v1/audio/speech"
  case transcriptions = "/v1/audio/transcriptions"
}

extension Responder {
  func media(
    _ request: IncomingRequest, _ endpoint: MediaEndpoint, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try readMedia(request, endpoint, context)
    guard let model = asked.model, !model.isEmpty else { throw missing("model", .openAI) }
    context.entry.model = model
    let (directives, name) = try directives(&context, request, model: model)
    switch endpoint {
    case .images, .imageEdits:
      guard let prompt = asked.fields["prompt"], !prompt.isEmpty else {
        throw missing("prompt", .openAI)
      }
      if endpoint == .imageEdits, asked.files.isEmpty { throw missing("image", .openAI) }
      if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
      return images(asked, prompt, request, context, directives)
    case .speech:
      guard let input = asked.fields["input"], !input.isEmpty else {
        throw missing("input", .openAI)
      }
      guard asked.fields["voice"]?.isEmpty == false else { throw missing("voice", .openAI) }
      if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
      return speech(asked, input, context, directives)
    case .transcriptions:
      guard let file = asked.files.first(where: { $0.field == "file" }) else {
        throw missing("file", .openAI)
      }
      if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
      return transcription(asked, file, String(name), context, directives)
    }
  }

  /// A file that an image answer named: `/files/SIZE-SEED.png`.
  func file(_ request: IncomingRequest, _ path: Substring) -> Exchange? {
    let parts = path.dropFirst("/files/".count).split(separator: ".")[0].split(separator: "-")
    guard parts.count == 2, let size = Int(parts[0]), (0...64 << 20).contains(size),
      let seed = UInt64(parts[1], radix: 16)
    else { return nil }
    var body = ByteBuffer()
    body.writeImage(size, seed: seed)
    let context = Context(
      wire: .openAI, endpoint: .unknown(String(path)), requestID: nextID(),
      now: now(milliseconds: WallClock.milliseconds()),
      keepAlive: request.head.isKeepAlive, allowsChunks: false, entry: LogEntry())
    var exchange = bytes(context, body, contentType: "image/png")
    exchange.entry = nil
    return exchange
  }

  private func readMedia(
    _ request: IncomingRequest, _ endpoint: MediaEndpoint, _ context: Context
  ) throws(ProviderFailure) -> MediaRequest {
    let type = request.head.headers.first(name: "content-type") ?? ""
    guard endpoint == .imageEdits || endpoint == .transcriptions else {
      return try parse(request, context) { bytes throws(JSONScanner.Malformed) in
        try MediaRequest(json: bytes)
      }
    }
    let body = request.body.getBytes(
      at: request.body.readerIndex, length: request.body.readableBytes)
    guard let form = MediaRequest(form: body ?? [], contentType: type) else {
      throw ProviderFailure(.openAI, status: 400, message: "The request is not a form with files.")
    }
    return form
  }

  private func images(
    _ asked: MediaRequest, _ prompt: String, _ request: IncomingRequest, _ context: Context,
    _ directives: Directives
  ) -> Exchange {
    let count = min(10, max(1, asked.fields["n"].flatMap { Int($0) } ?? 1))
    let size = directives.bigBytes ?? 256
    var seed = Hash64.of(prompt)
    for file in asked.files { seed = Hash64.mixed(seed ^ file.hash) }
    let host = request.head.headers.first(name: "host") ?? "localhost"
    var body = ByteBuffer()
    body.reserveCapacity(1_024 + count * size * 4 / 3)
    body.writeString("{\"created\":\(context.now.second),\"output_format\":\"png\",")
    body.writeString("\"quality\":\"low\",\"size\":\"1024x1024\",\"data\":[")
    for index in 0..<count {
      if index > 0 { body.writeString(",") }
      let seed = Hash64.mixed(seed &+ UInt64(index))
      if asked.fields["response_format"] == "url" {
        body.writeString("{\"url\":\"http://\(host)/files/\(size)-\(Hash64.hex(seed)).png\"}")
      } else {
        var image = ByteBuffer()
        image.writeImage(size, seed: seed)
        body.writeString("{\"b64_json\":\"")
        body.writeBase64(image.readableBytesView)
        body.writeString("\"}")
      }
    }
    let text = TokenEstimate.tokens(bytes: prompt.utf8.count)
    let seen = asked.files.count * 100
    let made = directives.usage.output ?? count * 272
    let input = directives.usage.input ?? text + seen
    body.writeString(
      "],\"usage\":{\"input_tokens\":\(input),\"output_tokens\":\(made),"
        + "\"total_tokens\":\(input + made),\"input_tokens_details\":{\"image_tokens\":\(seen),"
        + "\"text_tokens\":\(text)}}}")
    if directives.malformed { body = Self.halved(body) }
    var exchange = bytes(context, body, directives: directives)
    exchange.usage = TokenUsage(input: input, output: made)
    exchange.reportsUsage = !directives.malformed
    return exchange
  }

  private func speech(
    _ asked: MediaRequest, _ input: String, _ context: Context, _ directives: Directives
  ) -> Exchange {
    var body = ByteBuffer()
    body.writeFiller(directives.bigBytes ?? 1_024, seed: Hash64.of(input))
    let type: StaticString =
      switch asked.fields["response_format"] {
      case "wav": "audio/wav"
      case "flac": "audio/flac"
      case "opus": "audio/opus"
      default: "audio/mpeg"
      }
    if directives.malformed {
      body = ByteBuffer(string: "{\"text\":")
      return bytes(context, body, directives: directives)
    }
    return bytes(context, body, contentType: type, directives: directives)
  }

  private func transcription(
    _ asked: MediaRequest, _ file: MediaRequest.File, _ model: String, _ context: Context,
    _ directives: Directives
  ) -> Exchange {
    let said = "I heard \(file.bytes) bytes of \(file.name): \(Hash64.hex(file.hash))."
    let text = directives.answer ?? JSONText.escaped(said)
    let seconds = Double(file.bytes / 16) / 1_000
    var body = ByteBuffer()
    switch asked.fields["response_format"] {
    case "text", "srt", "vtt":
      body.writeBytes(text)
      body.writeString("\n")
      return bytes(context, body, contentType: "text/plain; charset=utf-8", directives: directives)
    case "verbose_json":
      body.writeString("{\"task\":\"transcribe\",\"language\":\"english\",\"duration\":\(seconds),")
      body.writeString(
        "\"segments\":[{\"id\":0,\"seek\":0,\"start\":0.0,\"end\":\(seconds),\"text\":\"")
      body.writeBytes(text)
      body.writeString(
        "\",\"tokens\":[1],\"temperature\":0.0,\"avg_logprob\":-0.1,\"compression_ratio\":1.0,\"no_speech_prob\":0.0}],"
      )
    default: body.writeString("{")
    }
    body.writeString("\"text\":\"")
    body.writeBytes(text)
    body.writeString("\",\"usage\":{\"type\":\"duration\",\"seconds\":\(seconds)}}")
    if directives.malformed { body = Self.halved(body) }
    return bytes(context, body, directives: directives)
  }
}

extension ByteBuffer {
  /// Something that begins like a PNG file.
  fileprivate mutating func writeImage(_ size: Int, seed: UInt64) {
    writeBytes([0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A].prefix(size))
    writeFiller(max(0, size - 8), seed: seed)
  }

  /// Bytes that do not compress, the same for the same seed.
  fileprivate mutating func writeFiller(_ size: Int, seed: UInt64) {
    reserveCapacity(minimumWritableBytes: size)
    var seed = seed
    var left = size
    while left > 0 {
      seed = Hash64.mixed(seed &+ 0x9E37_79B9_7F4A_7C15)
      if left >= 8 {
        writeInteger(seed)
      } else {
        writeBytes((0..<left).map { UInt8(truncatingIfNeeded: seed >> UInt64(8 * $0)) })
      }
      left -= 8
    }
  }

  /// Base64 of RFC 4648 §4.
  fileprivate mutating func writeBase64(_ bytes: ByteBufferView) {
    let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    var group: UInt32 = 0
    var count = 0
    for byte in bytes {
      group = group << 8 | UInt32(byte)
      count += 1
      guard count == 3 else { continue }
      for shift in [UInt32(18), 12, 6, 0] { writeInteger(digits[Int(group >> shift & 63)]) }
      group = 0
      count = 0
    }
    guard count > 0 else { return }
    group <<= UInt32(8 * (3 - count))
    writeInteger(digits[Int(group >> 18 & 63)])
    writeInteger(digits[Int(group >> 12 & 63)])
    writeInteger(count == 2 ? digits[Int(group >> 6 & 63)] : UInt8(ascii: "="))
    writeInteger(UInt8(ascii: "="))
  }
}
