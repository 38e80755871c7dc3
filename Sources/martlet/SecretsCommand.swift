import ArgumentParser
import FoundationEssentials
import Postgres
import Sealing
import Worker

/// `martlet secrets`: provider keys that lie sealed in the database.
struct SecretsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "secrets",
    abstract: "Keeps provider keys sealed in the database, and rotates what seals them.",
    discussion: """
      Connects as the owner of the schema. Values are sealed here, with the master key of \
      MARTLET_MASTER_KEY_FILE (or MARTLET_MASTER_KEY), which the database never sees. Exit codes: 0 done, \
      1 an error, 2 a wrong call.
      """,
    subcommands: [
      SecretsSetCommand.self, SecretsListCommand.self, SecretsRemoveCommand.self,
      SecretsRotateCommand.self, SecretsNewKeyCommand.self,
    ])
}

/// Which secret.
struct SecretName: ParsableArguments {
  @Argument(help: "Such as OPENAI_API_KEY: the name in ai.providers.secret.")
  var name: String

  @Option(
    help: ArgumentHelp(
      "Whose: a tenant's name or id. Default: the operator's, for all tenants.", valueName: "tenant"
    ))
  var tenant: String?

  func validate() throws {
    guard Secrets.isName(name) else {
      throw ValidationError(
        "A secret is named like OPENAI_API_KEY: capitals, digits and underscores, ending in _API_KEY, _KEY or _TOKEN."
      )
    }
  }
}

struct SecretsSetCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "set",
    abstract: "Sets a secret; its value comes from standard input or a file.",
    discussion: """
      One line break at the end of the value is not part of it. Workers use it from their next claim on.
      """)

  @OptionGroup var secret: SecretName
  @OptionGroup var options: SealedOptions

  @Option(help: ArgumentHelp("Read the value from this file.", valueName: "path"))
  var file: String?

  private struct Done: Encodable {
    let name: String
    let version: Int
  }

  func run() async throws {
    try await options.withConnection { connection in
      let masters = try options.masters()
      try await OperatorSession.checkOwner(connection)
      var tenant: String?
      if let name = secret.tenant { tenant = try await OperatorSession.tenant(name, connection) }
      let value = try SecretInput.read(file: file, prompt: "Value of \(secret.name): ")
      let session = OperatorSession(connection: connection, masters: masters)
      let version = try await set(value, tenant, session)
      print(
        options.json
          ? try jsonLine(Done(name: secret.name, version: Int(version) ?? 0))
          : "\(secret.name) is set, version \(version)")
    }
  }

  /// Again where the data key was renewed in between.
  private func set(
    _ value: SecretBytes, _ tenant: String?, _ session: OperatorSession
  ) async throws -> String {
    try await OperatorSession.again {
      let key = try await session.currentKey(of: tenant)
      let sealed = try Sealing.seal(
        value, with: key.bytes, for: .secret(tenant: tenant, name: secret.name))
      let rows = try await session.connection.query(
        "select ai.set_secret($1, $2, $3, $4)",
        [tenant, secret.name, hexadecimal(sealed), key.id])
      return rows[0, 0] ?? ""
    }
  }
}

struct SecretsListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Lists names and versions; never values.")

  @OptionGroup var options: SealedOptions

  private struct Item: Encodable {
    let name: String
    let tenant: String?
    let tenantID: String?
    let version: Int
    let dataKey: String
    let masterKey: String?
    let createdAt: String

    enum CodingKeys: String, CodingKey {
      case name, tenant, version
      case tenantID = "tenant_id"
      case dataKey = "data_key_id"
      case masterKey = "master_key_id"
      case createdAt = "created_at"
    }
  }

  func run() async throws {
    try await options.withConnection { connection in
      let rows = try await connection.query(
        """
        select name, tenant, tenant_id, version, data_key_id, master_key_id,
               to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
          from ai.list_secrets()
        """)
      let items = (0..<rows.count).map { row in
        Item(
          name: rows[row, 0] ?? "", tenant: rows[row, 1], tenantID: rows[row, 2],
          version: rows.int(row, 3) ?? 0, dataKey: rows[row, 4] ?? "", masterKey: rows[row, 5],
          createdAt: rows[row, 6] ?? "")
      }
      if options.json { return print(try jsonLine(items)) }
      var lines = [["name", "tenant", "version", "master key", "set at"]]
      lines += items.map {
        [
          $0.name, $0.tenant ?? "(all)", String($0.version), $0.masterKey ?? "(destroyed)",
          $0.createdAt,
        ]
      }
      let widths = (0..<5).map { column in lines.map { $0[column].count }.max() ?? 0 }
      let terminal = TerminalText()
      for line in lines {
        let cells = zip(line, widths).map { text, width in
          text + String(repeating: " ", count: width - text.count)
        }
        var text = cells.joined(separator: "  ")
        while text.hasSuffix(" ") { text.removeLast() }
        try terminal.write(text + "\n")
      }
    }
  }
}

struct SecretsRemoveCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "remove", abstract: "Removes a secret.",
    discussion: """
      Workers go on with what comes after it: the operator's of that name, their environment, or none.
      """)

  @OptionGroup var secret: SecretName
  @OptionGroup var options: SealedOptions

  func run() async throws {
    try await options.withConnection { connection in
      var tenant: String?
      if let name = secret.tenant { tenant = try await OperatorSession.tenant(name, connection) }
      _ = try await connection.query("select ai.remove_secret($1, $2)", [secret.name, tenant])
      print(options.json ? try jsonLine(["removed": secret.name]) : "\(secret.name) is removed")
    }
  }
}

struct SecretsNewKeyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "new-key",
    abstract: "Prints a new master key, as a line for MARTLET_MASTER_KEY_FILE.",
    discussion: """
      Put the line first into the file, and keep the file out of backups of the database: who has both can \
      read what is sealed. Without the file nobody can.
      """)

  @Option(help: ArgumentHelp("Its name. Default: the date and some chance.", valueName: "id"))
  var id: String?

  func validate() throws {
    if let id, !MasterKeys.isID(id.utf8) {
      throw ValidationError("--id: 1 to 64 letters, digits, dots, hyphens and underscores")
    }
  }

  func run() throws {
    let date = Date.now.formatted(.iso8601.year().month().day())
    let chance = String(UInt16.random(in: .min ... .max), radix: 16)
    print(MasterKeys.newLine(id: id ?? "\(date)-\(chance)"))
  }
}
