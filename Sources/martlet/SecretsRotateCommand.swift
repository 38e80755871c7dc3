import ArgumentParser
import FoundationEssentials
import Postgres
import Sealing
import Worker

struct SecretsRotateCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rotate",
    abstract: "Puts every data key under the current master key: the first of the file.",
    discussion: """
      Workers go on meanwhile; they read the file again when they meet a master key that they do not know. \
      When it says that none is left under another one, the old key can go out of the file.
      """)

  @OptionGroup var options: SealedOptions

  @Flag(
    help: "Make new data keys, too, and seal all secrets anew. Calls stay sealed with the old ones."
  )
  var dataKeys = false

  private struct Done: Encodable {
    var masterKey: String
    var rewrapped = 0
    var renewed = 0
    /// Data keys under a master key that is not at hand.
    var left = 0

    enum CodingKeys: String, CodingKey {
      case rewrapped, renewed, left
      case masterKey = "master_key_id"
    }
  }

  func run() async throws {
    try await options.withConnection { connection in
      let masters = try options.masters()
      try await OperatorSession.checkOwner(connection)
      guard let master = masters.current() else { throw SealedTrouble("there is no master key") }
      let session = OperatorSession(connection: connection, masters: masters)
      var done = Done(masterKey: master.id)
      try await rewrap(with: master, session, &done)
      if dataKeys { done.renewed = try await renew(session) }
      if options.json {
        print(try jsonLine(done))
      } else {
        print("\(done.rewrapped) data keys are now under the master key \(done.masterKey)")
        if dataKeys { print("\(done.renewed) data keys were replaced by new ones") }
      }
      if done.left > 0 {
        throw SealedTrouble(
          "\(done.left) data keys are under master keys that are not at hand",
          hint:
            "select master_key_id, count(*) from ai.data_keys where destroyed_at is null group by 1; add them to the file, behind the current one."
        )
      }
    }
  }

  private struct Rewrapped: Encodable {
    let id: String
    let was: String?
    let wrapped: String
    let master: String

    enum CodingKeys: String, CodingKey {
      case id, was, wrapped
      case master = "master_key_id"
    }
  }

  private func rewrap(
    with master: MasterKeys.Key, _ session: OperatorSession, _ done: inout Done
  ) async throws {
    var last = "00000000-0000-0000-0000-000000000000"
    while true {
      let rows = try await session.connection.query(
        """
        select id, tenant_id, wrapped, master_key_id from ai.data_keys
         where destroyed_at is null and master_key_id <> $1 and id > $2 order by id limit 200
        """, [master.id, last])
      guard rows.count > 0 else { return }
      var batch: [Rewrapped] = []
      for row in 0..<rows.count {
        last = rows[row, 0] ?? last
        guard let was = rows[row, 3], session.masters.key(was) != nil else {
          done.left += 1
          continue
        }
        let key = try session.dataKey(rows, row)
        batch.append(
          Rewrapped(
            id: key.id, was: was, wrapped: base64(try key.wrapped(with: master)), master: master.id)
        )
      }
      let count = try await session.connection.query(
        "select ai.rewrap_data_keys($1)", [try jsonLine(batch)])
      done.rewrapped += count.int(0, 0) ?? 0
    }
  }

  private struct Resealed: Encodable {
    let id: Int
    let sealed: String
  }

  private func renew(_ session: OperatorSession) async throws -> Int {
    let keys = try await session.connection.query(
      "select id from ai.data_keys where is_current order by id")
    var count = 0
    for row in 0..<keys.count {
      guard let id = keys[row, 0] else { continue }
      if try await OperatorSession.again({ try await renew(id, session) }) { count += 1 }
    }
    return count
  }

  /// False: it is not the current one any more.
  private func renew(_ id: String, _ session: OperatorSession) async throws -> Bool {
    let rows = try await session.connection.query(
      "select id, tenant_id, wrapped, master_key_id from ai.data_keys where id = $1 and is_current",
      [id])
    guard rows.count == 1 else { return false }
    let old = try session.dataKey(rows, 0)
    let (new, wrapped, master) = try session.newKey(of: old.tenant)
    let secrets = try await session.connection.query(
      """
      select id, name, sealed from ai.secrets where data_key_id = $1 and replaced_at is null
      """, [old.id])
    var resealed: [Resealed] = []
    for row in 0..<secrets.count {
      let context = SealedContext.secret(tenant: old.tenant, name: secrets[row, 1] ?? "")
      let value = try Sealing.open(
        secrets.bytea(row, 2) ?? [], with: old.bytes, for: context)
      resealed.append(
        Resealed(
          id: secrets.int(row, 0) ?? 0,
          sealed: base64(try Sealing.seal(value, with: new.bytes, for: context))))
    }
    try await session.connection.query(
      "select ai.renew_data_key($1, $2, $3, $4, $5)",
      [old.id, new.id, hexadecimal(wrapped), master, try jsonLine(resealed)])
    return true
  }

  private func base64(_ bytes: [UInt8]) -> String {
    String(decoding: Base64.encode(bytes), as: UTF8.self)
  }
}
