internal import ArgumentParser
internal import Worker

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#else
  import Darwin
#endif

/// The command. Exit codes: 0 done, 1 an error, 2 a wrong call of the command, 3 `migrate --status` found
/// pending work or `batch show --watch` a batch that did not wholly succeed, 130 `ask` was cancelled by Ctrl-C.
@main
struct Martlet: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "martlet",
    abstract: "Turns a PostgreSQL database into an AI backend.",
    subcommands: [
      MigrateCommand.self,
      WorkCommand.self,
      AskCommand.self,
      BatchCommand.self,
      SecretsCommand.self,
      CallsCommand.self,
      CatalogCommand.self,
      DoctorCommand.self,
      SimulateCommand.self,
      BenchCommand.self,
      SchemaCommand.self,
      VersionCommand.self,
    ])

  static func main() async {
    // Lines appear as they are written, in a pipe too.
    setvbuf(stdout, nil, _IOLBF, 0)
    ProcessGuard.close()
    do {
      var command = try parseAsRoot()
      if var command = command as? any AsyncParsableCommand {
        try await command.run()
      } else {
        try command.run()
      }
    } catch {
      // The parser's own code for a wrong call is 64; scripts expect 2.
      guard exitCode(for: error) == .validationFailure else { exit(withError: error) }
      writeError(fullMessage(for: error))
      exit(withError: ExitCode(2))
    }
  }
}
