import ArgumentParser
import FoundationEssentials
import Migrate
import Postgres

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#else
  import Darwin
#endif

/// `martlet catalog`: providers, models and prices that ship, and the public price map.
struct CatalogCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "catalog",
    abstract: "Shows and loads providers, models and prices.",
    discussion: """
      Loading adds what is missing and puts a new price version in force where a price is another; what was changed by \
      hand stays. It takes the role that owns the schema ai. Exit codes: 0 done, 1 an error, 2 a wrong call.
      """,
    subcommands: [
      CatalogListCommand.self, CatalogShowCommand.self, CatalogLoadCommand.self,
      CatalogImportCommand.self,
    ],
    defaultSubcommand: CatalogListCommand.self)
}

/// The catalog as far as it is listed.
struct Catalog: Decodable {
  struct Provider: Decodable {
    struct Model: Decodable {
      let name: String
      let kind: String?
    }
    let name: String
    let dialect: String
    let secret: String?
    let models: [Model]?
  }
  let date: String
  let providers: [Provider]
}

struct CatalogListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Lists the providers of the catalog that ships.")

  func run() async throws {
    let catalog = try JSONDecoder().decode(Catalog.self, from: Data(Schema.catalog().utf8))
    let terminal = TerminalText()
    try terminal.write("catalog of \(catalog.date)\n")
    for provider in catalog.providers {
      let models = (provider.models ?? []).map(\.name).joined(separator: ", ")
      try terminal.write(
        "\(provider.name) (\(provider.dialect), \(provider.secret ?? "no secret"))"
          + (models.isEmpty ? "\n" : ": \(models)\n"))
    }
  }
}

struct CatalogShowCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show", abstract: "Prints the catalog that ships, as JSON.")

  func run() async throws {
    print(Schema.catalog(), terminator: "")
  }
}

/// What commands take that write into the catalogue's tables.
struct CatalogOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Flag(help: "Say what would be done, and do nothing.")
  var dryRun = false

  @Flag(help: "Print JSON, one object a line.")
  var json = false

  /// Runs a query of two columns, a line for people and an object, and prints either.
  func tell(_ query: String, _ parameters: [String?]) async throws {
    do {
      let connection = try await Connection.open(
        databaseURL ?? ProcessInfo.processInfo.environment["DATABASE_URL"] ?? "",
        applicationName: "martlet catalog")
      let rows = try await connection.query(query, parameters)
      await connection.close()
      let terminal = TerminalText()
      for row in 0..<rows.count {
        guard let line = rows[row, json ? 1 : 0], !line.isEmpty else { continue }
        if json { print(line) } else { try terminal.write(line + "\n") }
      }
    } catch let error as PostgresError {
      if error.sqlState == "42501" {
        writeError("martlet: the catalog is loaded by the role that owns the schema ai")
      } else {
        report(error)
      }
      throw ExitCode(1)
    }
  }
}

struct CatalogLoadCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "load",
    abstract: "Loads the catalog that ships, or another of its form, into the database.")

  @Option(
    help: ArgumentHelp("Only this provider; may be given several times.", valueName: "name"))
  var provider: [String] = []

  @Option(
    help: ArgumentHelp("Another catalog: a file, or - for standard input.", valueName: "path"))
  var file: String?

  @OptionGroup var options: CatalogOptions

  func run() async throws {
    let text = try file.map { try CatalogFile.text(of: $0) } ?? Schema.catalog()
    try await options.tell(
      """
      select rpad(c.name, 60) || ' ' || c.what || coalesce(', ' || c.price, ''), to_jsonb(c)::text
        from ai.load_catalog($1::jsonb, (select array_agg(p) from jsonb_array_elements_text($2::jsonb) p),
                             dry_run => $3::boolean) c
      """,
      [text, provider.isEmpty ? nil : try jsonLine(provider), String(options.dryRun)])
  }
}

struct CatalogImportCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "import",
    abstract: "Takes prices, sizes and capabilities from LiteLLM's public price map.",
    discussion: """
      The map is the file model_prices_and_context_window.json of LiteLLM; download it yourself. Models that it says \
      nothing new about are not listed; --json lists all, with old and new rates. docs/prices.md says what is taken.
      """)

  @Argument(help: ArgumentHelp("The map: a file, or - for standard input.", valueName: "path"))
  var file: String

  @Option(
    help: ArgumentHelp(
      "Add every model that the map has of this provider; may be given several times.",
      valueName: "provider"))
  var add: [String] = []

  @Option(
    help: ArgumentHelp(
      "Only models whose name is like this pattern of SQL. Default: all.", valueName: "pattern"))
  var only = "%"

  @OptionGroup var options: CatalogOptions

  func run() async throws {
    try await options.tell(
      """
      select case when p.what <> 'kept' or p.price <> 'same' then
               rpad(p.model, 60) || ' ' || p.what || coalesce(', ' || p.price, '')
                 || coalesce('; not understood: ' || array_to_string(p.not_understood, ', '), '') end, to_jsonb(p)::text
        from ai.import_prices($1::jsonb, array(select jsonb_array_elements_text($2::jsonb)), $3, dry_run => $4::boolean) p
      """,
      [try CatalogFile.text(of: file), try jsonLine(add), only, String(options.dryRun)])
  }
}

/// A file of the operator's.
enum CatalogFile {
  /// The text of a file, or of standard input for `-`.
  static func text(of path: String) throws -> String {
    if path == "-" { return String(decoding: readAll(), as: UTF8.self) }
    do {
      let data = try Data(contentsOf: URL(filePath: path))
      return String(decoding: data, as: UTF8.self)
    } catch {
      writeError("martlet: cannot read \(path)")
      throw ExitCode(1)
    }
  }
  private static func readAll() -> [UInt8] {
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    while true {
      let count = read(STDIN_FILENO, &chunk, chunk.count)
      guard count > 0 else { return bytes }
      bytes += chunk[..<count]
    }
  }
}
