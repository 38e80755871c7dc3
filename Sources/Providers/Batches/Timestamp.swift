/// Times of RFC 3339, such as `2026-11-21T15:30:00Z` or `2026-11-21T16:30:00.25+01:00`.
enum Timestamp {
  /// Whole seconds since 1970; nil where the text is not a time.
  static func seconds(_ text: String) -> Int? {
    let bytes = Array(text.utf8)
    guard bytes.count >= 20, bytes[4] == 0x2D, bytes[7] == 0x2D,
      [0x54, 0x74, 0x20].contains(bytes[10]),
      bytes[13] == 0x3A, bytes[16] == 0x3A,
      let year = number(bytes[0..<4]), let month = number(bytes[5..<7]),
      let day = number(bytes[8..<10]), let hour = number(bytes[11..<13]),
      let minute = number(bytes[14..<16]), let second = number(bytes[17..<19]),
      (1...12).contains(month), (1...31).contains(day), hour < 24, minute < 60, second <= 60
    else { return nil }
    var at = 19
    if bytes[at] == 0x2E {
      at += 1
      while at < bytes.count, (0x30...0x39).contains(bytes[at]) { at += 1 }
    }
    guard at < bytes.count else { return nil }
    var offset = 0
    if bytes[at] == 0x2B || bytes[at] == 0x2D {
      guard bytes.count == at + 6, bytes[at + 3] == 0x3A,
        let hours = number(bytes[(at + 1)..<(at + 3)]),
        let minutes = number(bytes[(at + 4)..<(at + 6)]), hours < 24, minutes < 60
      else { return nil }
      offset = (hours * 60 + minutes) * (bytes[at] == 0x2B ? 60 : -60)
    } else if bytes.count != at + 1 || bytes[at] | 0x20 != UInt8(ascii: "z") {
      return nil
    }
    return days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset
  }

  private static func number(_ digits: ArraySlice<UInt8>) -> Int? {
    var value = 0
    for digit in digits {
      guard (0x30...0x39).contains(digit) else { return nil }
      value = value * 10 + Int(digit - 0x30)
    }
    return value
  }

  /// Days since 1970 in the Gregorian calendar. Years begin in March here, so that the leap day is the last.
  private static func days(_ year: Int, _ month: Int, _ day: Int) -> Int {
    let year = month <= 2 ? year - 1 : year
    let era = (year >= 0 ? year : year - 399) / 400
    let yearOfEra = year - era * 400
    let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
    let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
    return era * 146_097 + dayOfEra - 719_468
  }
}
