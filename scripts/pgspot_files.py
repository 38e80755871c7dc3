"""Runs pgspot over SQL files and prints what it finds.

Usage: pgspot_files.py FILE…

pgspot takes a file for one that psql runs in any database. Martlet's doors do not run it like that: they refuse a
schema `ai` that another role owns or that holds what is not Martlet's, and they apply it with a search_path of
pg_catalog, pgvector's schema and pg_temp. So the schema counts as made here, and what stands outside functions as safe.
Functions without a search_path of their own run with their caller's rights: who shadows an operator for them does it to
himself; Tests/SQL/catalog.sql has the reviewed list of them. What pgspot cannot read is put into a form that it can.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from pglast import ast
from pglast.parser import ParseError
from pgspot import visitors
from pgspot.formatters import format_function, raw_sql
from pgspot.state import Counter, State

ARGUMENTS = Namespace(
    ignore=[], ignore_lang=[], plpgsql=True, summary_only=False, proc_without_search_path=[], sql_fn=[]
)
visit_any_function = visitors.SQLVisitor.visit_CreateFunctionStmt
visit_query = visitors.visit_sql


def visit_function(self: visitors.SQLVisitor, ancestors: Any, node: ast.CreateFunctionStmt) -> None:
    options = {option.defname: option.arg for option in node.options or ()}
    definer = "security" in options and options["security"].boolval
    sets_path = any(o.defname == "set" and o.arg.name == "search_path" for o in node.options or ())
    if node.sql_body is not None:  # `return …`: bound to what it names where it is made
        if definer and not sets_path:
            self.state.error("PS003", format_function(node))
    elif definer or sets_path:
        visit_any_function(self, ancestors, node)


def text_of(node: ast.Node) -> str:
    """A function without its own name before the names of its variables, which the parser of bodies does not know."""
    text = raw_sql(node)
    if isinstance(node, ast.CreateFunctionStmt):
        text = re.sub(rf"(?<![\w.]){node.funcname[-1].sval}\.(?=\w)", "", text)
    return text


def visit_expression(state: State, sql: str, toplevel: bool = False) -> None:
    """Where pgspot gives a part of a statement for a whole one, as it does for `for … in execute …`."""
    try:
        visit_query(state, sql, toplevel=toplevel)
    except ParseError:
        if toplevel:
            raise
        visit_query(state, "select " + sql)


def main() -> int:
    visitors.SQLVisitor.visit_CreateFunctionStmt = visit_function
    visitors.raw_sql = text_of
    visitors.visit_sql = visit_expression
    clean = True
    for name in sys.argv[1:]:
        counter = Counter(ARGUMENTS)
        state = State(counter)
        state.created_schemas.append("ai")
        state.searchpath_secure = True
        print(f"{name}:", flush=True)
        try:
            visit_expression(state, Path(name).read_text(encoding="utf-8"), toplevel=True)
        except Exception as error:  # whatever it is: a file that was not read is not clean
            print(f"  not read: {type(error).__name__}: {error}, after line {counter.line_number()}")
            clean = False
        clean = clean and counter.is_clean()
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
