import Migrate
import Postgres

/// Small schemas of the real one's form, for tests of the machinery.
enum Fixture {
  static let first = (
    file: "20260101000000_start.sql",
    text: """
    -- migrate:up
    create schema if not exists ai;
    create table ai.migrations (
      version text primary key, name text not null, checksum text not null,
      door text not null, applied_at timestamptz not null default now()
    );
    alter table ai.migrations enable row level security;
    create table ai.things (id int primary key);
    insert into ai.things values (1);
    """
  )
  static let second = (
    file: "20260102000000_colour.sql",
    text: """
    -- migrate:up
    alter table ai.things add colour text not null default 'red';
    create table ai."$martlet$" (n int);

    """
  )
  static let files = [
    (file: "00_drops.sql", text: "-- nothing yet\n"),
    (
      file: "10_things.sql",
      text: """
      -- Names what a later file makes, and a column that a migration makes.
      create or replace function ai.count_things() returns bigint language sql stable
      as $$ select count(*) from ai.coloured where ai.is_red(colour) $$;
      comment on function ai.count_things() is 'How many.';
      revoke execute on function ai.count_things() from public;

      -- objects

      create or replace view ai.coloured as select id, colour from ai.things;

      """
    ),
    (
      file: "20_red.sql",
      text: """
      create or replace function ai.is_red(colour text) returns boolean language plpgsql immutable
      as $martlet$ begin return colour = 'red'; end $martlet$;
      comment on function ai.is_red(text) is 'Red?';
      revoke execute on function ai.is_red(text) from public;

      """
    ),
  ]

  static func schema(
    _ migrations: [(file: String, text: String)] = [first, second],
    files: [(file: String, text: String)] = files
  ) throws -> Schema {
    try Schema(migrations: migrations, files: files)
  }

  /// A session of its own for each run, as the command has.
  @discardableResult
  static func migrate(
    _ database: TestDatabase, _ schema: Schema, report: (Migrator.Step) -> Void = { _ in }
  ) async throws -> Plan {
    let connection = try await database.connect("test migrate")
    do {
      let plan = try await Migrator(schema).migrate(connection, report: report)
      await connection.close()
      return plan
    } catch {
      await connection.close()
      throw error
    }
  }
}
