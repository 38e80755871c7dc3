import NIOCore

extension Responder {
  /// The response to a request whose fault replaces any answer; `nil` where an answer begins.
  func faultyExchange(
    _ context: Context, _ directives: Directives, isStream: Bool
  ) -> Exchange? {
    if directives.hang || directives.reset {
      return Exchange(
        transmission: Transmission(
          bytes: ByteBuffer(), due: Pace(directives).latency, limit: 0, drip: nil,
          ending: directives.hang ? .hang : .reset),
        entry: context.entry)
    }
    let streams = isStream && directives.status == nil
    if directives.html {
      var body = ByteBuffer()
      body.writeStaticString(
        """
        <!DOCTYPE html>
        <html><head><title>502 Bad Gateway</title></head>
        <body><center><h1>502 Bad Gateway</h1></center><hr><center>simulator</center></body></html>

        """)
      return bytes(
        context, body, status: directives.status ?? 200, contentType: "text/html",
        directives: directives)
    }
    if directives.empty {
      return bytes(
        context, ByteBuffer(), status: directives.status ?? 200,
        contentType: streams ? context.wire.streamType : "application/json",
        directives: directives)
    }
    if let status = directives.status {
      let failure = ProviderFailure(context.wire, status: status, directives: directives)
      if directives.malformed { return malformedError(context, failure, directives) }
      return fail(context, failure, directives: directives)
    }
    if directives.embeddedErrorAfter != nil, !isStream {
      var body = ByteBuffer()
      embeddedError(context, directives)
        .write(context.wire, requestID: context.requestID, into: &body)
      return bytes(context, body, directives: directives)
    }
    return nil
  }

  private func malformedError(
    _ context: Context, _ failure: ProviderFailure, _ directives: Directives
  ) -> Exchange {
    var body = ByteBuffer()
    var failure = failure
    failure.host = context.host
    failure.write(context.wire, requestID: context.requestID, into: &body)
    body.moveWriterIndex(to: body.writerIndex / 2)
    return bytes(
      context, body, status: failure.status, failure: failure, directives: directives)
  }

  /// The error inside a 200 response: an overload unless directives say otherwise.
  func embeddedError(_ context: Context, _ directives: Directives) -> ProviderFailure {
    let status =
      switch context.wire {
      case .anthropic: 529
      case .gemini: 503
      case .tgi, .tei: 424
      default: 500
      }
    var failure = ProviderFailure(context.wire, status: status, directives: directives)
    failure.host = context.host
    return failure
  }

  /// A whole body with its second half missing, so that it is not JSON.
  static func halved(_ body: ByteBuffer) -> ByteBuffer {
    var body = body
    return body.readSlice(length: body.readableBytes / 2) ?? body
  }
}
