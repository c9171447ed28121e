# `make demo` and `make test` are the two commands of README.md; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := bash
CARGO ?= cargo
# The image, and the program that builds and pushes it: docker, podman, nerdctl.
IMG ?= slicegate:dev
CONTAINER_TOOL ?= docker
# What deploy installs: config/default, or config/webhook on Kubernetes older than 1.36.
CONFIG ?= config/default

.PHONY: help demo demo-down test lint unit component cluster node rules generate install deploy undeploy uninstall prerequisites build bench-admission bench-burst eval-placement demo-node bench-node build-node docker-build docker-push

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

prerequisites:
	@hack/prerequisites

build: prerequisites
	@$(CARGO) build --workspace --bins
	@$(CARGO) build -p slicegate-nvml-sim

demo: build ## Run the main job on a local cluster with three emulated GPU nodes (KEEP=1 leaves it up)
	@target/debug/demo $(if $(KEEP),--keep)

build-node: build
	@hack/prerequisites node
	@hack/cluster/build node

demo-node: build-node ## The same on a real node, as root: kubelet, containerd, containers on their slices (KEEP=1 leaves it up)
	@target/debug/demo node $(if $(KEEP),--keep)

demo-down: ## End a cluster that `make demo KEEP=1` has left up
	@target/debug/rig down

test: lint unit component cluster node ## Everything that CI runs (as root: a part of it runs containers)

lint: prerequisites ## Formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

unit: build ## Decisions, NVML simulator, rig: no cluster
	$(CARGO) test --workspace --lib --bins
	$(CARGO) test -p slicegate-nvml-sim --tests

component: build ## Agent against the NVML ABI, manifests, generated files
	$(CARGO) test -p slicegate --test component

cluster: build ## The operator on a real API server with a real Kueue
	hack/cluster/build
	hack/cluster/build frameworks
	$(CARGO) test -p slicegate-rig --test rig -- --ignored
	$(CARGO) test -p slicegate-rig --test cluster -- --test-threads=2

node: build-node ## The operator beside a real kubelet, containerd and runc
	$(CARGO) test -p slicegate-rig --test real_node -- --ignored
	$(CARGO) test -p slicegate-rig --test node -- --test-threads=2

bench-admission: prerequisites ## Admission of 500 one-pod and 50 ten-pod Jobs on 20 emulated nodes, beside the same without Slicegate
	@$(CARGO) build --release --workspace --bins
	@$(CARGO) build --release -p slicegate-nvml-sim
	@target/release/demo bench-admission --json target/bench-admission.json

bench-burst: build ## 50 one-slice Jobs at once on 4 nodes of 2 A100-40GB, 1 s per NVML create
	@target/debug/demo burst

# A reduced run is a part of the core's unit tests.
SEEDS ?= 30
ARRIVALS ?= 20000
eval-placement: prerequisites ## Tables of the placement engine beside others, by simulation (SEEDS=30 ARRIVALS=20000)
	@$(CARGO) run --quiet --release -p slicegate-core --example evaluate_placement -- $(SEEDS) $(ARRIVALS)

bench-node: build-node ## Job created → container running on a real node, phase by phase, beside the same Job without Slicegate
	@target/debug/demo bench-node --json target/bench-node.json

rules: ## Test the recording rules for Prometheus with promtool
	hack/prometheus/check

generate: ## Write the CRDs from the types
	UPDATE=1 $(CARGO) test -p slicegate --test component crds

install: ## Install the CRDs on the current cluster
	kubectl apply --server-side -k crds

deploy: ## Install everything on the current cluster, with the image IMG, as CONFIG says
	kubectl kustomize $(CONFIG) | sed 's|image: slicegate:dev$$|image: $(IMG)|' | kubectl apply --server-side -f -

undeploy: ## Remove everything from the current cluster
	kubectl delete --ignore-not-found -k $(CONFIG)

uninstall: ## Remove the CRDs from the current cluster
	kubectl delete --ignore-not-found -k crds

docker-build: ## Build the image IMG with CONTAINER_TOOL
	$(CONTAINER_TOOL) build -t $(IMG) .

docker-push: ## Push the image IMG
	$(CONTAINER_TOOL) push $(IMG)
