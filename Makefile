.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUBS := clients/python
PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos -I third_party/googleapis \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) protos/clforge/v1/*.proto
GO := clients/go
GO_PACKAGES := $(foreach proto,engine generation tokenizer,Mclforge/v1/$(proto).proto=clforge.dev/clforge/clforgev1)
GO_OPTIONS = $(foreach package,$(GO_PACKAGES),--$(1)_opt=$(package)) --$(1)_opt=module=clforge.dev/clforge
# The plugins are the versions of go.mod's tool lines, so that the generated code is the same everywhere.
PROTOC_GO = go -C $(GO) build -o "$(1)/bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc; \
	$(BIN)/python -m grpc_tools.protoc -I protos -I third_party/googleapis \
	--plugin=protoc-gen-go="$(1)/bin/protoc-gen-go" --plugin=protoc-gen-go-grpc="$(1)/bin/protoc-gen-go-grpc" \
	--go_out="$(1)" $(call GO_OPTIONS,go) --go-grpc_out="$(1)" $(call GO_OPTIONS,go-grpc) protos/clforge/v1/*.proto

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml requirements-test.lock
	@$(PYTHON) -c 'import sys; sys.exit("CLForge needs Python 3.11 or later; this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements-test.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -e .
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Make the virtual environment, with everything that tests and the demo need

.PHONY: demo
demo: setup ## Talk with the bundled model (or MODEL=file.gguf), then check four answers given at once
	@$(BIN)/python examples/demo.py $(if $(MODEL),"$(MODEL)")

.PHONY: test
test: setup ## Run all tests
	@$(BIN)/python -m pytest
	@$(MAKE) --no-print-directory test-go

.PHONY: test-go
test-go: ## Run the Go SDK's tests, where go is installed
	@if ! command -v go >/dev/null; then echo "go is not installed: the Go SDK's tests were not run"; exit 0; fi; \
	cd $(GO); go vet ./...; \
	if [[ "$$(go env CGO_ENABLED)" == 1 ]]; then go test -count=1 -race ./...; \
	else echo "no C compiler, which go's race detector needs: the Go SDK's tests run without it"; go test -count=1 ./...; fi

.PHONY: check
check: setup ## Run what CI checks without running the code: lint, format, types, protos, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb
	@$(MAKE) --no-print-directory check-gen

.PHONY: check-gen
check-gen: setup
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call PROTOC,$$fresh); touch "$$fresh/clforge/v1/__init__.py"; \
	diff -r --exclude=__pycache__ "$$fresh/clforge/v1" $(STUBS)/clforge/v1 \
	|| { echo "the generated code is out of date: run make gen and commit the result" >&2; exit 1; }
	@$(MAKE) --no-print-directory check-gen-go

.PHONY: check-gen-go
check-gen-go: setup
	@if ! command -v go >/dev/null; then echo "go is not installed: the Go SDK's generated code and format were not checked"; exit 0; fi; \
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call PROTOC_GO,$$fresh); \
	diff -r "$$fresh/clforgev1" $(GO)/clforgev1 \
	|| { echo "the generated Go code is out of date: run make gen-go and commit the result" >&2; exit 1; }; \
	unformatted=$$(gofmt -l $(GO)); [[ -z "$$unformatted" ]] || { echo "run gofmt -w on: $$unformatted" >&2; exit 1; }

.PHONY: gen
gen: setup ## Generate the Python stubs from protos/
	@$(call PROTOC,$(STUBS))
	@touch $(STUBS)/clforge/v1/__init__.py

.PHONY: gen-go
gen-go: setup ## Generate the Go stubs from protos/ (needs go)
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call PROTOC_GO,$$fresh); \
	rm -rf $(GO)/clforgev1; mv "$$fresh/clforgev1" $(GO)/

.PHONY: format
format: setup ## Format the code, and mend what the linter can mend
	@-$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

.PHONY: bench
bench: setup ## Measure tokens/s beside llama.cpp's (builds it once, twenty minutes), then how many are served at once
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[bench]'
	@$(BIN)/python -m benchmarks.bench
	@$(BIN)/python -m benchmarks.serve_against
	@$(BIN)/python -m benchmarks.serving

.PHONY: identity
identity: setup ## Compare requests under any load, bit for bit, with the same requests alone (a few minutes)
	@$(BIN)/python -m tests.identity

.PHONY: parity
parity: setup ## Compare logits with llama.cpp's, and renew the fixture that CI compares with
	@$(BIN)/python -m tests.parity.make_fixture
	@$(BIN)/python -m tests.parity.make_answers

.PHONY: evaluate
evaluate: setup ## Ask the bundled model held-out questions, and tell how many it answers right
	@$(BIN)/python -m models.train.evaluate --show-wrong 1

.PHONY: train
train: setup ## Train the bundled model anew (hours on a CPU; TRAIN="--help" tells the options)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[train]'
	@$(BIN)/python -m models.train.fit $(TRAIN)

.PHONY: oclgrind
oclgrind: setup ## Run every portable kernel under Oclgrind (Debian package oclgrind)
	@$(BIN)/python -m pytest tests/kernels/test_oclgrind.py --oclgrind=full

.PHONY: lock
lock: ## Renew requirements-test.lock from pyproject.toml
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/pip" install --disable-pip-version-check --quiet -e '.[cpu,dev]'; \
	"$$fresh/bin/pip" freeze --exclude-editable > requirements-test.lock

.PHONY: clean
clean: ## Remove the virtual environment and all caches; build/train, which took hours, stays
	@rm -rf $(VENV) tests/conformance/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis dist ./*.egg-info
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name train -exec rm -rf {} +; rmdir --ignore-fail-on-non-empty build; fi
