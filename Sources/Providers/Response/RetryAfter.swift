/// When a provider wants to be asked again.
enum RetryAfter {
  /// Milliseconds from `retry-after-ms`, else from `retry-after` as seconds (also with a fraction),
  /// else as an HTTP date: the precedence of the official OpenAI and Anthropic SDKs. A date counts
  /// from the response's own `date`, so that a wrong clock here changes nothing; `now` (seconds since
  /// 1970) stands in where there is none. The past is 0; the most is 2^31 - 1.
  static func milliseconds(_ headers: [String: String], now: () -> Int) -> Int? {
    if let value = headers["retry-after-ms"].flatMap(number) {
      return clamp(value)
    }
    guard let text = headers["retry-after"] else { return nil }
    if let value = number(text) { return clamp(value * 1_000) }
    guard let date = HTTPDate.seconds(text) else { return nil }
    let reference = headers["date"].flatMap(HTTPDate.seconds) ?? now()
    return clamp(Double(date - reference) * 1_000)
  }

  /// Milliseconds, rounded up: asking too early costs another refusal.
  static func clamp(_ milliseconds: Double) -> Int {
    Int(min(max(milliseconds, 0), 2_147_483_647).rounded(.up))
  }

  private static func number(_ text: String) -> Double? {
    let trimmed = text.filter { $0 != " " && $0 != "\t" }
    guard let first = trimmed.utf8.first, (0x30...0x39).contains(first) || first == 0x2D,
      let value = Double(trimmed), value.isFinite
    else { return nil }
    return value
  }
}
