# make demo   the main job on a shipped clip and photo
# make test   everything that needs no GPU, over real ROS 2 too where its wheels are to be had (x86-64 Linux)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test lint evaluate bench bench-train ros demo-ros test-ros soak-ros bench-ros clean

demo: $(VENV)/.demo
	$(BIN)/deformer run deformer_core/data/demo/people.jpg deformer_core/data/demo/clip.mp4 \
		--save overlay,side,glb --out out/demo

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(MAKE) test-ros; else echo "tests over ROS 2: skipped"; fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The recording with four cameras comes as a package; where there is no registry, evaluate says that it is not measured.
POSE2SIM := out/pose2sim/Pose2Sim/Demo_SinglePerson
evaluate: $(VENV)/.dev
	@[ -d $(POSE2SIM) ] || { $(BIN)/python -m pip download --quiet --no-deps --dest out/pose2sim pose2sim==0.10.49 \
		&& $(BIN)/python -m zipfile -e out/pose2sim/pose2sim-*.whl out/pose2sim; } || true
	$(BIN)/python -m training.evaluate --pose2sim $(POSE2SIM)

# Everything that `deformer bench` measures, once, to see that it runs; docs/performance.md has the tables of whole runs.
bench: $(VENV)/.demo
	$(BIN)/deformer bench --quick --json out/bench.json

bench-train: $(VENV)/.dev
	$(BIN)/python -m training.bench

# ROS 2 from PyPI in an environment of its own; on a machine with a ROS install, colcon build does instead.
ros:
	tools/ros/setup_env.sh .venv-ros $(PYTHON)

demo-ros: ros
	tools/ros/run python tools/ros/demo.py

test-ros: ros
	tools/ros/run python -m pytest tests/ros

# Five minutes at 30 images a second.
soak-ros: ros
	DEFORMER_SOAK=300 tools/ros/run python -m pytest tests/ros/test_node.py -k grows -s

bench-ros: ros
	tools/ros/run python tools/ros/bench.py

clean:
	rm -rf $(VENV) .venv-ros out

# The first line pins torch: a plain requirement would also take the newest build, gigabytes of CUDA with it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch setup.py
	$(PIP) -e '.[export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch setup.py
	@sh .ci/graphics
	$(PIP) -e '.[dev]'
	@touch $@
