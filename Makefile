# `make demo` and `make test` set up an environment from nothing and run.

PYTHON ?= python3
BIN := .venv/bin
BENCH_OUT := $(if $(filter quick,$(FXGRAD_BENCH)),build/bench-quick,docs)

.PHONY: demo train test lint completeness export-table zoo fuzz bench evaluate gallery web docs clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch .venv/ready

demo: .venv/ready  ## convert, check and explain the trained digits model; then convert ViT-B
	$(BIN)/python -m fxgrad.demo --out demo-out

train: .venv/ready  ## half an hour on a quiet core: the demo's models, eight architectures; write docs/models.md
	$(BIN)/python -m fxgrad.demo.train all --results docs/models.json

test: .venv/ready lint  ## everything CI runs
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fxgrad

completeness: .venv/ready  ## measure every architecture, write docs/completeness.md
	$(BIN)/python bench/architectures.py --out docs/completeness.md

export-table: .venv/ready  ## export and run the explainer of every architecture, write docs/export-table.md
	$(BIN)/python bench/export_table.py --targets saved,pt2,onnx,aoti --out docs/export-table.md

zoo: .venv/ready  ## hours: put the zoo through the pass, resuming docs/zoo/*.csv; write docs/architectures.md
	for suite in timm-families torchvision transformers timm; do \
		$(BIN)/fxgrad zoo --suite $$suite --csv docs/zoo/$$suite.csv --jobs 2; done; \
	$(BIN)/fxgrad zoo $$(ls docs/zoo/*.csv | sed 's/^/--summary /') > docs/architectures.md

fuzz: .venv/ready  ## 2,000 random models
	FXGRAD_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/test_fuzz.py

bench: .venv/ready  ## half an hour on two quiet cores: speed and memory; write docs/benchmarks.md (FXGRAD_BENCH=quick: a smoke run, elsewhere)
	mkdir -p $(BENCH_OUT)
	$(BIN)/python -m pytest bench/test_speed.py -o filterwarnings=ignore -q --benchmark-quiet \
		--benchmark-json $(BENCH_OUT)/benchmarks.json; status=$$?; \
	$(BIN)/python bench/page.py $(BENCH_OUT)/benchmarks.json $(BENCH_OUT)/benchmarks.md && exit $$status

EVALUATED ?= vit deit3 beit2 eva02 flexivit siglip mixer clip vit_tiny vit_small vit_medium
EVALUATE = OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m fxgrad evaluate \
	--option integrated_gradients.n_steps=20 --option smoothgrad.samples=10

evaluate: .venv/ready  ## under ten minutes a model on two cores: every method and policy on the digits; write docs/results.md
	$(if $(filter-out clip,$(EVALUATED)),$(EVALUATE) --store build/evaluation --out build/evaluation.md \
		$(patsubst %,fxgrad.demo.models:%,$(filter-out clip,$(EVALUATED))))
	$(if $(filter clip,$(EVALUATED)),$(EVALUATE) --store build/evaluation-colours --out build/evaluation-colours.md \
		--data digits:heldout:colours fxgrad.demo.models:clip)
	$(BIN)/fxgrad evaluate --summary --out docs/results.md $$(ls -d build/evaluation*/ | sed 's/^/--store /')

gallery: .venv/ready  ## pictures of every method; write docs/gallery.md
	$(BIN)/python docs/gallery.py

web: .venv/ready  ## the demo's explainer as a static page, in build/web; needs npm
	$(BIN)/python docs/web/build.py build/web

docs: .venv/ready  ## regenerate docs/rules.md from rules/
	$(BIN)/python docs/generate_rules.py

clean:
	rm -rf .venv build dist demo-out
