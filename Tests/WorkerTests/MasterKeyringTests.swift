import Foundation
import Sealing
import Testing

@testable import Worker

@Suite struct MasterKeyringTests {
  private let path = NSTemporaryDirectory() + "master-keys-\(UUID().uuidString)"

  private func write(_ text: String, mode: Int = 0o600) throws {
    try text.write(toFile: path, atomically: true, encoding: .utf8)
    try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
  }

  private func keyring() throws -> MasterKeyring {
    try MasterKeyring { $0 == "MARTLET_MASTER_KEY_FILE" ? path : nil }
  }

  private func trouble(_ environment: [String: String]) -> String? {
    do {
      _ = try MasterKeyring { environment[$0] }
      return nil
    } catch {
      return error.description
    }
  }

  @Test("a key that is missed is looked for in the file again")
  func again() throws {
    defer { try? FileManager.default.removeItem(atPath: path) }
    let lines = ["one", "two"].map { MasterKeys.newLine(id: $0) }
    try write(lines[0])
    let keyring = try keyring()
    #expect(keyring.ids == ["one"])
    try write(lines[1] + "\n" + lines[0])
    #expect(keyring.key("one") != nil)
    #expect(keyring.ids == ["one"], "nothing was missed yet")
    #expect(keyring.key("two") != nil)
    #expect(keyring.current()?.id == "two")
    try write("broken")
    #expect(keyring.key("three") == nil)
    #expect(keyring.ids == ["two", "one"], "a broken file changes nothing")
    try write(lines[0])
    #expect(
      keyring.current()?.id == "one", "what is sealed now is sealed with what the file says now")
  }

  @Test("a file that others may change is refused")
  func modes() throws {
    defer { try? FileManager.default.removeItem(atPath: path) }
    for (mode, isGood) in [
      (0o600, true), (0o400, true), (0o644, true), (0o440, true), (0o620, false), (0o602, false),
    ] {
      try write(MasterKeys.newLine(id: "one"), mode: mode)
      #expect((trouble(["MARTLET_MASTER_KEY_FILE": path]) == nil) == isGood, "\(mode)")
    }
  }

  @Test("no file, a folder, both variables, a wrong text: refused without quoting")
  func refusals() throws {
    #expect(trouble(["MARTLET_MASTER_KEY_FILE": path])?.contains("cannot be read") == true)
    #expect(trouble(["MARTLET_MASTER_KEY_FILE": "/tmp"])?.contains("not a file") == true)
    let line = MasterKeys.newLine(id: "one")
    #expect(
      trouble(["MARTLET_MASTER_KEY_FILE": path, "MARTLET_MASTER_KEY": line])?.contains("exclude")
        == true)
    let wrong = trouble(["MARTLET_MASTER_KEY": "one:AAAA"])
    #expect(wrong?.contains("3 bytes") == true && wrong?.contains("AAAA") == false)
  }

  @Test("without variables there is none, and the variable's keys are as good as the file's")
  func variable() throws {
    let none = try MasterKeyring { _ in nil }
    #expect(none.isEmpty && none.current() == nil && none.key("one") == nil)
    let lines = [MasterKeys.newLine(id: "one"), MasterKeys.newLine(id: "two")]
    let both = try MasterKeyring {
      $0 == "MARTLET_MASTER_KEY" ? lines.joined(separator: ",") : nil
    }
    #expect(both.ids == ["one", "two"] && both.current()?.id == "one")
  }
}
