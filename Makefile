# The work is in scripts/; every target does its own set-up, and again in seconds.
.PHONY: help setup demo test test-all lint matrix package clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

setup: ## QGIS and the engine (.venv/bin/clippan), on Debian and Ubuntu
	@bash scripts/setup.sh

demo: setup ## pansharpens a scene and searches another by text, inside QGIS
	@.venv/bin/python scripts/demo.py $(ARGS)

test: setup ## all checks, and the tests that take a few seconds at most
	@bash scripts/test.sh

test-all: setup ## all checks and all tests, as CI runs them
	@bash scripts/test.sh all

lint: setup ## the checks alone
	@bash scripts/test.sh lint

matrix: ## checks and tests on Debian 13 and testing, in chroots (as root)
	@bash scripts/matrix.sh $(ARGS)

package: ## the plugin's zip, in dist/
	@python3 scripts/package.py

clean: ## removes what was built, but not .venv
	rm -rf build dist .demo .mypy_cache .ruff_cache
