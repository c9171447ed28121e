//! When each workload got how far, by the arrival of watch events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use slicegate::api::mig_node::SliceState;
use slicegate::api::{MIGNode, kueue};

use super::stage::NAMESPACE;
use crate::watch::{Watches, watch};

/// When a workload got how far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Track {
    /// It has quota.
    pub reserved: Option<Instant>,
    /// Its check, if it has one, says Ready.
    pub ready: Option<Instant>,
    /// Kueue has admitted it.
    pub admitted: Option<Instant>,
}

#[derive(Default)]
struct Known {
    tracks: BTreeMap<String, Track>,
    workloads: BTreeSet<String>,
    /// By uid: the Job, and whether it runs.
    pods: BTreeMap<String, (String, bool)>,
    /// When the last pod of a Job came to its end.
    ended: BTreeMap<String, Instant>,
    nodes: BTreeMap<String, MIGNode>,
}

/// What has been seen of the namespace and the MIGNodes.
pub struct Observer {
    known: Arc<Mutex<Known>>,
    _watches: Watches,
}

impl Observer {
    /// Watches from now on.
    pub fn new(client: &Client) -> Self {
        let known = Arc::new(Mutex::new(Known::default()));
        let watches = vec![
            watch(
                Api::<kueue::Workload>::namespaced(client.clone(), NAMESPACE),
                known.clone(),
                Known::workload,
                |known, workload| {
                    known.workloads.remove(&workload.uid().unwrap_or_default());
                },
            ),
            watch(
                Api::<Pod>::namespaced(client.clone(), NAMESPACE),
                known.clone(),
                Known::pod,
                |known, pod| {
                    known.pods.remove(&pod.uid().unwrap_or_default());
                    known.end(pod);
                },
            ),
            watch(
                Api::<MIGNode>::all(client.clone()),
                known.clone(),
                |known, node| {
                    known.nodes.insert(node.name_any(), node.clone());
                },
                |_, _| {},
            ),
        ];
        Self { known, _watches: Watches(watches) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets how far workloads got.
    pub fn begin(&self) {
        let mut known = self.known();
        known.tracks.clear();
        known.ended.clear();
    }

    /// How far the workload of this Job got.
    pub fn track(&self, job: &str) -> Track {
        self.known().tracks.get(job).copied().unwrap_or_default()
    }

    /// How many workloads have been admitted.
    pub fn admitted(&self) -> usize {
        self.known().tracks.values().filter(|track| track.admitted.is_some()).count()
    }

    /// How many pods run.
    pub fn running(&self) -> usize {
        self.known().pods.values().filter(|(_, runs)| *runs).count()
    }

    /// How many pods of this Job run.
    pub fn running_of(&self, job: &str) -> usize {
        self.known().pods.values().filter(|(of, runs)| of == job && *runs).count()
    }

    /// How many slices pods have.
    pub fn in_use(&self) -> usize {
        let known = self.known();
        let slices = known.nodes.values().flat_map(|n| n.status.iter().flat_map(|s| &s.slices));
        slices.filter(|slice| slice.state == SliceState::InUse).count()
    }

    /// When the last pod of this Job came to its end.
    pub fn ended(&self, job: &str) -> Option<Instant> {
        self.known().ended.get(job).copied()
    }

    /// Whether no workload, pod and claim is left, and no slice in use or on its way.
    pub fn is_empty(&self) -> bool {
        let known = self.known();
        let slices = || known.nodes.values().flat_map(|n| n.status.iter().flat_map(|s| &s.slices));
        known.workloads.is_empty()
            && known.pods.is_empty()
            && known.nodes.values().all(|node| node.spec.claims.is_empty())
            && slices().all(|slice| slice.state == SliceState::Idle)
            && known.nodes.values().all(has_caught_up)
    }

    /// Whether no slice is left, wanted or there.
    pub fn is_without_slices(&self) -> bool {
        let known = self.known();
        known.nodes.values().all(|node| {
            node.spec.gpus.iter().all(|gpu| gpu.slices.is_empty())
                && node.status.as_ref().is_none_or(|status| status.slices.is_empty())
        })
    }
}

fn has_caught_up(node: &MIGNode) -> bool {
    node.status.as_ref().and_then(|s| s.observed_generation) >= node.metadata.generation
}

impl Known {
    fn workload(&mut self, workload: &kueue::Workload) {
        let Some(owner) = workload.owner_references().first().map(|o| o.name.clone()) else { return };
        self.workloads.insert(workload.uid().unwrap_or_default());
        let track = self.tracks.entry(owner).or_default();
        let Some(status) = &workload.status else { return };
        let has = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "True");
        let is_ready = !status.admission_checks.is_empty()
            && status.admission_checks.iter().all(|check| check.state == kueue::CheckState::Ready);
        let now = Instant::now();
        let mark = |at: &mut Option<Instant>, holds: bool| {
            if holds && at.is_none() {
                *at = Some(now);
            }
        };
        mark(&mut track.reserved, has("QuotaReserved"));
        mark(&mut track.ready, is_ready);
        mark(&mut track.admitted, has("Admitted"));
    }

    fn pod(&mut self, pod: &Pod) {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let job = job_of(pod);
        self.pods.insert(pod.uid().unwrap_or_default(), (job, phase == "Running"));
        if matches!(phase, "Succeeded" | "Failed") {
            self.end(pod);
        }
    }

    /// Notes the end of a pod, if no other pod of its Job runs.
    fn end(&mut self, pod: &Pod) {
        let job = job_of(pod);
        if !self.pods.values().any(|(of, runs)| *of == job && *runs) {
            self.ended.entry(job).or_insert_with(Instant::now);
        }
    }
}

fn job_of(pod: &Pod) -> String {
    pod.labels().get("batch.kubernetes.io/job-name").cloned().unwrap_or_default()
}
