#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The three date forms of RFC 9110 §5.6.7.
enum HTTPDate {
  /// Seconds since 1970 by this machine's clock.
  static func now() -> Int { Int(time(nil)) }

  /// Seconds since 1970, or nil if `text` is no HTTP date.
  static func seconds(_ text: String) -> Int? {
    let words = text.split { " ,-:".contains($0) }
    guard (7...8).contains(words.count) else { return nil }
    // asctime: Sun Nov  6 08:49:37 1994. Else: Sun, 06 Nov 1994 08:49:37 GMT, Sunday, 06-Nov-94 …
    let isAsctime = month(words[1]) != nil
    guard
      let month = month(words[isAsctime ? 1 : 2]),
      let day = number(words[isAsctime ? 2 : 1]), (1...31).contains(day),
      var year = number(words[isAsctime ? 6 : 3]), year <= 9999,
      let hour = number(words[isAsctime ? 3 : 4]), hour < 24,
      let minute = number(words[isAsctime ? 4 : 5]), minute < 60,
      let second = number(words[isAsctime ? 5 : 6]), second <= 60
    else { return nil }
    if year < 70 { year += 2000 } else if year < 100 { year += 1900 }
    return ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second
  }

  private static func number(_ word: Substring) -> Int? {
    guard !word.isEmpty, word.utf8.count <= 4, word.utf8.allSatisfy({ (0x30...0x39).contains($0) })
    else { return nil }
    return Int(word)
  }

  private static func month(_ word: Substring) -> Int? {
    let names = [
      "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ]
    return names.firstIndex(of: word.lowercased()).map { $0 + 1 }
  }

  /// Days from 1970-01-01 in the proleptic Gregorian calendar, by counting from 1 March.
  private static func days(_ year: Int, _ month: Int, _ day: Int) -> Int {
    let y = month > 2 ? year : year - 1
    let monthFromMarch = (month + 9) % 12
    let dayOfYear = (153 * monthFromMarch + 2) / 5 + day - 1
    return 365 * y + y / 4 - y / 100 + y / 400 + dayOfYear - 719_468
  }
}
