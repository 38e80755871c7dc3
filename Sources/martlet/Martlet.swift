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
      leave(with: .success)
    } catch {
      // The parser's own code for a wrong call is 64; scripts expect 2.
      let code = exitCode(for: error)
      let text = fullMessage(for: error)
      if code != .success, !text.isEmpty {
        writeError(text)
      } else if !text.isEmpty {
        print(text)  // help, which was asked for
      }
      leave(with: code == .validationFailure ? ExitCode(2) : code)
    }
  }

  /// Ends the process with what was printed, without the clean-up that libraries do at exit: OpenSSL's takes away what threads that just
  /// end, of which nobody waits for Swift's, still give back to it.
  private static func leave(with code: ExitCode) -> Never {
    fflush(nil)
    _exit(code.rawValue)
  }
}
