#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// A moment of the wall clock in the spellings that headers and bodies use.
struct WallClock: Sendable, Equatable {
  /// Seconds since 1970.
  var second: Int
  /// RFC 9110, as in `date`.
  var httpDate: [UInt8]
  /// RFC 3339, as in Anthropic's rate limit headers.
  var rfc3339: [UInt8]

  init(second: Int) {
    self.second = second
    httpDate = Array(Self.httpDate(second).utf8)
    rfc3339 = Array(Self.rfc3339(second).utf8)
  }

  /// Milliseconds since 1970.
  static func milliseconds() -> Int {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Int(now.tv_sec) * 1_000 + Int(now.tv_nsec) / 1_000_000
  }

  private static func fields(_ second: Int) -> tm {
    var time = time_t(second)
    var fields = tm()
    gmtime_r(&time, &fields)
    return fields
  }

  static func httpDate(_ second: Int) -> String {
    let days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
    let months = [
      "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ]
    let f = fields(second)
    return "\(days[Int(f.tm_wday)]), \(two(f.tm_mday)) \(months[Int(f.tm_mon)]) "
      + "\(f.tm_year + 1900) \(two(f.tm_hour)):\(two(f.tm_min)):\(two(f.tm_sec)) GMT"
  }

  static func rfc3339(_ second: Int) -> String {
    let f = fields(second)
    return "\(f.tm_year + 1900)-\(two(f.tm_mon + 1))-\(two(f.tm_mday))"
      + "T\(two(f.tm_hour)):\(two(f.tm_min)):\(two(f.tm_sec))Z"
  }

  private static func two(_ number: Int32) -> String {
    number < 10 ? "0\(number)" : "\(number)"
  }
}
