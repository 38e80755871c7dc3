import NIOCore

extension Responder {
  static let largestDimensions = 16_384

  func embeddings(
    _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try EmbeddingRequest(bytes)
    }
    guard let model = asked.model, !model.isEmpty else { throw missing("model", context.wire) }
    context.entry.model = model
    guard asked.hasInput else { throw missing("input", context.wire) }
    if asked.inputs.isEmpty || asked.inputs.contains("") {
      throw invalid("'input' cannot be empty.", "input")
    }
    if asked.inputs.count > EmbeddingRequest.mostInputs {
      throw invalid("'input' may hold at most \(EmbeddingRequest.mostInputs) items.", "input")
    }
    if asked.unknownFormat {
      throw invalid("'encoding_format' must be 'float' or 'base64'.", "encoding_format")
    }
    let (directives, name) = try directives(&context, request, model: model)
    let dimensions =
      asked.dimensions ?? directives.dimensions ?? (name.contains("large") ? 3_072 : 1_536)
    guard (1...Self.largestDimensions).contains(dimensions) else {
      throw invalid("'dimensions' must be from 1 to \(Self.largestDimensions).", "dimensions")
    }
    if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }

    var usage = TokenUsage(input: asked.tokenCount, output: 0)
    if let input = directives.usage.input { usage.input = input }
    var body = ByteBuffer()
    body.reserveCapacity(
      256 + asked.inputs.count * (64 + dimensions * (asked.base64 ? 6 : 13)))
    write(asked, dimensions, directives.reportedModel ?? String(name), usage, into: &body)
    if directives.malformed { body = Self.halved(body) }
    var exchange = bytes(context, body, directives: directives)
    exchange.usage = usage
    exchange.reportsUsage = !directives.malformed
    return exchange
  }

  private func invalid(_ message: String, _ param: String) -> ProviderFailure {
    ProviderFailure(.openAI, status: 400, message: message, param: param)
  }

  private func write(
    _ asked: EmbeddingRequest, _ dimensions: Int, _ model: String, _ usage: TokenUsage,
    into body: inout ByteBuffer
  ) {
    body.writeStaticString("{\"object\":\"list\",\"data\":[")
    for (index, input) in asked.inputs.enumerated() {
      if index > 0 { body.writeStaticString(",") }
      body.writeStaticString("{\"object\":\"embedding\",\"index\":")
      body.writeDecimal(index)
      body.writeStaticString(",\"embedding\":")
      let vector = EmbeddingVector.make(text: input, dimensions: dimensions)
      if asked.base64 {
        body.writeStaticString("\"")
        body.writeBase64(littleEndian: vector)
        body.writeStaticString("\"")
      } else {
        for (position, value) in vector.enumerated() {
          body.writeStaticString(position == 0 ? "[" : ",")
          body.writeString(value.description)
        }
        body.writeStaticString("]")
      }
      body.writeStaticString("}")
    }
    body.writeStaticString("],\"model\":\"")
    body.writeBytes(JSONText.escaped(model))
    body.writeStaticString("\",\"usage\":{\"prompt_tokens\":")
    body.writeDecimal(usage.input)
    body.writeStaticString(",\"total_tokens\":")
    body.writeDecimal(usage.input)
    body.writeStaticString("}}")
  }
}

extension ByteBuffer {
  /// Writes IEEE 754 single floats, least significant byte first, in base64 (RFC 4648 §4).
  mutating func writeBase64(littleEndian floats: [Float]) {
    let length = (floats.count * 4 + 2) / 3 * 4
    writeWithUnsafeMutableBytes(minimumWritableBytes: length) { out in
      var group: UInt32 = 0
      var filled = 0
      var at = 0
      func put(digits: Int) {
        for digit in 0..<4 {
          out[at] =
            digit < digits
            ? Base64.digit(group >> UInt32(18 - 6 * digit) & 63) : UInt8(ascii: "=")
          at += 1
        }
      }
      for float in floats {
        var bits = float.bitPattern
        for _ in 0..<4 {
          group = group << 8 | (bits & 255)
          bits >>= 8
          filled += 1
          guard filled == 3 else { continue }
          put(digits: 4)
          group = 0
          filled = 0
        }
      }
      if filled > 0 {
        group <<= UInt32(8 * (3 - filled))
        put(digits: filled + 1)
      }
      return at
    }
  }
}

private enum Base64 {
  /// The character of six bits.
  static func digit(_ bits: UInt32) -> UInt8 {
    let value = UInt8(truncatingIfNeeded: bits)
    switch value {
    case 0..<26: return UInt8(ascii: "A") + value
    case 26..<52: return UInt8(ascii: "a") + (value - 26)
    case 52..<62: return UInt8(ascii: "0") + (value - 52)
    case 62: return UInt8(ascii: "+")
    default: return UInt8(ascii: "/")
    }
  }
}
