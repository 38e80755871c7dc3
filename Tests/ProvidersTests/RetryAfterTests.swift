import Providers
import Testing

@Suite struct RetryAfterTests {
  @Test(
    arguments: [
      (["retry-after-ms": "1500", "retry-after": "9"], 1_500),
      (["retry-after-ms": "0.2"], 1),
      (["retry-after-ms": "soon", "retry-after": "9"], 9_000),
      (["retry-after": "1.25"], 1_250),
      (["retry-after": " 3 "], 3_000),
      (["retry-after": "0"], 0),
      (["retry-after": "-5"], 0),
      (["retry-after": "99999999999999999999"], 2_147_483_647),
      (["retry-after": "1e400"], nil),
      (["retry-after": "nan"], nil),
      (["retry-after": "inf"], nil),
      (["retry-after": ""], nil),
      (["retry-after": "later"], nil),
      (
        ["retry-after": "Fri, 21 Nov 2026 10:00:30 GMT", "date": "Fri, 21 Nov 2026 10:00:00 GMT"],
        30_000
      ),
      (
        ["retry-after": "Friday, 21-Nov-26 10:01:00 GMT", "date": "Fri Nov 21 10:00:00 2026"],
        60_000
      ),
      (
        ["retry-after": "Mon, 01 Mar 2027 00:00:00 GMT", "date": "Sun, 28 Feb 2027 23:59:00 GMT"],
        60_000
      ),
      (
        ["retry-after": "Tue, 29 Feb 2028 00:00:00 GMT", "date": "Mon, 28 Feb 2028 23:59:59 GMT"],
        1_000
      ),
      (
        ["retry-after": "Fri, 21 Nov 2025 10:00:30 GMT", "date": "Fri, 21 Nov 2026 10:00:00 GMT"], 0
      ),
      (["retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"], 0),
      (["retry-after": "Sun, 99 Nov 1994 08:49:37 GMT"], nil),
      (["retry-after": "Sun, 06 Nov 1994 08:49:37:11:12 GMT"], nil),
      (["x": "y"], nil),
    ] as [([String: String], Int?)])
  func headersAreReadInTheOrderOfTheSDKs(_ headers: [String: String], _ expected: Int?) throws {
    let reading = try read(call(), status: 429, headers: headers, text: "{}")
    let failure = try #require(reading.failure)
    #expect(failure.retryAfterMilliseconds == expected)
  }
}
