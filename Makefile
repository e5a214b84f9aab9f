# Works with Python 3.11+ and make alone, also from a folder with a space in its name: all paths are relative.
PYTHON ?= python3
ENV := .venv/bin/python
# Plain waiting instead of spinning: on a busy machine, spinning threads cost an order of magnitude.
export OMP_WAIT_POLICY ?= PASSIVE
export PYTHONWARNINGS ?= ignore::DeprecationWarning:zmq

.PHONY: reports site test claims bench bench-gpu tables address lab clean

# All notebooks in minutes; PROFILE=full makes the figures to quote, in hours (notebooks/profiles); NB=05 runs that one alone.
reports: .venv/installed
	$(ENV) -m deqflow report --profile $(or $(PROFILE),short) $(if $(NB),--only $(NB))

# Reports, README, docs and glossary as one folder of pages, site/; the reports are run if there are none.
site: .venv/installed reports/index.html
	$(ENV) -m deqflow.lab.reports.site

reports/index.html:
	$(MAKE) reports

test: .venv/installed
	$(ENV) -m ruff check .
	$(ENV) -m ruff format --check .
	$(ENV) -m pyright --pythonpath $(ENV)
	$(ENV) -m nbstripout --verify --keep-id notebooks/*.ipynb
	$(ENV) -m pytest -q -rs
	rm -rf build/notebooks
	$(ENV) -m deqflow report --profile fast --prepare --out build/notebooks
	$(ENV) -m pytest -q --nbval-lax --nbval-current-env --nbval-cell-timeout=120 build/notebooks

# Whether the figures in README.md, docs and reports/published are those of the shipped weights. After a change of the
# weights it names every file that has to be made again.
claims: .venv/installed
	$(ENV) -m pytest -q -rs -m claims

# Time and memory against the published way, on a quiet machine: some ten minutes.
bench: .venv/installed
	PYTHONPATH=tests $(ENV) -m bench

# The tests, the bench and notebook 04 on a GPU, in at most eight minutes; writes reports/published/bench-gpu.json.
bench-gpu: .venv/installed
	PYTHONPATH=tests $(ENV) -m bench.gpu

# The tables of README.md and docs/measured.md, from the results files in reports/published.
tables: .venv/installed
	$(ENV) reports/fill_tables.py

# The repository's address, in badges and in the notebooks' first cells: make address REPOSITORY=https://github.com/you/deqflow
address: .venv/installed
	$(ENV) reports/address.py $(REPOSITORY)

lab: .venv/installed
	$(ENV) -m jupyterlab notebooks

clean:
	rm -rf .venv

# torch first, at the tested version: its builds differ, and nothing else may choose one.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deqflow needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(ENV) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(ENV) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab,data,dev]'
	touch .venv/installed
