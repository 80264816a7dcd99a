# `make help` lists the targets. Every target sets up what it needs; a second run sets up nothing.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?=
PORT ?= 8000
KAFKA_PORT ?= 9092
MODEL ?= demo
MINUTES ?= 60
IMAGE ?= stt-serve:latest
BAKE ?=

.DEFAULT_GOAL := help
.PHONY: help setup install dev demo serve smoke test long soak chaos bench lint types unit format lock audit samples \
	demo-model demo-model-report screenshot docker docker-run-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in requirements.lock

$(READY): requirements.lock pyproject.toml
	@tools/make_venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

install dev: setup ## the same as setup, by the names of an earlier service

demo: setup ## serve the demo model, transcribe a clip in real time, stop
	@$(BIN)/stt demo

serve: setup ## serve a model: make serve [MODEL=stt-1b-en_fr] [PORT=8000] [KAFKA=host:9092]
	@$(if $(KAFKA),LOOM_KAFKA_BOOTSTRAP_SERVERS="$(KAFKA)") $(BIN)/stt serve --model "$(MODEL)" --port "$(PORT)"

smoke: setup ## try everything that a running service can do: make smoke [PORT=8000]
	@$(BIN)/stt smoke --url "http://127.0.0.1:$(PORT)"

test: lint types unit ## every check and every test

.PHONY: kafka test-kafka
kafka: setup ## Apache Kafka on this machine until Ctrl-C (needs Java 17 and Maven): make kafka [KAFKA_PORT=9092]
	@$(BIN)/python -m tools.kafka.broker --port $(KAFKA_PORT)

test-kafka: setup ## the bridge with a real Apache Kafka: kills, rebalances, bad input (needs Java 17 and Maven)
	@$(BIN)/pytest -q tests/kafka

chaos: setup ## harm a service in every way we know while 16 sessions speak, and count what is lost (20 minutes)
	@$(BIN)/python -m loadtest.chaos --scenario all --sessions 16

long: setup ## tests that take minutes each: engines that come and go, nodes that die, one application per GPU type
	@$(BIN)/pytest -q tests/long

soak: setup ## an hour of churn: memory, files and tasks must stay flat: make soak [MINUTES=60]
	@$(BIN)/python -m loadtest.soak --minutes $(MINUTES)

bench: setup ## run everything in loadtest/results again that this machine can; git diff shows what has changed
	@$(BIN)/python -m loadtest.bench again

lint: setup ## ruff: lint and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy, strict on serve_app
	@$(BIN)/mypy

unit: setup ## the tests alone: those of single modules three files at a time, then those of the whole application
	@$(BIN)/pytest -q -n 3 --dist loadfile --ignore tests/system --ignore tests/long --ignore tests/kafka
	@$(BIN)/pytest -q tests/system

format: setup ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: setup ## resolve requirements.lock again
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--no-emit-index-url --extra dev pyproject.toml -o requirements.lock

audit: setup ## look for known vulnerabilities in requirements.lock (status 2: its database is out of reach)
	@$(BIN)/python tools/audit.py

samples: setup ## make the clips in configs/samples again (needs espeak-ng and ffmpeg)
	@$(BIN)/python -m tools.make_samples

demo-model: setup ## train the demo model from nothing, evaluate it, write its checkpoint, card and report (needs espeak-ng)
	@$(BIN)/python -m tools.demo_model train

demo-model-report: setup ## evaluate the demo model that is there, and write its report (needs espeak-ng)
	@$(BIN)/python -m tools.demo_model report

screenshot: setup ## make docs/page.png again: the page in Chromium, with a real service
	@$(BIN)/pytest -q tests/system/test_dialects.py -k page --screenshot docs/page.png

docker: ## make an image: make docker [IMAGE=registry.example.org/stt-serve:latest] [BAKE=stt-1b-en_fr]
	@docker build --file cluster/docker/Dockerfile --build-arg BAKE="$(BAKE)" --tag "$(IMAGE)" .

docker-run-gpu: ## run the image on the GPU: STT_API_KEY=... make docker-run-gpu [MODEL=stt-1b-en_fr] [PORT=8000]
	@docker run --rm --init --gpus all --shm-size 2g --ulimit nofile=65536 --publish "127.0.0.1:$(PORT):8000" \
		--volume stt-cache:/var/cache/stt --env STT_API_KEY --env LOOM_MODEL_DEVICE=cuda --env MODEL_NAME="$(MODEL)" \
		"$(IMAGE)"

clean: ## remove .venv and caches
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .kafka
