import NIOCore
import NIOHTTP1
import Synchronization

extension Responder {
  /// The simulator's own endpoints, which are neither logged nor subject to directives.
  func control(_ request: IncomingRequest, path: Substring) -> Exchange {
    switch path {
    case "/__log": return logExchange(request)
    case "/__reset":
      reset()
      return plain(request, "{\"status\":\"ok\"}\n")
    case "/__defaults": return defaultsExchange(request)
    default:
      return plain(
        request,
        "{\"status\":\"ok\",\"answered\":\(log.last),"
          + "\"in_flight\":\(max(0, inFlight.load(ordering: .relaxed)))}\n")
    }
  }

  private func logExchange(_ request: IncomingRequest) -> Exchange {
    let query = request.head.uri.split(separator: "?", maxSplits: 1).dropFirst().first ?? ""
    var since: UInt64 = 0
    for pair in query.split(separator: "&") where pair.hasPrefix("since=") {
      guard let number = UInt64(pair.dropFirst("since=".count)) else {
        return plain(request, status: 400, "{\"error\":\"since must be a whole number\"}\n")
      }
      since = number
    }
    let (entries, dropped) = log.entries(since: min(since, .max - 1))
    var body = ByteBuffer()
    if dropped > 0 {
      body.writeString("{\"dropped\":\(dropped)}\n")
    }
    for entry in entries { entry.write(into: &body) }
    return plain(request, contentType: "application/x-ndjson", body)
  }

  /// GET tells nothing; POST replaces the server's defaults by the directives in its body.
  private func defaultsExchange(_ request: IncomingRequest) -> Exchange {
    guard request.head.method == .POST else {
      return plain(request, status: 405, "{\"error\":\"POST directives here\"}\n")
    }
    var directives = Directives()
    do throws(DirectiveError) {
      try directives.apply(String(buffer: request.body).filter { !$0.isNewline })
    } catch {
      return plain(
        request, status: 400,
        "{\"error\":\"\(String(decoding: JSONText.escaped(error.description), as: UTF8.self))\"}\n")
    }
    currentDefaults = directives
    return plain(request, "{\"status\":\"ok\"}\n")
  }

  private func plain(_ request: IncomingRequest, status: Int = 200, _ text: String) -> Exchange {
    plain(request, status: status, ByteBuffer(string: text))
  }

  private func plain(
    _ request: IncomingRequest, status: Int = 200,
    contentType: StaticString = "application/json", _ body: ByteBuffer
  ) -> Exchange {
    var body = body
    var buffer = ByteBuffer()
    let keepAlive = request.head.isKeepAlive
    ResponseHead(
      wire: nil, status: status, contentType: contentType, framing: .length(body.readableBytes),
      requestID: 0, keepAlive: keepAlive, now: now(milliseconds: WallClock.milliseconds())
    ).write(into: &buffer)
    buffer.writeBuffer(&body)
    return Exchange(
      transmission: Transmission(
        bytes: buffer, due: 0, drip: nil, ending: keepAlive ? .keepAlive : .close))
  }
}
