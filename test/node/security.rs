//! Who may do what on a node, and what becomes of those who pass by the queue.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::mig_node::{SliceState, SliceStatus};

use crate::support::{EMULATED, NODE, World, container, job, job_of, on_the_node};

const SYSTEM: &str = "slicegate-system";
const MIG_NODES: &str = "/apis/slicegate.dev/v1alpha1/mignodes";
const NODES: &str = "/api/v1/nodes";
const MERGE: &str = "application/merge-patch+json";
const STAYS: &str = "exec sleep 1000";

/// A request that changes nothing even if it is allowed.
struct Attempt {
    method: &'static str,
    path: String,
    body: Value,
}

impl Attempt {
    fn new(method: &'static str, path: impl Into<String>, body: Value) -> Self {
        Self { method, path: path.into(), body }
    }

    async fn send(&self, client: &Client) -> kube::Result<Value> {
        let content = if self.method == "PATCH" { MERGE } else { "application/json" };
        let body = if self.body.is_null() { Vec::new() } else { self.body.to_string().into_bytes() };
        let request = http::Request::builder()
            .method(self.method)
            .uri(format!("{}?dryRun=All", self.path))
            .header("content-type", content)
            .body(body)
            .map_err(kube::Error::HttpError)?;
        client.request(request).await
    }

    /// Why it is refused.
    async fn refusal(&self, client: &Client) -> Result<String> {
        let (method, path) = (self.method, &self.path);
        match self.send(client).await {
            Ok(_) => bail!("{method} {path} with {} was allowed", self.body),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(status.message.clone()),
            Err(error) => Err(error).with_context(|| format!("{method} {path} failed, but was not refused")),
        }
    }
}

/// Every verb that writes, on one object.
fn every_verb(path: &str, object: &Value) -> Vec<Attempt> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let mut changed = object.clone();
    changed["metadata"]["annotations"]["example.com/tried"] = json!("yes");
    changed["status"]["bootID"] = json!("another");
    changed["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] = json!("7");
    let mut new = changed.clone();
    new["metadata"] = json!({"name": "another"});
    let own = format!("{path}/{name}");
    let annotation = json!({"metadata": {"annotations": {"example.com/tried": "yes"}}});
    let status = json!({"status": {"bootID": "another", "allocatable": {"nvidia.com/mig-1g.10gb": "7"}}});
    vec![
        Attempt::new("POST", path, new),
        Attempt::new("PUT", &own, changed.clone()),
        Attempt::new("PUT", format!("{own}/status"), changed),
        Attempt::new("PATCH", &own, annotation),
        Attempt::new("PATCH", format!("{own}/status"), status),
        Attempt::new("DELETE", &own, Value::Null),
        Attempt::new("DELETE", path, Value::Null),
    ]
}

/// What an agent may not do to its own objects.
fn at_home() -> Vec<Attempt> {
    let (mig_node, node) = (format!("{MIG_NODES}/{NODE}"), format!("{NODES}/{NODE}"));
    let status = format!("{node}/status");
    let resources =
        |key: &str, count: Value| json!({"status": {"capacity": {key: count}, "allocatable": {key: count}}});
    vec![
        Attempt::new("DELETE", &mig_node, Value::Null),
        Attempt::new("PATCH", &mig_node, json!({"spec": {"remakeAfterUse": true}})),
        Attempt::new("DELETE", &node, Value::Null),
        Attempt::new("PATCH", &node, json!({"metadata": {"labels": {"a": "b"}}})),
        Attempt::new("PATCH", &node, json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})),
        Attempt::new("PATCH", &node, json!({"spec": {"unschedulable": true}})),
        Attempt::new("PATCH", &status, json!({"metadata": {"labels": {"a": "b"}}})),
        Attempt::new("PATCH", &status, json!({"metadata": {"annotations": {"a": "b"}}})),
        Attempt::new("PATCH", &status, json!({"status": {"conditions": []}})),
        Attempt::new("PATCH", &status, json!({"status": {"addresses": []}})),
        Attempt::new("PATCH", &status, resources("cpu", json!("1"))),
        Attempt::new("PATCH", &status, resources("nvidia.com/gpu", json!("2"))),
        Attempt::new("PATCH", &status, resources("example.com/gold", json!("2"))),
        Attempt::new("PATCH", &status, resources("memory", Value::Null)),
    ]
}

/// A client with a token of the kind that the agent's pod is given: bound to that pod.
async fn agent(world: &World<'_>) -> Result<Client> {
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), SYSTEM);
    let pod = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(world.real.agent_pod().await?),
        uid: None,
    };
    let spec = TokenRequestSpec { bound_object_ref: Some(pod), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request("slicegate-agent", &PostParams::default(), &request).await?;
    let token = answer.status.and_then(|status| status.token).context("a token")?;
    let rig = world.real.rig;
    rig.client_of(&rig.kubeconfig_for("agent-pod", &token)?).await
}

#[test]
fn an_agent_writes_nothing_of_another_node_and_of_its_own_only_what_is_its() {
    on_the_node("agent-rights", async |world, _| {
        // Those of the emulated node beside it.
        let rights = world.real.rig.repo().root().join("config/emulated/rights/pods.yaml");
        world.real.rig.kubectl([OsStr::new("delete"), OsStr::new("-f"), rights.as_os_str()]).await?;
        let agent = agent(world).await?;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let review = Attempt::new("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review);
        let who = review.send(&agent).await?;
        let nodes = &who["status"]["userInfo"]["extra"]["authentication.kubernetes.io/node-name"];
        ensure!(*nodes == json!([NODE]), "{who}");

        let mut attempts = at_home();
        for path in [MIG_NODES, NODES] {
            let object =
                Attempt::new("GET", format!("{path}/{EMULATED}"), Value::Null).send(&world.client).await?;
            attempts.extend(every_verb(path, &object));
        }
        for attempt in &attempts {
            attempt.refusal(&agent).await?;
        }
        let pods = Attempt::new("GET", "/api/v1/pods", Value::Null);
        for path in [
            "/api/v1/secrets",
            "/api/v1/configmaps",
            "/api/v1/pods",
            "/apis/kueue.x-k8s.io/v1beta2/workloads",
        ] {
            Attempt::new("GET", path, Value::Null).refusal(&agent).await?;
        }
        let event = |namespace: &str| {
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "tried", "namespace": namespace},
                "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a", "reportingInstance": "b",
                "action": "Try", "reason": "Tried", "type": "Normal", "regarding": {"kind": "MIGNode", "name": NODE},
            })
        };
        let write = |namespace: &str| {
            Attempt::new(
                "POST",
                format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
                event(namespace),
            )
        };
        write("kube-system").refusal(&agent).await?;
        // What it is there for.
        write("default").send(&agent).await?;
        let status = format!("{NODES}/{NODE}/status");
        let own = json!({"status": {"allocatable": {"nvidia.com/mig-1g.10gb": "0"}}});
        Attempt::new("PATCH", status, own).send(&agent).await?;

        // The policies hold even where somebody grants the agents everything.
        let grant = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "careless"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "slicegate-agent", "namespace": SYSTEM}],
        });
        world.real.rig.apply_objects(vec![grant]).await?;
        world.until("everything is granted", || async { Ok(pods.send(&agent).await.is_ok()) }).await?;
        for attempt in &attempts {
            let why = attempt.refusal(&agent).await?;
            let path = &attempt.path;
            ensure!(why.contains("ValidatingAdmissionPolicy 'agent-"), "{} {path}: {why}", attempt.method);
        }
        Ok(())
    });
}

/// A pod in an opted-out namespace that takes a slice past the queue.
async fn stranger(world: &World<'_>, namespace: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger", "namespace": namespace},
        "spec": {
            "containers": [container("main", STAYS, &[("1g.10gb", 1)])],
            "terminationGracePeriodSeconds": 1,
        },
    });
    world.create::<Pod>(&pod).await?;
    world.pod_in(namespace, "stranger", "Running").await?;
    Ok(())
}

#[test]
fn the_gate_keeps_pods_from_taking_slices_past_the_queue() {
    on_the_node("gate", async |world, namespace| {
        // A slice is there to be taken.
        finish(world, namespace, "before").await?;
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stray", "namespace": namespace},
            "spec": {"containers": [container("main", STAYS, &[("1g.10gb", 1)])]},
        });
        world.create::<Pod>(&pod).await?;
        let note = world.event(namespace, "stray", "NotQueued").await?;
        ensure!(note.contains("kueue.x-k8s.io/queue-name"), "{note}");
        let stray = world.api::<Pod>(namespace).get("stray").await?.spec.context("spec")?;
        let gates: Vec<_> = stray.scheduling_gates.into_iter().flatten().map(|gate| gate.name).collect();
        ensure!(gates == ["slicegate.dev/claim"] && stray.node_name.is_none(), "{gates:?}");
        pod["metadata"]["name"] = json!("bound");
        pod["spec"]["nodeName"] = json!(NODE);
        let refused =
            format!("{:#}", world.create::<Pod>(&pod).await.err().context("a pod with a node was allowed")?);
        ensure!(refused.contains("may not name its node (spec.nodeName: gpu-real)"), "{refused}");
        let slices = world.slices().await?;
        ensure!(slices.len() == 1 && slices[0].state == SliceState::Idle, "{slices:?}");
        world.clear(namespace).await
    });
}

#[test]
fn a_pod_past_the_queue_is_noticed_and_the_robbed_workload_still_gets_a_slice() {
    on_the_node("robbed", async |world, namespace| {
        let free = "opted-out";
        world.namespace(free, &[("slicegate.dev/managed", "false")]).await?;
        // Its pod is kept back by somebody else, while a slice stands ready for it.
        let spec = json!({
            "containers": [container("main", "env | grep SLICEGATE_MIG_; exec sleep 1000", &[("1g.10gb", 1)])],
            "schedulingGates": [{"name": "example.com/later"}],
        });
        world.create::<Job>(&job_of(namespace, "robbed", &spec)).await?;
        let ready = world
            .until("its slice is idle", || async {
                Ok(world.slices().await?.into_iter().find(|slice| slice.state == SliceState::Idle))
            })
            .await?;
        world
            .until("it is shown", || async { Ok(world.shown("nvidia.com/mig-1g.10gb").await?.1 == 1) })
            .await?;
        stranger(world, free).await?;
        for (place, object) in [(free, "stranger"), ("default", NODE)] {
            let note = world.event(place, object, "SliceTaken").await?;
            ensure!(note.contains("past the queue") && note.contains("1g.10gb"), "{note}");
        }
        let shows = async |count: u32| {
            let line = format!("slicegate_slices_taken{{profile=\"1g.10gb\"}} {count}");
            anyhow::Ok(world.metrics("controller").await?.contains(&line))
        };
        world.until("the metric counts it", || shows(1)).await?;
        let taken: Vec<SliceStatus> = world.slices().await?;
        let of_stranger = taken.iter().find(|slice| slice.pod.as_deref() == Some("opted-out/stranger"));
        ensure!(of_stranger.is_some_and(|slice| slice.uuid == ready.uuid), "{taken:?}");

        let pod = world.pod_in(namespace, "robbed", "Pending").await?.name_any();
        let ungate =
            json!({"spec": {"schedulingGates": [{"$patch": "delete", "name": "example.com/later"}]}});
        world.api::<Pod>(namespace).patch(&pod, &PatchParams::default(), &Patch::Strategic(ungate)).await?;
        world.pod_in(namespace, "robbed", "Running").await?;
        let line = world.says(namespace, &pod, "main", |line| line.starts_with("SLICEGATE_MIG_")).await?;
        ensure!(!line.ends_with(ready.uuid.as_deref().context("a UUID")?), "two pods share {line}");

        world.api::<Pod>(free).delete("stranger", &DeleteParams::default()).await?;
        world.until("the metric counts it no more", || shows(0)).await?;
        world.clear(namespace).await
    });
}

/// Runs a Job with one slice to its end, waits until the slice is given back, and gives its UUID.
async fn finish(world: &World<'_>, namespace: &str, name: &str) -> Result<String> {
    let main = container("main", "env | grep SLICEGATE_MIG_", &[("1g.10gb", 1)]);
    world.create::<Job>(&job(namespace, name, &[main])).await?;
    let pod = world.pod_in(namespace, name, "Succeeded").await?.name_any();
    let line = world.says(namespace, &pod, "main", |line| line.starts_with("SLICEGATE_MIG_")).await?;
    world
        .until(&format!("the slice of {name} is given back"), || async {
            let idle = world.slices().await?.iter().all(|slice| slice.state == SliceState::Idle);
            Ok(idle && world.mig_node().await?.spec.claims.is_empty())
        })
        .await?;
    Ok(line.split_once('=').context(line.clone())?.1.to_owned())
}

/// How many compute instances NVML has made so far.
fn made(world: &World<'_>) -> Result<u64> {
    Ok(world.real.gpu_state()?.read()?.gpus.iter().map(|gpu| gpu.created).sum())
}

#[test]
fn slices_are_used_again_as_they_are_or_made_anew_between_pods_as_the_policy_says() {
    on_the_node("slice-reuse", async |world, namespace| {
        world.slice_policy(&json!({"sliceReuse": "Always"})).await?;
        let first = finish(world, namespace, "first").await?;
        ensure!(finish(world, namespace, "second").await? == first, "another slice was made");
        ensure!(made(world)? == 1, "NVML was called");

        world.slice_policy(&json!({"sliceReuse": "Never"})).await?;
        world
            .until("the agent is told", || async { Ok(world.mig_node().await?.spec.remake_after_use) })
            .await?;
        let tenant = "another-tenant";
        world.namespace(tenant, &[]).await?;
        let third = finish(world, tenant, "third").await?;
        let fourth = finish(world, namespace, "fourth").await?;
        let all = BTreeSet::from([&first, &third, &fourth]);
        ensure!(all.len() == 3, "a slice was used again: {all:?}");
        world.clear(namespace).await
    });
}

/// What the kernel says of a program's process in the node.
struct Process {
    folder: PathBuf,
    status: String,
}

impl Process {
    fn find(world: &World<'_>, subcommand: &str) -> Result<Self> {
        for entry in fs::read_dir(world.real.node.path("/proc")?)? {
            let folder = entry?.path();
            let line = fs::read(folder.join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            if words.next().is_some_and(|program| program.ends_with(b"/slicegate"))
                && words.next() == Some(subcommand.as_bytes())
            {
                let status = fs::read_to_string(folder.join("status"))?;
                return Ok(Self { folder, status });
            }
        }
        bail!("slicegate {subcommand} does not run in the node")
    }

    /// A line of `/proc/<pid>/status`, its words.
    fn says(&self, name: &str) -> Result<Vec<&str>> {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("no {name} in {}", self.status))?.split_whitespace().collect())
    }

    fn root_is_read_only(&self) -> Result<bool> {
        let mounts = fs::read_to_string(self.folder.join("mountinfo"))?;
        let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|m| m[4] == "/");
        Ok(root.context("no root")?[5].split(',').any(|option| option == "ro"))
    }

    /// The node's folders that it can write to.
    fn writable(&self) -> Result<BTreeSet<PathBuf>> {
        let mounts = fs::read_to_string(self.folder.join("mountinfo"))?;
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let open = fields.filter(|m| m[5].split(',').any(|option| option == "rw"));
        let own =
            ["/proc", "/dev", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/secrets"];
        let is_own = |path: &Path| own.iter().any(|own| path.starts_with(own));
        Ok(open.map(|m| PathBuf::from(m[4])).filter(|path| !is_own(path)).collect())
    }
}

#[test]
fn controller_and_agent_run_with_the_privileges_that_are_listed_and_no_others() {
    on_the_node("privileges", async |world, _| {
        const SYS_ADMIN: u64 = 1 << 21;
        const MKNOD: u64 = 1 << 27;
        let controller = Process::find(world, "controller")?;
        ensure!(controller.says("Uid")? == ["65532"; 4], "{}", controller.status);
        ensure!(controller.says("NoNewPrivs")? == ["1"], "{}", controller.status);
        ensure!(controller.says("Seccomp")? == ["2"], "{}", controller.status);
        ensure!(controller.writable()?.is_empty(), "{:?}", controller.writable()?);
        let agent = Process::find(world, "agent")?;
        ensure!(agent.says("Uid")? == ["0"; 4], "{}", agent.status);
        let folders = [
            "/host/dev",
            "/sim",
            "/var/lib/kubelet/device-plugins",
            "/var/lib/kubelet/pod-resources",
            "/var/lib/slicegate",
            "/var/run/cdi",
        ];
        // What is mounted below the node's /dev comes with it.
        let mut writable = agent.writable()?;
        writable.retain(|path| path.parent() != Some(Path::new("/host/dev")));
        let expected: BTreeSet<PathBuf> = folders.into_iter().map(PathBuf::from).collect();
        ensure!(writable == expected, "{writable:?}");
        for (process, capabilities) in [(&controller, 0), (&agent, SYS_ADMIN | MKNOD)] {
            ensure!(process.root_is_read_only()?, "{}", process.status);
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                let held = u64::from_str_radix(process.says(set)?.first().context("a number")?, 16)?;
                ensure!(held == capabilities, "{set}: {}", process.status);
            }
            ensure!(process.says("CapAmb")? == ["0000000000000000"], "{}", process.status);
        }
        Ok(())
    });
}
