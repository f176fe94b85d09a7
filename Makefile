.PHONY: setup check test coverage format docs compare clean

setup:            ## install everything for development
	pip install uv && uv sync && uv run pre-commit install

check:            ## lint, format and types
	uv run ruff check && uv run ruff format --check && uv run mypy

test:             ## all tests
	uv run pytest

coverage:         ## tests with a coverage report
	uv run pytest --cov --cov-report=term-missing

format:           ## fix what can be fixed automatically
	uv run ruff check --fix && uv run ruff format

docs:             ## the documentation as a site, in site/
	uv run --group docs mkdocs build --strict

compare:          ## SEVENpre, SEVENdyn and magnitude on digits
	uv run train.py -m experiment=compare

clean:            ## remove caches, not results
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist site
