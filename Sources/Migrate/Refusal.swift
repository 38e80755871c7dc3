/// The words of the refusals, which the command and the generated SQL say alike.
enum Refusal {
  static func otherDoor(_ door: String) -> String {
    "this database was set up by the door '\(door)'"
  }
  static let foreignSchema = "there is a schema ai that is not Martlet's"
  static let foreignSchemaHint =
    "Martlet needs the name for itself: use another database, or rename that schema."
  static let foreignOwner = "the schema ai belongs to another role"
  static let foreignOwnerHint =
    "Its owner could change everything in it. Drop it, or: alter schema ai owner to the role that migrates."
  static func changed(_ file: String) -> String {
    "the migration \(file) was changed after it had been applied"
  }
  static let changedHint =
    "Migrations are history: put the file back as it was, and write a new one."
  static func newer(_ version: String) -> String {
    "the database has the migration \(version), which this version of Martlet does not know"
  }
  static let newerHint = "The database is newer: upgrade Martlet."
  static func outOfOrder(_ pending: String, _ applied: String) -> String {
    "the migration \(pending) is not applied, and \(applied), which comes after it, is"
  }
  static let outOfOrderHint = "Migrations are only ever added at the end: give it a later version."
}
