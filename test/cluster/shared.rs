//! Clusters that several tests share. Each test has a place of its own in it: a namespace, nodes, and whatever queues it makes,
//! all called after it. To bring a cluster up takes longer than most tests.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate::api::MIGNode;
use slicegate::api::kueue::CheckState;
use slicegate::api::mig_node::Claim;
use slicegate_rig::operator::{GpuNode, Operator};
use slicegate_rig::{NodeSpec, Options, Rig};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, oneshot};

use crate::checker::Checker;
use crate::queues;
use crate::support::{World, job};
use crate::workload_checker::WorkloadChecker;

/// How long a cluster waits for the next test.
const LINGER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(200);

/// A cluster that is brought up for the first test that wants it, and ends soon after the last.
pub struct Shared {
    options: fn(Options) -> Options,
    home: Mutex<Option<Arc<Home>>>,
}

/// Where the cluster lives: in a thread and runtime that no test ends. The kernel ends a process with the thread that has
/// started it.
struct Home {
    dir: PathBuf,
    runtime: Handle,
    failed: AtomicBool,
}

impl Shared {
    /// A cluster with these options on top of the usual ones.
    pub const fn new(options: fn(Options) -> Options) -> Self {
        Self { options, home: Mutex::const_new(None) }
    }

    /// A place for a test, with nodes that carry the label `test` with its name.
    pub async fn place(&'static self, name: &str, nodes: Vec<GpuNode>) -> Result<Place> {
        let home = self.home().await?;
        let nodes = home.add_nodes(name, nodes).await?;
        let rig = Rig::attach(&home.dir)?;
        rig.apply_objects(vec![namespace(name)]).await?;
        let client = rig.client().await?;
        let world = World { rig, operator: Operator::find()?, client, nodes };
        let checker = Checker::start(&world);
        let workloads = WorkloadChecker::start(&world.client, name);
        Ok(Place { name: name.to_owned(), world, home, checker: Some(checker), workloads: Some(workloads) })
    }

    async fn home(&'static self) -> Result<Arc<Home>> {
        let mut home = self.home.lock().await;
        if let Some(home) = &*home {
            return Ok(home.clone());
        }
        let (ready, started) = oneshot::channel();
        std::thread::Builder::new().name("shared-cluster".to_owned()).spawn(move || {
            match Builder::new_multi_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(self.keep(ready)),
                Err(error) => drop(ready.send(Err(error.into()))),
            }
        })?;
        let new = started.await.context("the shared cluster's thread has ended")??;
        *home = Some(new.clone());
        Ok(new)
    }

    /// Keeps the cluster up as long as somebody uses it.
    async fn keep(&'static self, ready: oneshot::Sender<Result<Arc<Home>>>) {
        let world = match self.bring_up().await {
            Ok(world) => world,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let dir = world.rig.dir().to_owned();
        let home = Arc::new(Home { dir, runtime: Handle::current(), failed: AtomicBool::new(false) });
        let _ = ready.send(Ok(home.clone()));
        let mut used = Instant::now();
        loop {
            tokio::time::sleep(POLL).await;
            let mut here = self.home.lock().await;
            // This one and the one in `here` are nobody's use.
            if Arc::strong_count(&home) > 2 {
                used = Instant::now();
            } else if used.elapsed() > LINGER {
                *here = None;
                break;
            }
        }
        let ended = world.rig.down().await;
        // After a failed test the logs are wanted.
        if ended.is_ok() && !home.failed.load(Ordering::Relaxed) {
            let _ = fs::remove_dir_all(&home.dir);
        }
    }

    async fn bring_up(&self) -> Result<World> {
        let options = Options { remove_dir: false, ..Options::temporary()? };
        World::up((self.options)(options), Vec::new(), &[]).await
    }
}

impl Home {
    /// Runs something that starts processes.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.runtime.spawn(work).await?
    }

    async fn add_nodes(&self, test: &str, nodes: Vec<GpuNode>) -> Result<Vec<GpuNode>> {
        let labelled: Vec<GpuNode> = nodes
            .into_iter()
            .map(|mut node| {
                node.node = node.node.label("test", test);
                node
            })
            .collect();
        let (dir, added) = (self.dir.clone(), labelled.clone());
        self.run(async move {
            let (rig, operator) = (Rig::attach(&dir)?, Operator::find()?);
            let specs: Vec<NodeSpec> = added.iter().map(|node| node.node.clone()).collect();
            rig.add_nodes(&specs).await?;
            futures::future::try_join_all(added.iter().map(|node| operator.start_agent(&rig, node))).await?;
            Ok(())
        })
        .await?;
        Ok(labelled)
    }
}

/// A claim, as far as tests ask about it.
pub struct Claimed {
    /// The node.
    pub node: String,
    /// The reservation that it is for.
    pub attempt: String,
    /// The pods that it is for.
    pub pods: u32,
}

/// What a test has of a shared cluster. Two judges look at it all the while.
pub struct Place {
    /// The test's name, and that of its namespace.
    pub name: String,
    world: World,
    home: Arc<Home>,
    checker: Option<Checker>,
    workloads: Option<WorkloadChecker>,
}

impl Deref for Place {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Place {
    /// Adds nodes in the course of the test, with their agents.
    pub async fn add_nodes(&self, nodes: Vec<GpuNode>) -> Result<()> {
        self.home.add_nodes(&self.name, nodes).await.map(drop)
    }

    /// Makes a flavor of the test's nodes, a check with this policy, a ClusterQueue with these quotas by profile, all called
    /// after the test, and the LocalQueue `mig`.
    pub async fn queue(&self, policy: Value, quotas: &[(&str, u32)]) -> Result<()> {
        let name = self.name.as_str();
        let mut objects = queues::check(name, &policy);
        objects.push(queues::flavor(name, &json!({"test": name})));
        objects.push(queues::cluster_queue(name, &[name], &[(name, quotas)]));
        objects.push(queues::local_queue(name, "mig", name));
        self.rig.apply_objects(objects).await
    }

    /// A Job in the LocalQueue `mig`, each pod asking for slices; it runs until it is stopped.
    pub fn job(&self, name: &str, pods: u32, slices: &[(&str, u32)]) -> Value {
        job(&self.name, name, pods, slices, "1000")
    }

    /// State and message of the check called after the test, on a Job's workload.
    pub async fn told(&self, owner: &str) -> Result<Option<(CheckState, String)>> {
        let status = self.workload_of(&self.name, owner).await?.and_then(|w| w.status);
        let check = status.and_then(|s| s.admission_checks.into_iter().find(|c| c.name == self.name));
        Ok(check.map(|c| (c.state, c.message)))
    }

    /// Waits until a Job's pods run, all of them; gives the uid of its Workload.
    pub async fn until_running(&self, job: &str, pods: usize) -> Result<String> {
        self.until(&format!("{job} runs"), || async { Ok(self.running(job).await?.len() == pods) }).await?;
        let workload = self.workload_of(&self.name, job).await?;
        workload.and_then(|w| w.metadata.uid).context("a Workload")
    }

    /// The pods of a Job that run, being deleted or not.
    pub async fn running(&self, job: &str) -> Result<Vec<Pod>> {
        let mut pods = self.pods(&self.name).await?;
        pods.retain(|pod| {
            pod.owner_references().iter().any(|o| o.name == job)
                && pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        });
        Ok(pods)
    }

    /// The claims of a Workload.
    pub async fn claims(&self, uid: &str) -> Result<Vec<Claimed>> {
        let nodes = self.mig_nodes().await?;
        let claims = nodes.iter().flat_map(|node| node.spec.claims.iter().map(move |claim| (node, claim)));
        let mine = claims.filter(|(_, claim)| claim.workload.uid == uid);
        let claimed = |(node, claim): (&MIGNode, &Claim)| Claimed {
            node: node.name_any(),
            attempt: claim.attempt.clone(),
            pods: claim.pods,
        };
        Ok(mine.map(claimed).collect())
    }

    /// The judge of what is said to Kueue.
    pub fn workloads(&self) -> &WorkloadChecker {
        self.workloads.as_ref().expect("it judges until the end")
    }

    /// Waits until none of the nodes is claimed and no pod holds a slice of one.
    pub async fn until_released(&self) -> Result<()> {
        self.until("all claims and slices are released", || async {
            let mut nodes = self.mig_nodes().await?;
            nodes.retain(|n| self.nodes.iter().any(|mine| n.metadata.name.as_deref() == Some(mine.name())));
            Ok(nodes.iter().all(|n| {
                n.spec.claims.is_empty() && n.status.iter().flat_map(|s| &s.slices).all(|s| s.pod.is_none())
            }))
        })
        .await
    }

    /// Leaves, and fails if a judge has found anything wrong. What runs is deleted.
    pub async fn leave(mut self) -> Result<()> {
        if let Some(workloads) = self.workloads.take() {
            workloads.finish().await?;
        }
        if let Some(checker) = self.checker.take() {
            checker.finish(&self.world).await?;
        }
        let agents = self.world.nodes.iter().map(|node| format!("agent-{}", node.name()));
        for agent in agents.filter_map(|name| self.world.rig.process(&name)) {
            // Nothing of this test goes on; who comes later has nodes of its own.
            agent.signal(slicegate_rig::Signal::KILL);
        }
        self.world.rig.kubectl(["delete", "namespace", &self.name, "--wait=false"]).await.map(drop)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() || self.checker.is_some() {
            self.home.failed.store(true, Ordering::Relaxed);
        }
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}
