import Foundation
import Providers
import Testing

@testable import Worker

@Suite struct SecretsTests {
  private func failure(_ secrets: Secrets, _ name: String) -> Failure? {
    do {
      _ = try secrets.value(of: name)
      return nil
    } catch {
      return error
    }
  }

  @Test("a file wins over the environment, and one trailing newline is not part of it")
  func files() throws {
    let directory = NSTemporaryDirectory() + "secrets-\(UUID().uuidString)"
    try FileManager.default.createDirectory(
      atPath: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let secrets = Secrets(directory: directory) { $0 == "A_KEY" || $0 == "B_TOKEN" ? "env" : nil }
    for (text, value) in [("k1\n", "k1"), ("k2\r\n", "k2"), ("k3", "k3"), ("k4\n\n", "k4\n")] {
      try text.write(toFile: directory + "/A_KEY", atomically: true, encoding: .utf8)
      #expect(try secrets.value(of: "A_KEY") == value)
    }
    #expect(try secrets.value(of: "B_TOKEN") == "env")
    try "".write(toFile: directory + "/B_TOKEN", atomically: true, encoding: .utf8)
    #expect(try secrets.value(of: "B_TOKEN") == "env", "an empty file is none")
  }

  @Test("a missing secret is unsendable, and the message names the variable")
  func missing() {
    let secrets = Secrets(directory: nil) { _ in nil }
    let failure = failure(secrets, "OPENAI_API_KEY")
    #expect(failure?.signal == .unsendable)
    #expect(failure?.message.contains("OPENAI_API_KEY") == true)
    #expect(self.failure(Secrets(directory: nil) { _ in "" }, "OPENAI_API_KEY") != nil)
  }

  @Test(
    "names that are not of a provider's key are never looked up",
    arguments: [
      "PATH", "DATABASE_URL", "PGPASSWORD", "openai_api_key", "../A_KEY", "A_KEY\n", "_KEY",
      "_API_KEY", "1_KEY", "A-B_KEY", "", "A_KEYS", "Ä_KEY", "A/B_KEY",
    ])
  func names(name: String) {
    let secrets = Secrets(directory: "/") { _ in "must not be read" }
    #expect(failure(secrets, name)?.signal == .unsendable)
  }

  @Test(
    "names of providers' keys are looked up",
    arguments: ["A_KEY", "OPENAI_API_KEY", "HF_TOKEN", "A1__KEY"])
  func goodNames(name: String) throws {
    #expect(try Secrets(directory: nil) { _ in "value" }.value(of: name) == "value")
  }
}
