/// A directive that the simulator does not understand.
package struct DirectiveError: Error, Equatable, CustomStringConvertible {
  /// What is wrong, in a sentence that can be shown to a caller.
  package var description: String
}

extension Directives {
  /// Applies `key=value;key;…` on top of the receiver. Later directives win; `clear` drops all
  /// earlier ones.
  package mutating func apply(_ text: String) throws(DirectiveError) {
    for part in text.split(separator: ";") {
      let trimmed = part.trimmingSpaces
      if trimmed.isEmpty { continue }
      let key: Substring
      let value: String?
      if let equals = trimmed.firstIndex(of: "=") {
        key = trimmed[..<equals].trimmingSpaces
        value = try Self.decoded(trimmed[trimmed.index(after: equals)...].trimmingSpaces)
      } else {
        key = trimmed
        value = nil
      }
      try apply(key: String(key), value: value)
    }
  }

  private mutating func apply(key: String, value: String?) throws(DirectiveError) {
    switch key {
    case "clear": self = Directives()
    case "latency": latency = try Self.count(key, value, upTo: 3_600_000)
    case "ttft": timeToFirstToken = try Self.count(key, value, upTo: 3_600_000)
    case "rate": tokensPerSecond = try Self.rate(key, value)
    case "tokens": tokenCount = try Self.count(key, value, from: 1, upTo: 1_000_000)
    case "answer": answer = JSONText.escaped(try Self.text(key, value))
    case "big": bigBytes = try Self.count(key, value, from: 1, upTo: 64 << 20)
    case "usage": try applyUsage(try Self.text(key, value))
    case "finish": finish = try Self.text(key, value)
    case "model": reportedModel = try Self.text(key, value)
    case "tier": serviceTier = try Self.text(key, value)
    case "tool": tools = value.map { $0.split(separator: ",").map(String.init) } ?? ["*"]
    case "args": toolArguments = try Self.jsonObject(key, value)
    case "surrogate": loneSurrogate = try Self.flag(key, value)
    case "nul": nulCharacter = try Self.flag(key, value)
    case "dims": dimensions = try Self.count(key, value, from: 1, upTo: 16_384)
    case "flag": flags = try Self.text(key, value).split(separator: ",").map(String.init)
    case "tag": tag = try Self.text(key, value)
    case "drip": dripInterval = try Self.count(key, value ?? "5", from: 1, upTo: 60_000)
    default: try applyFault(key: key, value: value)
    }
  }

  private mutating func applyFault(key: String, value: String?) throws(DirectiveError) {
    switch key {
    case "batch": batch = try BatchDirectives(try Self.text(key, value))
    case "at":
      let step = try Self.text(key, value)
      guard BatchEndpoint.Step(rawValue: step) != nil || JobPlace(rawValue: step) != nil else {
        throw DirectiveError(description: "at: '\(step)' is no step of a batch or a job")
      }
      at = step
    case "late": isLate = try Self.flag(key, value)
    case "status": status = try Self.count(key, value, from: 400, upTo: 599)
    case "code": errorCode = try Self.text(key, value)
    case "type": errorType = try Self.text(key, value)
    case "message": errorMessage = try Self.text(key, value)
    case "retry_after":
      switch try Self.text(key, value) {
      case "none": retryAfter = Directives.RetryAfter.none
      case "date": retryAfter = .date
      default: retryAfter = .seconds(try Self.rate(key, value))
      }
    case "retry_after_ms": retryAfterMilliseconds = try Self.count(key, value, upTo: 1_000_000_000)
    case "should_retry": shouldRetry = try Self.boolean(key, value)
    case "times": times = try Self.count(key, value, upTo: 1_000_000)
    case "chance": chance = try Self.count(key, value, upTo: 100)
    case "polls": polls = try Self.count(key, value, upTo: 1_000_000)
    case "hang": hang = try Self.flag(key, value)
    case "reset": reset = try Self.flag(key, value)
    case "hang_after": cut = Cut(kind: .hang, tokens: try Self.tokens(key, value))
    case "reset_after": cut = Cut(kind: .reset, tokens: try Self.tokens(key, value))
    case "truncate_after": cut = Cut(kind: .truncate, tokens: try Self.tokens(key, value))
    case "end_after": cut = Cut(kind: .end, tokens: try Self.tokens(key, value))
    case "malformed": malformed = try Self.flag(key, value)
    case "html": html = try Self.flag(key, value)
    case "empty": empty = try Self.flag(key, value)
    case "embedded_error": embeddedErrorAfter = try Self.tokens(key, value ?? "2")
    default: throw DirectiveError(description: "unknown directive '\(key)'")
    }
  }

  private mutating func applyUsage(_ text: String) throws(DirectiveError) {
    for field in text.split(separator: ",") {
      let parts = field.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2 else {
        throw DirectiveError(description: "usage: '\(field)' is not name:count")
      }
      let name = String(parts[0].trimmingSpaces)
      let count = try Self.count("usage", String(parts[1].trimmingSpaces), upTo: 1_000_000_000_000)
      switch name {
      case "input": usage.input = count
      case "cached": usage.cached = count
      case "write", "write5m": usage.write5m = count
      case "write1h": usage.write1h = count
      case "output": usage.output = count
      case "reasoning": usage.reasoning = count
      default: throw DirectiveError(description: "usage: unknown class '\(name)'")
      }
    }
  }
}

extension Directives {
  private static func text(_ key: String, _ value: String?) throws(DirectiveError) -> String {
    guard let value else { throw DirectiveError(description: "\(key): needs a value") }
    return value
  }

  private static func count(
    _ key: String, _ value: String?, from low: Int = 0, upTo high: Int
  ) throws(DirectiveError) -> Int {
    guard let number = Int(try text(key, value)), number >= low, number <= high else {
      throw DirectiveError(description: "\(key): needs a whole number from \(low) to \(high)")
    }
    return number
  }

  private static func tokens(_ key: String, _ value: String?) throws(DirectiveError) -> Int {
    try count(key, value, upTo: 1_000_000)
  }

  private static func rate(_ key: String, _ value: String?) throws(DirectiveError) -> Double {
    guard let rate = Double(try text(key, value)), rate >= 0, rate <= 1_000_000 else {
      throw DirectiveError(description: "\(key): needs a number from 0 to 1000000")
    }
    return rate
  }

  private static func flag(_ key: String, _ value: String?) throws(DirectiveError) -> Bool {
    value == nil ? true : try boolean(key, value)
  }

  private static func boolean(_ key: String, _ value: String?) throws(DirectiveError) -> Bool {
    switch try text(key, value) {
    case "true", "1", "yes": return true
    case "false", "0", "no": return false
    default: throw DirectiveError(description: "\(key): needs true or false")
    }
  }

  private static func jsonObject(_ key: String, _ value: String?) throws(DirectiveError) -> String {
    let object = try text(key, value)
    guard JSONText.isObject(object) else {
      throw DirectiveError(description: "\(key): needs a JSON object")
    }
    return object
  }

  /// Undoes form encoding: `%41` is a byte, `+` is a space.
  private static func decoded(_ value: Substring) throws(DirectiveError) -> String {
    guard value.utf8.contains(where: { $0 == UInt8(ascii: "%") || $0 == UInt8(ascii: "+") }) else {
      return String(value)
    }
    var bytes: [UInt8] = []
    var rest = value.utf8[...]
    while let byte = rest.popFirst() {
      switch byte {
      case UInt8(ascii: "+"): bytes.append(UInt8(ascii: " "))
      case UInt8(ascii: "%"):
        guard let high = rest.popFirst()?.hexDigit, let low = rest.popFirst()?.hexDigit else {
          throw DirectiveError(description: "'\(value)' has a % without two hex digits")
        }
        bytes.append(high << 4 | low)
      default: bytes.append(byte)
      }
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw DirectiveError(description: "'\(value)' does not decode to UTF-8")
    }
    return text
  }
}

extension Substring {
  var trimmingSpaces: Substring {
    var rest = self
    while rest.first == " " { rest.removeFirst() }
    while rest.last == " " { rest.removeLast() }
    return rest
  }
}
