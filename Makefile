# `make` alone lists the targets. The work is in scripts/.
PG ?= 18

.DEFAULT_GOAL := help
.PHONY: help demo test bench chaos build up down url lint extension clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## sets everything up and runs the main job, with a simulated provider
	@scripts/setup database
	@scripts/build
	@exec scripts/demo

test: ## sets everything up and runs every test
	@exec scripts/test

build: ## the release binary, .build/release/martlet
	@scripts/setup build
	@exec scripts/build

up: ## starts the embedded PostgreSQL 18 (PG=16 for the other) and migrates it
	@scripts/setup database
	@scripts/build
	@exec scripts/up $(PG)

down: ## stops the embedded database; its data stay
	@exec scripts/down

url: ## prints the embedded database's URL
	@exec scripts/url $(PG)

bench: ## benchmarks beside their peers, docs/benchmarks.md (ONLY="a d" some, QUICK=1 tiny, PG=16 the other)
	@scripts/setup bench
	@scripts/build
	@PG=$(PG) scripts/bench $(if $(QUICK),--quick) $(ONLY)

chaos: ## the long run of kills, crashes and cut connections under load (PG=16 for the other)
	@scripts/setup tests
	@scripts/build
	@exec scripts/chaos $(PG)

lint: ## format and lint checks
	@scripts/setup lint
	@exec scripts/lint

extension: ## packages the SQL functions as a PostgreSQL extension (PG_CONFIG=… for another server than the embedded)
	@scripts/setup database
	@pg_config="$(PG_CONFIG)"; $(MAKE) -C extension PG_CONFIG="$${pg_config:-$$(scripts/pg-bin $(PG))/pg_config}"

clean: ## stops the databases and removes what was built and stored here
	@exec scripts/clean
