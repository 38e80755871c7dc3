/// How a database came by the schema. A database has one: two would overwrite each other's objects.
package enum Door: String, Sendable, CaseIterable {
  /// `martlet migrate`.
  case martlet
  /// The file that `martlet schema` prints, applied by another tool.
  case bundle
  /// `create extension martlet` and `call ai.migrate()`.
  case `extension`

  /// How to upgrade what came through this door.
  var upgrade: String {
    switch self {
    case .martlet: "martlet migrate"
    case .bundle: "the bundle that martlet schema prints, with the tool that applied the last one"
    case .extension: "alter extension martlet update, then call ai.migrate()"
    }
  }
}
