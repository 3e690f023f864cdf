# make demo | test | serve | lint | bench | speedrun | mlflow | lock | clean | repro-parallel
# make cluster-up | cluster-repro | cluster-down: a Ray cluster on AWS (ray_cluster.yaml)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# relative: make would take a folder's name with spaces for several names
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's configuration: hand on where pip finds wheels
UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_FIND_LINKS
export PATH := $(if $(filter /%,$(BIN)),,$(CURDIR)/)$(BIN):$(PATH)
# without its cache every process of every stage compiles all that it imports, seconds of a core each
unexport PYTHONDONTWRITEBYTECODE
# nothing looks for the network: usage statistics, telemetry, model hubs
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
export HF_HUB_OFFLINE := 1

.PHONY: demo repro-parallel test lint bench speedrun serve mlflow lock clean setup cluster-up cluster-repro cluster-down

demo: setup
	@python -m pipelines.repro
	@python -m pipelines.promote --show

# independent stages side by side, STAGES of them
repro-parallel: setup
	python -m pipelines.parallel --stages $(or $(STAGES),2) $(TARGETS)

test: setup
	python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	ruff check .
	ruff format --check .
	lint-imports

bench: setup
	python -m tests.benchmarks $(ONLY)

# a race of records/TRACK.yaml; VERIFY=--verify runs its record again
speedrun: setup
	python -m tests.benchmarks.speedrun $(or $(TRACK),cpu-digits) $(VERIFY)

serve: setup
	python -m pipelines.serve

mlflow: setup
	@python -m pipelines.browse $(if $(PORT),--port $(PORT))

CLUSTER := ray_cluster.yaml
REMOTE := /home/ray/latent-foundry

cluster-up: setup
	@test -f $(HOME)/.ray/auth_token || ray get-auth-token --generate > /dev/null
	ray up --yes $(CLUSTER)

# git stays here: the head runs what changed and pushes the data, dvc.lock comes back, `dvc pull` and a commit are yours
cluster-repro: setup
	ray rsync-up $(CLUSTER) '$(CURDIR)/' $(REMOTE)/
	ray exec $(CLUSTER) 'cd $(REMOTE) && { dvc pull --quiet --allow-missing || true; } && LATENT_FOUNDRY_CLUSTER="{address: auto}" python -m pipelines.repro $(TARGETS) && dvc push'
	ray rsync-down $(CLUSTER) $(REMOTE)/dvc.lock '$(CURDIR)/dvc.lock'

cluster-down: setup
	ray down --yes $(CLUSTER)

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock $(BIN)/uv
	VIRTUAL_ENV='$(VENV)' $(BIN)/uv pip install --quiet --requirement requirements.lock
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv

# Without the nvidia and triton lines one lock serves CPU and GPU: torch brings its own. A CPU wheel's local version
# (+cpu) would pin the lock to it.
lock: $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --quiet --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links \
		| sed -E -e '/^(nvidia-|cuda-|triton)/d' -e 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock.new
	mv requirements.lock.new requirements.lock

# Everything that `make demo` made, but not the environment nor DVC's cache.
clean:
	rm -rf $(filter-out data/raw/,$(wildcard data/*/)) inputs curves code_hashes runs metrics summary samples reference champion promoted.json report.html dvc_plots .cache/ray .cache/durations bench.jsonl
