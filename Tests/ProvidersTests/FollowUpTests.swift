import Providers
import Testing

/// Where a further request of a call goes, and what goes with it.
@Suite struct FollowUpTests {
  private static let secret = "sk-secret-1234"

  private func first(_ base: String) -> ProviderRequest {
    ProviderRequest(
      url: base + "/jobs",
      headers: [
        ("content-type", "application/json"), ("accept", "text/event-stream"),
        ("Prefer", "wait"), ("Authorization", "Bearer \(Self.secret)"),
        ("x-own", "row \(Self.secret)"),
      ], body: [1])
  }

  private func sent(
    _ target: FollowUp.Target, base: String = "https://api.example.com/v1",
    headers: [(name: String, value: String)] = []
  ) -> (request: ProviderRequest, isElsewhere: Bool)? {
    var next = FollowUp(target)
    next.headers = headers
    return next.request(after: first(base), base: base)
  }

  private func carriesSecret(_ request: ProviderRequest) -> Bool {
    request.url.contains(Self.secret) || request.headers.contains { $0.value.contains(Self.secret) }
  }

  @Test(
    "to the provider's own server go key and headers of the row, but not what was said of the first body"
  )
  func home() throws {
    for target in [
      FollowUp.Target.path("/jobs/7"), .url("https://api.example.com/jobs/7?x=1"),
      .url("HTTPS://API.example.com:443/other"),
    ] {
      let (request, isElsewhere) = try #require(
        sent(target, headers: [("Accept", "application/json")]))
      #expect(!isElsewhere && request.method == "GET" && request.body.isEmpty)
      #expect(
        request.headers.map(\.name) == ["Accept", "Authorization", "x-own"], "\(target)")
    }
    #expect(sent(.path("/jobs/7"))?.request.url == "https://api.example.com/v1/jobs/7")
    #expect(
      sent(.path("/jobs/7"), base: "http://10.0.0.1:8080/")?.request.url
        == "http://10.0.0.1:8080/jobs/7")
  }

  @Test(
    "to any other server goes nothing of it",
    arguments: [
      "https://evil.example/x", "https://api.example.com.evil.example/x",
      "https://api.example.com:444/x",
      "https://api.example.com./x", "https://xapi.example.com/x", "https://127.0.0.1/x",
      "https://[::1]:443/x", "https://169.254.169.254/latest/",
    ])
  func elsewhere(url: String) throws {
    let (request, isElsewhere) = try #require(
      sent(.url(url), headers: [("accept", "text/event-stream")]))
    #expect(isElsewhere && request.url == url)
    #expect(request.headers.map(\.name) == ["accept"])
    #expect(!carriesSecret(request))
  }

  @Test(
    "what parsers may read in two ways is no address",
    arguments: [
      "", "api.example.com/x", "//api.example.com/x", "ftp://api.example.com/",
      "file:///etc/passwd",
      "https:/api.example.com", "https://", "https:///x", "https://api.example.com\\@evil.example/",
      "https://evil.example\\.api.example.com/", "https://api.example.com@evil.example/",
      "https://user:pw@api.example.com/", "https://api.example.com:/x",
      "https://api.example.com:0/",
      "https://api.example.com:65536/", "https://api.example.com:4 43/",
      "https://api.example.com:+443/",
      "https://api.example.com:443:80/", "https://api.exämple.com/",
      "https://api.example.com/\u{0}",
      "https://api.example.com/a b", "https://api.example.com/\r\nx-evil: 1", "https://[::1/x",
      "https://[::1]x/", "https://[::1%25lo]/", "https://a%2eb/", "https://api.example.com/\u{7f}",
      "javascript:alert(1)", "https://" + String(repeating: "a", count: 9_000) + "/",
    ])
  func addresses(url: String) {
    #expect(Origin(url) == nil)
    #expect(sent(.url(url)) == nil)
  }

  @Test("a path is a path, whatever is in it")
  func paths() {
    for path in ["", "jobs", "@evil.example/", ".evil.example/", "\\\\evil", "/a\r\nb", "/a b"] {
      #expect(sent(.path(path)) == nil, "\(path)")
    }
    for path in ["/@evil.example/", "//evil.example/", "/..%2f"] {
      #expect(sent(.path(path))?.request.url.hasPrefix("https://api.example.com/v1/") == true)
    }
  }

  @Test("no other server without TLS where the provider has it")
  func downgrades() {
    #expect(sent(.url("http://api.example.com/x")) == nil)
    #expect(sent(.url("http://other.example/x")) == nil)
    let plain = sent(.url("http://other.example/x"), base: "http://api.example.com")
    #expect(plain?.isElsewhere == true)
    #expect(
      sent(.url("https://api.example.com/x"), base: "http://api.example.com")?.isElsewhere == true)
    // Of a base that is no address nothing is at home.
    #expect(sent(.url("http://u:p@h/x"), base: "http://u:p@h") == nil)
    #expect(sent(.url("http://other.example/x"), base: "http://u:p@h") == nil)
  }

  @Test("scheme, host and port make the origin")
  func origins() throws {
    #expect(Origin("http://a") == Origin("HTTP://A:80/x?y#z"))
    #expect(Origin("https://a:443?x") == Origin("https://a#f"))
    #expect(Origin("http://a") != Origin("https://a"))
    #expect(Origin("http://[::1]:80/") == Origin("http://[::1]"))
    #expect(try #require(Origin("https://[fe80::1]:8443/x")).port == 8443)
  }

  @Test("pauses grow to their longest, and never fall below what the provider asks")
  func pauses() throws {
    var pauses = try given(#"{"poll_ms":100,"poll_max_ms":300}"#)
    let growing = (0..<5).map { _ in pauses.next() }
    #expect(growing == [100, 150, 225, 300, 300])
    let hinted = [pauses.next(hint: 2_000), pauses.next(hint: 5)]
    #expect(hinted == [2_000, 300])
    let troubles = (0..<9).map { _ in pauses.afterTrouble() }
    #expect(troubles == [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, nil])
    _ = pauses.next()
    let asked = pauses.afterTrouble(hint: 70_000)
    #expect(asked == 70_000)
  }

  @Test("odd options give no busy loop")
  func oddPauses() throws {
    var usual = try given("{}")
    let first = usual.next()
    #expect(first == 500)
    for text in [#"{"poll_ms":-5}"#, #"{"poll_ms":0,"poll_max_ms":-1}"#, #"{"poll_ms":1e300}"#] {
      var odd = try given(text)
      let all = (0..<100).map { _ in odd.next() }
      #expect(all.allSatisfy { (10...3_600_000).contains($0) })
    }
  }

  private func given(_ options: String) throws -> PollPauses {
    PollPauses(options: try #require(JSON(Array(options.utf8))), normal: 500)
  }
}
