internal import ArgumentParser
internal import Migrate

struct SchemaCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "schema",
    abstract: "Prints the schema as one SQL file, for other migration tools and psql.",
    discussion: """
      The file can be applied again and again: what is applied is left out. A database that was set up \
      by `martlet migrate` or by the extension refuses it.
      """)

  @Flag(name: .customLong("extension"), help: "Print the script of `create extension martlet`.")
  var asExtension = false

  func run() async throws {
    let schema = try Schema.embedded()
    print(asExtension ? schema.extensionScript() : schema.bundle(), terminator: "")
  }
}
