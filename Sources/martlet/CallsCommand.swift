import ArgumentParser
import FoundationEssentials
import Postgres
import Sealing
import Worker

/// `martlet calls`: what was kept of calls.
struct CallsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "calls", abstract: "Opens sealed requests and responses of calls.",
    subcommands: [CallsShowCommand.self])
}

struct CallsShowCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show",
    abstract: "Opens what was kept of a generation's calls.",
    discussion: """
      The session needs the permission call:open in the generation's tenant, or to own the schema; the opening is \
      on the audit log. The master key of MARTLET_MASTER_KEY_FILE (or MARTLET_MASTER_KEY) opens it here, on this \
      machine. Exit codes: 0 opened, 1 an error or what does not open, 2 a wrong call.
      """)

  @Argument(help: ArgumentHelp("Id of the generation.", valueName: "generation"))
  var generation: String

  @Option(help: ArgumentHelp("Only this attempt. Default: all.", valueName: "number"))
  var attempt: Int?

  @OptionGroup var options: SealedOptions

  func validate() throws {
    guard UUID(uuidString: generation) != nil else {
      throw ValidationError("\(generation) is not the id of a generation.")
    }
    if let attempt, !(1...32_767).contains(attempt) {
      throw ValidationError("--attempt: 1 to 32767")
    }
  }

  func run() async throws {
    try await options.withConnection { connection in
      let masters = try options.masters()
      // Two transactions: what is not on the audit log for good is not given out.
      let opening = try await connection.query(
        "select ai.open_call($1, $2)", [generation, attempt.map { String($0) }])
      let rows = try await connection.query(
        """
        select data_key_id, tenant_id, wrapped, master_key_id, generation_id, attempt, mode, facts, request, response,
               to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
          from ai.opened_call($1)
        """, [opening[0, 0]])
      let session = OperatorSession(connection: connection, masters: masters)
      let calls = (0..<rows.count).map { OpenedCall(rows, $0, session) }
      if options.json {
        print("[" + calls.map(\.json).joined(separator: ",") + "]")
      } else {
        for call in calls { try show(call) }
      }
      guard calls.allSatisfy({ $0.trouble == nil }) else { throw ExitCode(1) }
    }
  }

  private func show(_ call: OpenedCall) throws {
    let terminal = TerminalText()
    try terminal.write("attempt \(call.attempt), \(call.createdAt), \(call.mode)\n")
    if let trouble = call.trouble { return writeError("martlet: \(trouble)") }
    try terminal.write("\(call.facts ?? "")\n")
    if let request = call.request { try terminal.write("\nrequest\n\(request)\n") }
    if let response = call.response { try terminal.write("\nresponse\n\(response)\n") }
  }
}

/// One attempt, opened as far as it can be.
struct OpenedCall {
  let attempt: Int
  let createdAt: String
  let mode: String
  private(set) var facts: String?
  private(set) var request: String?
  private(set) var response: String?
  /// Why it does not open.
  private(set) var trouble: String?

  /// From a row of `ai.opened_call()`.
  init(_ rows: QueryResult, _ row: Int, _ session: OperatorSession) {
    attempt = rows.int(row, 5) ?? 0
    mode = rows[row, 6] ?? ""
    createdAt = rows[row, 10] ?? ""
    do {
      guard !rows.withBytes(row, 2, { $0 == nil }) else {
        throw SealedTrouble("the tenant's key was destroyed: nobody can open this call any more")
      }
      let key = try session.dataKey(rows, row)
      func open(_ column: Int, _ part: SealedContext.Part) throws -> String? {
        guard let sealed = rows.bytea(row, column) else { return nil }
        return try Sealing.open(
          sealed, with: key.bytes,
          for: .call(
            tenant: rows[row, 1] ?? "", generation: rows[row, 4] ?? "", attempt: attempt, part: part
          )
        ).text
      }
      facts = try open(7, .facts)
      request = try open(8, .request)
      response = try open(9, .response)
    } catch let error as SealedTrouble {
      trouble = error.message
    } catch {
      trouble = "\(error)"
    }
  }

  private struct Texts: Encodable {
    let attempt: Int
    let createdAt: String
    let error: String?
    let mode: String
    let request: String?
    let response: String?

    enum CodingKeys: String, CodingKey {
      case attempt, error, mode, request, response
      case createdAt = "created_at"
    }
  }

  /// One object; `facts` is the object that was sealed.
  var json: String {
    let texts = Texts(
      attempt: attempt, createdAt: createdAt, error: trouble, mode: mode, request: request,
      response: response)
    let line = (try? jsonLine(texts)) ?? "{}"
    guard let facts else { return line }
    return line.dropLast() + ",\"facts\":\(facts)}"
  }
}
