//! One cluster for a group of tests that run side by side, each with a namespace, a queue and nodes of its own in it.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use nvml_sim::StateDir;
use serde_json::{Value, json};
use slicegate_rig::operator::{GpuNode, gpu_state};
use slicegate_rig::{Framework, Options, Rig};
use tokio::runtime::Runtime;

use crate::checker::Checker;
use crate::support::World;

/// How long a cluster waits for the next test of its group.
const LINGER: Duration = Duration::from_secs(5);
/// Label of the nodes of a test, with its namespace.
pub const TEST_LABEL: &str = "slicegate.dev/test";

/// Tests that share a cluster. It comes up for the first of them and ends after the last.
pub struct Group {
    frameworks: &'static [Framework],
    options: fn(Options) -> Options,
    starting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    cluster: Option<Arc<Cluster>>,
    tests: usize,
    failed: bool,
}

/// The cluster, and the runtime that its client and its checker live in.
struct Cluster {
    world: World,
    checker: Checker,
    runtime: Runtime,
}

impl Group {
    /// A group on a cluster that has these kinds of job.
    pub const fn new(frameworks: &'static [Framework]) -> Self {
        Self::with(frameworks, |options| options)
    }

    /// The same, with the cluster changed otherwise.
    pub const fn with(frameworks: &'static [Framework], options: fn(Options) -> Options) -> Self {
        Self {
            frameworks,
            options,
            starting: tokio::sync::Mutex::const_new(()),
            state: Mutex::new(State { cluster: None, tests: 0, failed: false }),
            changed: Condvar::new(),
        }
    }

    /// Lets a test in: gives it a namespace with a LocalQueue `mig`, and nodes. `quotas` are those of the ClusterQueue where
    /// they matter; of all else there is plenty.
    pub async fn enter(
        &'static self,
        namespace: &str,
        nodes: Vec<GpuNode>,
        quotas: &[(&str, u32)],
    ) -> Result<Place> {
        let seat = self.seat().await?;
        let client = seat.cluster.world.rig.client().await?;
        let operator = seat.cluster.world.operator.clone();
        let world = World { rig: seat, operator, client, nodes };
        let place = Place { world, namespace: namespace.to_owned() };
        place.furnish(quotas).await?;
        Ok(place)
    }

    async fn seat(&'static self) -> Result<Seat> {
        let _turn = self.starting.lock().await;
        let known = {
            let mut state = self.state();
            state.tests += 1;
            state.cluster.clone()
        };
        let cluster = match known {
            Some(cluster) => cluster,
            None => match Cluster::up(self.options()?).await {
                Ok(cluster) => self.state().cluster.insert(Arc::new(cluster)).clone(),
                Err(error) => {
                    self.state().tests -= 1;
                    return Err(error);
                }
            },
        };
        Ok(Seat { group: self, cluster })
    }

    fn options(&self) -> Result<Options> {
        let options = (self.options)(Options::temporary()?);
        Ok(self.frameworks.iter().fold(options, |options, framework| options.framework(*framework)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Ends the cluster unless another test comes.
    fn end_if_unused(&self) {
        let state = self.state();
        let (mut state, _) = self.changed.wait_timeout_while(state, LINGER, |s| s.tests == 0).unwrap();
        if state.tests > 0 {
            return;
        }
        let Some(cluster) = state.cluster.take().and_then(Arc::into_inner) else { return };
        let Cluster { mut world, runtime, .. } = cluster;
        if state.failed {
            world.rig.keep_folder();
        }
        if let Err(error) = runtime.block_on(world.rig.down()) {
            eprintln!("the shared cluster does not end: {error:#}");
        }
    }
}

impl Cluster {
    async fn up(options: Options) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let up = runtime.spawn(async {
            let world = World::as_wanted(options, Vec::new()).await?;
            let checker = Checker::start(&world);
            anyhow::Ok((world, checker))
        });
        match up.await? {
            Ok((world, checker)) => Ok(Self { world, checker, runtime }),
            Err(error) => {
                // Within a runtime another cannot be waited for.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }
}

/// A test's part in the cluster.
pub struct Seat {
    group: &'static Group,
    cluster: Arc<Cluster>,
}

impl Borrow<Rig> for Seat {
    fn borrow(&self) -> &Rig {
        &self.cluster.world.rig
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let group = self.group;
        {
            let mut state = group.state();
            state.tests -= 1;
            state.failed |= std::thread::panicking();
        }
        group.changed.notify_all();
        // Not here: the next test may be waiting for this thread.
        std::thread::spawn(move || group.end_if_unused());
    }
}

/// What a test has in the cluster.
pub struct Place {
    world: World<Seat>,
    pub namespace: String,
}

impl Deref for Place {
    type Target = World<Seat>;

    fn deref(&self) -> &World<Seat> {
        &self.world
    }
}

/// A slice in a pod's hands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub node: String,
    pub profile: String,
    pub uuid: String,
}

impl Place {
    async fn furnish(&self, quotas: &[(&str, u32)]) -> Result<()> {
        let namespace = &self.namespace;
        let profiles = ["1g.6gb", "2g.12gb", "4g.24gb", "1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb"];
        let mut quota: BTreeMap<String, Value> = profiles
            .iter()
            .map(|profile| (format!("nvidia.com/mig-{profile}"), json!(1000)))
            .chain([("cpu".to_owned(), json!(1000)), ("memory".to_owned(), json!("10Ti"))])
            .collect();
        for (profile, most) in quotas {
            quota.insert(format!("nvidia.com/mig-{profile}"), json!(most));
        }
        let resources: Vec<Value> =
            quota.iter().map(|(name, most)| json!({"name": name, "nominalQuota": most})).collect();
        let kueue = |kind: &str, metadata: Value, spec: Value| json!({"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, "spec": spec});
        self.rig()
            .apply_objects(vec![
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
                kueue(
                    "ResourceFlavor",
                    json!({"name": namespace}),
                    json!({"nodeLabels": {TEST_LABEL: namespace}}),
                ),
                kueue(
                    "ClusterQueue",
                    json!({"name": namespace}),
                    json!({
                        "namespaceSelector": {},
                        "admissionChecksStrategy": {"admissionChecks": [{"name": "slicegate"}]},
                        "resourceGroups": [{
                            "coveredResources": quota.keys().collect::<Vec<_>>(),
                            "flavors": [{"name": namespace, "resources": resources}],
                        }],
                    }),
                ),
                kueue(
                    "LocalQueue",
                    json!({"name": "mig", "namespace": namespace}),
                    json!({"clusterQueue": namespace}),
                ),
            ])
            .await?;
        let specs: Vec<_> =
            self.nodes.iter().map(|node| node.node.clone().label(TEST_LABEL, namespace.as_str())).collect();
        self.rig().add_nodes(&specs).await?;
        try_join_all(self.nodes.iter().map(|node| self.operator.start_agent(self.rig(), node))).await?;
        Ok(())
    }

    pub fn rig(&self) -> &Rig {
        self.world.rig.borrow()
    }

    /// Waits until nothing of this test is claimed or held, and says what was wrong meanwhile, in its part or elsewhere.
    pub async fn leave(self) -> Result<()> {
        self.until("all claims and slices are released", || async {
            Ok(self.claims().await?.is_empty() && self.held().await?.is_empty())
        })
        .await?;
        self.end().await
    }

    /// Leaves though something is claimed or held, and deletes it all.
    pub async fn abandon(self) -> Result<()> {
        self.rig().kubectl(["delete", "namespace", &self.namespace, "--wait=false"]).await?;
        self.end().await
    }

    async fn end(self) -> Result<()> {
        let violations = self.world.rig.cluster.checker.violations();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
        for node in &self.nodes {
            let agent = self.rig().process(&format!("agent-{}", node.name())).context("agent")?;
            agent.terminate().await?;
        }
        Ok(())
    }

    /// Applies an object in this namespace, for its queue.
    pub async fn apply(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = json!(self.namespace);
        object["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = json!("mig");
        self.rig().apply_objects(vec![object]).await
    }

    /// `kubectl` in this namespace.
    pub async fn kubectl(&self, line: &str) -> Result<String> {
        let words = line.split(' ');
        self.rig().kubectl(["-n", &self.namespace].into_iter().chain(words)).await
    }

    /// How many pods of each workload have a claim, by node and pod set.
    pub async fn claims(&self) -> Result<BTreeMap<(String, String, String), u32>> {
        let mut claims = BTreeMap::new();
        for node in self.mig_nodes().await? {
            for claim in node.spec.claims.iter().filter(|c| c.workload.namespace == self.namespace) {
                let key = (node.name_any(), claim.workload.name.clone(), claim.pod_set.clone());
                let pods: &mut u32 = claims.entry(key).or_default();
                *pods = (*pods).max(claim.pods);
            }
        }
        Ok(claims)
    }

    /// How many pods have a claim.
    pub async fn claimed(&self) -> Result<u32> {
        Ok(self.claims().await?.values().sum())
    }

    /// What each pod of this namespace holds, as the MIGNodes show it.
    pub async fn held(&self) -> Result<BTreeMap<String, BTreeSet<Held>>> {
        let mut held: BTreeMap<String, BTreeSet<Held>> = BTreeMap::new();
        for node in self.mig_nodes().await? {
            for slice in node.status.iter().flat_map(|s| &s.slices) {
                let Some((namespace, pod)) = slice.pod.as_deref().and_then(|pod| pod.split_once('/')) else {
                    continue;
                };
                if namespace == self.namespace {
                    let uuid = slice.uuid.clone().unwrap_or_default();
                    let slice = Held { node: node.name_any(), profile: slice.profile.clone(), uuid };
                    held.entry(pod.to_owned()).or_default().insert(slice);
                }
            }
        }
        Ok(held)
    }

    /// Waits until so many pods hold slices, and gives what they hold.
    pub async fn until_held_by(&self, pods: usize) -> Result<BTreeMap<String, BTreeSet<Held>>> {
        self.until(&format!("{pods} pods hold slices"), || async {
            Ok(Some(self.held().await?).filter(|held| held.len() == pods))
        })
        .await
    }

    /// The pods that are there, those on their way out left out.
    pub async fn staying(&self) -> Result<Vec<Pod>> {
        let pods = self.pods(&self.namespace).await?;
        Ok(pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Has a running pod come to its end: as its container would, with this exit code.
    pub async fn end_pod(&self, pod: &str, exit_code: u8) -> Result<()> {
        let ends = format!("slicegate.dev/run-seconds=0.1 slicegate.dev/exit-code={exit_code}");
        self.kubectl(&format!("annotate --overwrite pod {pod} {ends}")).await.map(drop)
    }

    /// Waits until a Job is complete.
    pub async fn until_done(&self, job: &str) -> Result<()> {
        self.until(&format!("Job {job} is complete"), || self.job_done(&self.namespace, job)).await
    }
}

/// How often GPU instances were made and destroyed on a node that is [`counted`].
pub fn calls(place: &Place, node: &str) -> Result<(u64, u64)> {
    let state = StateDir::open(gpu_state(place.rig(), node)).read()?;
    let count = |name: &str| state.calls.get(name).copied().unwrap_or(0);
    Ok((count(CREATE), count(DESTROY)))
}

const CREATE: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";
const DESTROY: &str = "nvmlGpuInstanceDestroy";

/// Has the simulator count the calls of a node: a fault that never comes makes it do so.
pub fn counted(mut node: GpuNode) -> GpuNode {
    let never = |function: &str| json!({"function": function, "nth": 1_000_000, "code": 999, "times": 1});
    node.faults.extend([never(CREATE), never(DESTROY)]);
    node
}

/// A node with one A30.
pub fn one_a30(name: &str) -> GpuNode {
    GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30")
}

/// The phase of a pod.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether our gate keeps a pod back.
pub fn is_gated(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|s| s.scheduling_gates.iter().flatten());
    gates.into_iter().any(|gate| gate.name == "slicegate.dev/claim")
}
