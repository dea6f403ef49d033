# Two commands do everything on a fresh machine: `make serve` and `make test`. Each makes .venv by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RAY := .venv-ray
LOCKS := $(wildcard locks/*.txt) locks/install.sh

.DEFAULT_GOAL := help
.PHONY: help serve test test-browser test-ray derived screenshots docs links check audit sbom format lock pin clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/serve.done ## Serve on http://127.0.0.1:8000 with the embedded backbone and the shipped adapters
	@$(BIN)/python -m service

AGAIN = { [ $$? -eq 1 ] && echo "again, alone, what failed:" && \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(1); }

# Three processes for two cores, so that one test's waiting is another's work; one that has no tests
# left takes half of another's. What fails beside others is tried again alone: a test that needs a
# quiet machine is then told from a fault of the product.
test: $(VENV)/dev.done ## Run the tests (eight minutes on two cores)
	@$(BIN)/python -m pytest --numprocesses 3 --dist worksteal || $(call AGAIN,tests)

test-browser: $(VENV)/dev.done ## Run the tests of the page (needs Debian's chromium: apt-get install chromium)
	@$(BIN)/python -m pytest tests/browser || $(call AGAIN,tests/browser)

test-ray: $(RAY)/done ## Run the tests of replicas under Ray Serve, in an environment of their own, .venv-ray
	@$(RAY)/bin/python -m pytest tests/ray

derived: $(VENV)/dev.done ## Write anew what derives from the code: tables of settings and of reliability, OpenAPI's examples
	@$(BIN)/python -m docs.settings_table
	@$(BIN)/python -m tests.service.record_examples
	@$(BIN)/python -m benchmarks.reliability page

screenshots: $(VENV)/dev.done ## Make the pictures of docs/images/ anew
	@$(BIN)/python -m tests.browser.screenshots docs/images

docs: $(VENV)/dev.done ## Build the documentation's site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

links: ## Look whether the documents' external links are there; without a network it says so and passes
	@grep -ohE 'https://[^] )"`>]+' *.md docs/*.md docs/decisions/*.md benchmarks/JOURNAL.md | sort -u | while read -r url; do \
		curl --silent --location --max-time 20 --output /dev/null --write-out "%{http_code} $$url\n" "$$url"; \
	done | awk '/^000/ { $$1 = "not reached:" } /^(404|410)/ { $$1 = "not there:"; broken = 1 } { print } END { exit broken }'

check: $(VENV)/dev.done ## Lint, check the format and the types, look for known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m locks.audit

audit: $(VENV)/dev.done ## Look for known vulnerabilities alone; without an index of them it says so and passes
	@$(BIN)/python -m locks.audit

sbom: $(VENV)/dev.done ## Write build/sbom.cdx.json (CycloneDX): all that is installed for serving, with its sha256
	@mkdir -p build
	@cat locks/$(if $(filter cuda,$(TORCH_BUILD)),torch,torch-cpu).txt locks/service.txt | \
		$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
		--output-reproducible --output-file build/sbom.cdx.json -

format: $(VENV)/dev.done ## Put the code into form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(VENV)/dev.done ## Write locks/ anew after a change of dependencies; the newest versions: make lock UPGRADE=--upgrade
	@$(BIN)/python -m locks.write $(UPGRADE)

pin: ## Write the digests of today's base images into the Dockerfile and compose.yaml (needs docker and its registry)
	@sh deploy/pin.sh

clean: ## Remove the environment and what the tools left
	rm -rf $(VENV) $(RAY) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# An editable installation compiles the native kernels, if there is a C++ compiler.
$(VENV)/serve.done: pyproject.toml setup.py service/engine/native/kernels.cpp $(LOCKS) | $(VENV)/bin/pip
	@echo "installing (once; torch is large)…"
	@PIP=$(BIN)/pip sh locks/install.sh service
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.done: $(VENV)/serve.done
	@PIP=$(BIN)/pip sh locks/install.sh service development
	@touch $@

$(RAY)/done: pyproject.toml $(LOCKS) | $(RAY)/bin/pip
	@PIP=$(RAY)/bin/pip sh locks/install.sh service ray
	@$(RAY)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/bin/pip $(RAY)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python is {sys.version.split()[0]}; expected 3.11 or newer: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv $(@D)/..
