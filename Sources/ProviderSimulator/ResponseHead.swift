import NIOCore

/// Writes the heads of HTTP/1.1 responses, with the headers that each provider sends.
struct ResponseHead {
  enum Framing: Equatable {
    case length(Int)
    case chunked
    /// HTTP/1.0 has no chunks: the body ends with the connection.
    case untilClose
  }

  /// `nil` for the simulator's own endpoints, which carry no provider headers.
  var wire: Wire?
  var status = 200
  var contentType: StaticString = "application/json"
  var framing: Framing
  var requestID: UInt64
  var keepAlive: Bool
  var now: WallClock
  var failure: ProviderFailure?
  /// Headers that count something.
  var counts: [(name: StaticString, value: Int)] = []

  func write(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("HTTP/1.1 ")
    buffer.writeDecimal(status)
    buffer.writeStaticString(" ")
    buffer.writeStaticString(Self.reason(status))
    buffer.writeStaticString("\r\ndate: ")
    buffer.writeBytes(now.httpDate)
    buffer.writeStaticString("\r\nserver: martlet-simulator\r\ncontent-type: ")
    buffer.writeStaticString(contentType)
    switch framing {
    case .length(let length):
      buffer.writeStaticString("\r\ncontent-length: ")
      buffer.writeDecimal(length)
    case .chunked:
      buffer.writeStaticString("\r\ncache-control: no-cache\r\ntransfer-encoding: chunked")
    case .untilClose:
      buffer.writeStaticString("\r\ncache-control: no-cache")
    }
    if !keepAlive { buffer.writeStaticString("\r\nconnection: close") }
    switch wire {
    case .openAI: writeOpenAI(into: &buffer)
    case .anthropic: writeAnthropic(into: &buffer)
    case .gemini: buffer.writeStaticString("\r\nserver-timing: gfet4t7; dur=1")
    case .huggingFace:
      buffer.writeStaticString("\r\nx-request-id: req_")
      buffer.writeHex(requestID)
    case .ollama, .tgi, .tei: break
    case .replicate, nil: break
    }
    for (name, value) in counts {
      buffer.writeStaticString("\r\n")
      buffer.writeStaticString(name)
      buffer.writeStaticString(": ")
      buffer.writeDecimal(value)
    }
    if let failure { writeRetry(failure, into: &buffer) }
    buffer.writeStaticString("\r\n\r\n")
  }

  private func writeOpenAI(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("\r\nx-request-id: req_")
    buffer.writeHex(requestID)
    buffer.writeStaticString(
      """
      \r\nopenai-version: 2020-10-01\r\nopenai-organization: org-simulator\r
      openai-processing-ms: 1\r
      x-ratelimit-limit-requests: 10000\r\nx-ratelimit-limit-tokens: 2000000
      """)
    if isRateLimited {
      buffer.writeStaticString(
        """
        \r\nx-ratelimit-remaining-requests: 0\r\nx-ratelimit-remaining-tokens: 0\r
        x-ratelimit-reset-requests: 1s\r\nx-ratelimit-reset-tokens: 1s
        """)
    } else {
      buffer.writeStaticString(
        """
        \r\nx-ratelimit-remaining-requests: 9999\r\nx-ratelimit-remaining-tokens: 1999000\r
        x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 30ms
        """)
    }
  }

  private func writeAnthropic(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("\r\nrequest-id: req_")
    buffer.writeHex(requestID)
    buffer.writeStaticString("\r\nanthropic-organization-id: org-simulator")
    for kind in Self.anthropicLimits {
      buffer.writeStaticString("\r\nanthropic-ratelimit-")
      buffer.writeStaticString(kind.name)
      buffer.writeStaticString("-limit: ")
      buffer.writeDecimal(kind.limit)
      buffer.writeStaticString("\r\nanthropic-ratelimit-")
      buffer.writeStaticString(kind.name)
      buffer.writeStaticString("-remaining: ")
      buffer.writeDecimal(isRateLimited ? 0 : kind.limit - kind.limit / 1_000)
      buffer.writeStaticString("\r\nanthropic-ratelimit-")
      buffer.writeStaticString(kind.name)
      buffer.writeStaticString("-reset: ")
      buffer.writeBytes(now.rfc3339)
    }
  }

  private static let anthropicLimits: [(name: StaticString, limit: Int)] = [
    ("requests", 4_000), ("tokens", 2_400_000), ("input-tokens", 2_000_000),
    ("output-tokens", 400_000),
  ]

  private var isRateLimited: Bool { status == 429 }

  private func writeRetry(_ failure: ProviderFailure, into buffer: inout ByteBuffer) {
    switch failure.retryAfter {
    // Gemini says it in the body.
    case _ where wire == .gemini: break
    // Hugging Face says in the body how long a model is being loaded.
    case _ where wire == .huggingFace && status == 503: break
    case .none: break
    case .seconds(let seconds):
      buffer.writeStaticString("\r\nretry-after: ")
      buffer.writeString(Int(exactly: seconds).map(String.init) ?? "\(seconds)")
    case .date:
      buffer.writeStaticString("\r\nretry-after: ")
      buffer.writeString(WallClock.httpDate(now.second + 2))
    }
    if let milliseconds = failure.retryAfterMilliseconds {
      buffer.writeStaticString("\r\nretry-after-ms: ")
      buffer.writeDecimal(milliseconds)
    }
    if let shouldRetry = failure.shouldRetry {
      buffer.writeStaticString(
        shouldRetry ? "\r\nx-should-retry: true" : "\r\nx-should-retry: false")
    }
  }

  private static func reason(_ status: Int) -> StaticString {
    switch status {
    case 200: "OK"
    case 201: "Created"
    case 400: "Bad Request"
    case 401: "Unauthorized"
    case 402: "Payment Required"
    case 403: "Forbidden"
    case 404: "Not Found"
    case 405: "Method Not Allowed"
    case 408: "Request Timeout"
    case 409: "Conflict"
    case 413: "Content Too Large"
    case 422: "Unprocessable Content"
    case 424: "Failed Dependency"
    case 429: "Too Many Requests"
    case 500: "Internal Server Error"
    case 502: "Bad Gateway"
    case 503: "Service Unavailable"
    case 504: "Gateway Timeout"
    case 529: "Site Overloaded"
    default: "Status"
    }
  }
}
