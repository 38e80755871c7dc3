import Postgres
import Testing

@testable import Migrate

struct SHA256Tests {
  /// From FIPS 180-4's examples.
  @Test(arguments: [
    ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
      "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    (
      String(repeating: "a", count: 1_000_000),
      "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    ),
  ])
  func `the published examples come out`(_ text: String, _ digest: String) {
    #expect(SHA256.hex(text) == digest)
  }

  @Test(.ownDatabase) func `every length around a block is as PostgreSQL has it`() async throws {
    let connection = try await TestDatabase.required().connect()
    for length in 0..<200 {
      let text = String("é0123456789".unicodeScalars.cycled(length))
      let result = try await connection.query(
        "select encode(sha256(convert_to($1, 'UTF8')), 'hex')", [text])
      try #require(result[0, 0] == SHA256.hex(text))
    }
  }
}

extension String.UnicodeScalarView {
  fileprivate func cycled(_ count: Int) -> String.UnicodeScalarView {
    let all = Array(self)
    var result = String.UnicodeScalarView()
    for index in 0..<count { result.append(all[index % all.count]) }
    return result
  }
}
