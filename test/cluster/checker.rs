//! An independent judge: it knows MIGNodes, pods and the GPUs' real state, and nothing of how the operator decides.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use nvml_sim::{Instance, StateDir};
use slicegate::api::MIGNode;
use slicegate_rig::{Rig, schedulable};
use tokio::task::JoinHandle;

use crate::support::World;

/// Slices of each profile, per node.
type Counts = BTreeMap<(String, String), usize>;

/// A judge at work.
pub struct Checker {
    judge: Judge,
    task: JoinHandle<()>,
    found: Arc<Mutex<Findings>>,
}

#[derive(Default)]
struct Findings {
    looks: usize,
    violations: BTreeSet<String>,
}

#[derive(Clone)]
struct Judge {
    client: Client,
    /// A folder per node, with what the simulator keeps of its GPUs.
    gpus: PathBuf,
}

impl Checker {
    /// Begins to judge at every change of a MIGNode or a pod.
    pub fn start<R: Borrow<Rig>>(world: &World<R>) -> Self {
        let judge = Judge { client: world.client.clone(), gpus: world.rig.borrow().dir().join("gpus") };
        let found = Arc::new(Mutex::new(Findings::default()));
        let (worker, findings) = (judge.clone(), found.clone());
        let task = tokio::spawn(async move {
            let nodes = watcher(Api::<MIGNode>::all(worker.client.clone()), watcher::Config::default())
                .default_backoff()
                .map(|_| ());
            let pods = watcher(Api::<Pod>::all(worker.client.clone()), watcher::Config::default())
                .default_backoff()
                .map(|_| ());
            let mut changes = std::pin::pin!(stream::select(nodes, pods).ready_chunks(1000));
            while changes.next().await.is_some() {
                let verdict = worker.look().await;
                let mut findings = findings.lock().unwrap();
                findings.looks += 1;
                match verdict {
                    Ok(violations) => findings.violations.extend(violations),
                    // The API server may be busy; what it does not answer cannot be judged.
                    Err(error) => eprintln!("checker: {error:#}"),
                }
            }
        });
        Self { judge, task, found }
    }

    /// What has been wrong so far.
    pub fn violations(&self) -> Vec<String> {
        self.found.lock().unwrap().violations.iter().cloned().collect()
    }

    /// Ends, and fails if anything was ever wrong, or is left at the end.
    pub async fn finish<R: Borrow<Rig>>(self, world: &World<R>) -> Result<usize> {
        self.task.abort();
        let last = self.judge.look().await?;
        // Reported and real slices agree once all is quiet, to the last one.
        world
            .until("MIGNodes show exactly the instances that there are", || async {
                let nodes = world.mig_nodes().await?;
                let shown: BTreeSet<_> = nodes
                    .iter()
                    .flat_map(|n| n.status.iter().flat_map(|s| &s.slices))
                    .map(|s| (s.gpu.clone(), s.profile.clone(), u32::from(s.start)))
                    .collect();
                let real: BTreeSet<_> = self
                    .judge
                    .instances()?
                    .into_values()
                    .flatten()
                    .map(|i| (i.gpu_uuid, i.profile, i.start))
                    .collect();
                Ok(shown == real)
            })
            .await?;
        let findings = self.found.lock().unwrap();
        let violations: Vec<_> = findings.violations.iter().cloned().chain(last).collect();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
        assert!(findings.looks > 10, "the checker has hardly looked: {} times", findings.looks);
        Ok(findings.looks)
    }
}

impl Judge {
    async fn look(&self) -> Result<Vec<String>> {
        let pods = Api::<Pod>::all(self.client.clone());
        // What is over holds nothing, and there is much of it.
        let live = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        let before = holders(&pods.list(&live).await?.items);
        let instances = self.instances()?;
        let nodes = Api::<MIGNode>::all(self.client.clone()).list(&ListParams::default()).await?.items;
        let after = holders(&pods.list(&live).await?.items);

        let mut violations = Vec::new();
        for (node, instances) in &instances {
            for (gpu, mine) in by(instances, |i| i.gpu_uuid.clone()) {
                let places = mine.iter().map(|i| (i.profile.clone(), i.start, i.size));
                violations.extend(overlaps(places).map(|o| format!("GPU {gpu} of {node}, in NVML: {o}")));
            }
        }
        for node in &nodes {
            let name = node.name_any();
            for gpu in &node.spec.gpus {
                let places = gpu.slices.iter().map(|s| (s.profile.clone(), s.start.into(), s.size.into()));
                violations
                    .extend(overlaps(places).map(|o| format!("GPU {} of {name}, in spec: {o}", gpu.uuid)));
            }
            let existing: Vec<_> =
                node.status.iter().flat_map(|s| &s.slices).filter(|s| s.gpu_instance_id.is_some()).collect();
            for (gpu, mine) in by(&existing, |s| s.gpu.clone()) {
                let places = mine.iter().map(|s| (s.profile.clone(), s.start.into(), s.size.into()));
                violations.extend(overlaps(places).map(|o| format!("GPU {gpu} of {name}, in status: {o}")));
            }
        }
        // A pod that was there before and after GPUs and claims were read was there when they were read.
        let (mut held, mut staying) = (Counts::new(), Counts::new());
        for (_, holder) in before.iter().filter(|(uid, _)| after.contains_key(*uid)) {
            for (place, count) in &holder.slices {
                *held.entry(place.clone()).or_default() += count;
                if !holder.deleting {
                    *staying.entry(place.clone()).or_default() += count;
                }
            }
        }
        for ((node, profile), count) in &held {
            let (node, profile, count) = (node.clone(), profile.clone(), *count);
            let there =
                instances.get(&node).map_or(0, |all| all.iter().filter(|i| i.profile == profile).count());
            if count > there {
                violations.push(format!("{node}: pods hold {count} × {profile}, but there are {there}"));
            }
        }
        for (place, mut count) in held {
            // Of one that is on its way out, a node that is lost may take the claim along.
            if self.is_lost(&place.0).await? {
                count = staying.get(&place).copied().unwrap_or(0);
            }
            let (node, profile) = place;
            let claims = nodes.iter().filter(|n| n.name_any() == node).flat_map(|n| &n.spec.claims);
            let claimed: u32 = claims.filter(|c| c.profile == profile).map(|c| c.slices).sum();
            if count > usize::try_from(claimed)? {
                violations.push(format!("{node}: pods hold {count} × {profile}, but {claimed} are claimed"));
            }
        }
        Ok(violations)
    }

    /// Whether nobody will ever say what became of the pods of a node.
    async fn is_lost(&self, node: &str) -> Result<bool> {
        let node = Api::<Node>::all(self.client.clone()).get_opt(node).await?;
        Ok(node.is_none_or(|node| !schedulable(&node)))
    }

    fn instances(&self) -> Result<BTreeMap<String, Vec<Instance>>> {
        let mut instances = BTreeMap::new();
        for entry in std::fs::read_dir(&self.gpus)? {
            let folder = entry?.path();
            if folder.join("state.json").is_file() {
                let node = folder.file_name().unwrap().to_string_lossy().into_owned();
                instances.insert(node, StateDir::open(folder).instances()?);
            }
        }
        Ok(instances)
    }
}

/// A live pod that is bound to a node, and what it holds there.
struct Holding {
    slices: Counts,
    deleting: bool,
}

/// The holders of slices, by uid.
fn holders(pods: &[Pod]) -> BTreeMap<String, Holding> {
    let mut holders = BTreeMap::new();
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let Some(spec) = pod.spec.as_ref().filter(|_| !matches!(phase, "Succeeded" | "Failed")) else {
            continue;
        };
        let Some(node) = &spec.node_name else { continue };
        let mut slices = Counts::new();
        for container in &spec.containers {
            let limits = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
            for (name, quantity) in limits {
                if let Some(profile) = name.strip_prefix("nvidia.com/mig-") {
                    let count = quantity.0.parse::<usize>().unwrap();
                    *slices.entry((node.clone(), profile.replace(".me", "+me"))).or_default() += count;
                }
            }
        }
        if !slices.is_empty() {
            let deleting = pod.metadata.deletion_timestamp.is_some();
            holders.insert(pod.uid().unwrap(), Holding { slices, deleting });
        }
    }
    holders
}

fn by<T, K: Ord>(items: &[T], key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<&T>> {
    let mut groups: BTreeMap<K, Vec<&T>> = BTreeMap::new();
    for item in items {
        groups.entry(key(item)).or_default().push(item);
    }
    groups
}

fn overlaps(places: impl Iterator<Item = (String, u32, u32)>) -> impl Iterator<Item = String> {
    let mut places: Vec<_> = places.collect();
    places.sort_by_key(|(_, start, _)| *start);
    let clashes: Vec<String> = places
        .windows(2)
        .filter(|pair| pair[0].1 + pair[0].2 > pair[1].1)
        .map(|pair| format!("{} at {} overlaps {} at {}", pair[0].0, pair[0].1, pair[1].0, pair[1].1))
        .collect();
    clashes.into_iter()
}
