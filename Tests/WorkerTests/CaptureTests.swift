import Foundation
import Sealing
import Testing

@testable import Worker

@Suite struct CaptureTests {
  private let fence = Fence(high: 1, low: 2, attempt: 3)
  private let key = DataKey(newID: "k", tenant: "t")

  private func order(_ withContent: Bool) -> CaptureOrder {
    CaptureOrder(key: key, tenant: "t", withContent: withContent)
  }

  private func opened(_ sealed: [UInt8]?, _ part: SealedContext.Part) throws -> String? {
    try sealed.map {
      try Sealing.open(
        $0, with: key.bytes,
        for: .call(tenant: "t", generation: fence.description, attempt: 3, part: part)
      ).text
    }
  }

  private func call(
    _ request: String, _ pieces: [String], secrets: [String] = [], withContent: Bool = true
  ) -> SealedCall? {
    var capture = Capture(
      order(withContent), fence: fence, request: Array(request.utf8), secrets: secrets)
    for piece in pieces { Array(piece.utf8).withUnsafeBytes { capture.received($0) } }
    return capture.seal(status: 200)
  }

  @Test("request and response are sealed for their places, with the facts")
  func content() throws {
    let sealed = try #require(call("asked", ["ans", "", "wered"]))
    #expect(sealed.key == "k")
    #expect(try opened(sealed.request, .request) == "asked")
    #expect(try opened(sealed.response, .response) == "answered")
    let facts = try #require(try opened(sealed.facts, .facts))
    #expect(facts.contains("\"http_status\":200,\"request_bytes\":5"))
    #expect(facts.contains("\"response_bytes\":8"))
    #expect(throws: SealingError.self) { try opened(sealed.request, .response) }
  }

  @Test("without content only the facts are kept")
  func metadata() throws {
    let sealed = try #require(call("asked", ["answered"], withContent: false))
    #expect(sealed.request == nil && sealed.response == nil)
    let facts = try #require(try opened(sealed.facts, .facts))
    #expect(facts.contains("\"response_bytes\":8"))
    #expect(!facts.contains("truncated"))
  }

  @Test("the provider's key is taken out wherever it is quoted, also across the border")
  func quotations() throws {
    let secret = "sk-planted-key"
    for (text, kept) in [
      ("\(secret)", "[key]"), ("a\(secret)b\(secret)", "a[key]b[key]"),
      ("ssk-plant\(secret)", "ssk-plant[key]"), ("sk-planted-ke", "sk-planted-ke"),
      ("\(secret)\(secret)", "[key][key]"), ("Bearer tok-5678, tok-5678", "[key], [key]"),
    ] {
      let sealed = try #require(
        call(text, [text], secrets: [secret, "Bearer tok-5678", "tok-5678"]))
      #expect(try opened(sealed.request, .request) == kept)
      #expect(try opened(sealed.response, .response) == kept)
    }
    for behind in 0...secret.utf8.count {
      let head = String(repeating: "x", count: Capture.largestBody - behind)
      let sealed = try #require(
        call(head + secret + "yyyy", [head, secret, "yyyy"], secrets: [secret]))
      for kept in [
        try opened(sealed.request, .request), try opened(sealed.response, .response),
      ] {
        #expect(kept?.contains("sk") != true, "\(behind)")
      }
    }
  }

  @Test("what is longer than the bound is cut, counted and hashed as a whole")
  func bounds() throws {
    let half = String(repeating: "z", count: Capture.largestBody / 2 + 1)
    let sealed = try #require(call(half + half, [half, half, "end"], secrets: ["sk-planted-key"]))
    #expect(try opened(sealed.request, .request)?.utf8.count == Capture.largestBody)
    #expect(try opened(sealed.response, .response)?.utf8.count == Capture.largestBody)
    let facts = try #require(try opened(sealed.facts, .facts))
    #expect(facts.contains("\"response_bytes\":\(Capture.largestBody + 2 + 3)"))
    #expect(facts.contains("\"response_truncated\":true"))
    var capture = Capture(order(true), fence: fence, request: [], secrets: [])
    for _ in 0..<10 { Array(half.utf8).withUnsafeBytes { capture.received($0) } }
    #expect(capture.heldBytes == Capture.largestBody)
  }

  @Test("what is sealed travels as base64 in the report, and counts in its size")
  func report() throws {
    var settlement = Settlement(fence: fence, outcome: .succeeded)
    let before = settlement.size
    settlement.sealed = SealedCall(key: "k", facts: [1, 2, 3], request: [255], response: nil)
    #expect(settlement.size > before)
    var json = JSONBuffer()
    settlement.write(to: &json)
    #expect(json.text.hasSuffix(#""sealed":{"key":"k","facts":"AQID","request":"/w=="}}"#))
    #expect(settlement.withoutContent().sealed == nil)
  }
}

@Suite struct BoundedCacheTests {
  private let start = ContinuousClock.now

  @Test("the oldest go first, and what is used stays")
  func eviction() {
    var cache = BoundedCache<Int, String>(limit: 8, keep: .seconds(60))
    for number in 0..<8 { cache.insert("\(number)", for: number, at: start + .seconds(number)) }
    #expect(cache.value(0, at: start + .seconds(10)) == "0")
    cache.insert("8", for: 8, at: start + .seconds(11))
    #expect(cache.count <= 8)
    #expect(cache.value(0, at: start) == "0")
    #expect(cache.value(1, at: start) == nil)
    #expect(cache.value(8, at: start) == "8")
  }

  @Test("what is not used for its time goes")
  func sweeping() {
    var cache = BoundedCache<Int, String>(limit: 8, keep: .seconds(60))
    cache.insert("a", for: 1, at: start)
    cache.insert("b", for: 2, at: start)
    _ = cache.value(2, at: start + .seconds(30))
    cache.sweep(at: start + .seconds(61))
    #expect(cache.value(1, at: start) == nil)
    #expect(cache.value(2, at: start) == "b")
  }
}
