//! When each workload reached each phase, by the arrival of watch events.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use slicegate::api::{MIGNode, kueue};

use crate::watch::{Watches, watch};

/// How far a workload has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Kueue knows it.
    Queued,
    /// It has quota.
    Reserved,
    /// Its slices are claimed in the MIGNodes.
    Claimed,
    /// Its slices are there; our check says Ready.
    Ready,
    /// All its pods run, or have run.
    Running,
    /// It is finished.
    Finished,
    /// Nothing is claimed for it any more.
    Released,
}

/// All phases, in order.
pub const PHASES: [Phase; 7] = [
    Phase::Queued,
    Phase::Reserved,
    Phase::Claimed,
    Phase::Ready,
    Phase::Running,
    Phase::Finished,
    Phase::Released,
];

#[derive(Default)]
struct Track {
    uid: String,
    pods: usize,
    reached: BTreeMap<Phase, Instant>,
    message: String,
}

#[derive(Default)]
struct Known {
    tracks: BTreeMap<String, Track>,
    order: Vec<String>,
    running: BTreeMap<String, (String, bool)>,
    nodes: BTreeMap<String, MIGNode>,
    changes: u64,
}

/// What has happened so far. Clones share it.
#[derive(Clone)]
pub struct Timeline {
    known: Arc<Mutex<Known>>,
    begun: Instant,
    _watches: Arc<Watches>,
}

impl Timeline {
    /// Follows the workloads of a namespace from now on.
    pub fn follow(client: Client, namespace: &str) -> Self {
        let known = Arc::new(Mutex::new(Known::default()));
        let watches = vec![
            watch(
                Api::<kueue::Workload>::namespaced(client.clone(), namespace),
                known.clone(),
                Known::workload,
                |_, _| {},
            ),
            watch(Api::<Pod>::namespaced(client.clone(), namespace), known.clone(), Known::pod, |k, p| {
                k.changes += 1;
                let uid = p.uid().unwrap_or_default();
                if let Some((_, ran)) = k.running.get_mut(&uid) {
                    *ran = true;
                }
            }),
            watch(Api::<MIGNode>::all(client), known.clone(), Known::node, |_, _| {}),
        ];
        Self { known, begun: Instant::now(), _watches: Arc::new(Watches(watches)) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the workload of this Job or pod has reached the phase.
    pub fn reached(&self, owner: &str, phase: Phase) -> bool {
        self.known().tracks.get(owner).is_some_and(|t| t.reached.contains_key(&phase))
    }

    /// Milliseconds from one phase to another, for each workload whose owner's name begins so.
    pub fn between(&self, prefix: &str, from: Phase, to: Phase) -> Vec<u128> {
        self.known()
            .tracks
            .iter()
            .filter(|(owner, _)| owner.starts_with(prefix))
            .filter_map(|(_, t)| Some(t.reached.get(&to)?.duration_since(*t.reached.get(&from)?).as_millis()))
            .collect()
    }

    /// How many workloads whose owner's name begins so have reached the phase.
    pub fn count(&self, prefix: &str, phase: Phase) -> usize {
        let known = self.known();
        known.tracks.iter().filter(|(o, t)| o.starts_with(prefix) && t.reached.contains_key(&phase)).count()
    }

    /// A counter that grows with every change.
    pub fn changes(&self) -> u64 {
        self.known().changes
    }

    /// The MIGNodes as they are now.
    pub fn nodes(&self) -> Vec<MIGNode> {
        self.known().nodes.values().cloned().collect()
    }

    /// Each workload with the phase that it is in, since when, and what our check says.
    pub fn now(&self) -> Vec<(String, usize, Phase, f64, String)> {
        let known = self.known();
        let tracks = known.order.iter().filter_map(|owner| Some((owner, known.tracks.get(owner)?)));
        tracks
            .filter_map(|(owner, track)| {
                let (phase, at) = track.reached.iter().next_back()?;
                let at = at.duration_since(self.begun).as_secs_f64();
                let waits = *phase < Phase::Ready;
                let message = if waits { track.message.clone() } else { String::new() };
                Some((owner.clone(), track.pods, *phase, at, message))
            })
            .collect()
    }

    /// The time of each phase of each workload.
    pub fn table(&self) -> String {
        let known = self.known();
        let mut head = vec!["WORKLOAD".to_owned(), "PODS".to_owned()];
        head.extend(PHASES.iter().map(|phase| format!("{phase:?}").to_uppercase()));
        let mut rows = vec![head];
        for owner in &known.order {
            let Some(track) = known.tracks.get(owner) else { continue };
            let mut row = vec![owner.clone(), track.pods.to_string()];
            let mut before: Option<Instant> = None;
            for phase in PHASES {
                let at = track.reached.get(&phase).copied();
                let since = at.map(|at| at.saturating_duration_since(before.unwrap_or(at)).as_millis());
                row.push(since.map_or_else(|| "-".to_owned(), |ms| ms.to_string()));
                before = at.or(before);
            }
            rows.push(row);
        }
        let mut text = String::new();
        for row in rows {
            let _ = write!(text, "{:<12}", row[0]);
            for cell in &row[1..] {
                let _ = write!(text, "{cell:>9}");
            }
            text.push('\n');
        }
        text
    }
}

impl Known {
    fn workload(&mut self, workload: &kueue::Workload) {
        self.changes += 1;
        let Some(owner) = workload.owner_references().first().map(|o| o.name.clone()) else { return };
        let uid = workload.uid().unwrap_or_default();
        if !self.tracks.contains_key(&owner) {
            self.order.push(owner.clone());
        }
        let track = self.tracks.entry(owner).or_default();
        track.uid = uid;
        track.pods = workload.spec.pod_sets.iter().filter_map(|p| usize::try_from(p.count).ok()).sum();
        let status = workload.status.clone().unwrap_or_default();
        let has = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "True");
        track.mark(Phase::Queued, true);
        track.mark(Phase::Reserved, has("QuotaReserved"));
        if let Some(check) = status.admission_checks.first() {
            track.message.clone_from(&check.message);
            track.mark(Phase::Ready, check.state == kueue::CheckState::Ready);
        }
        track.mark(Phase::Finished, has("Finished"));
        self.released();
    }

    fn pod(&mut self, pod: &Pod) {
        self.changes += 1;
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let Some(workload) = pod.labels().get("slicegate.dev/workload") else { return };
        let ran = matches!(phase, "Running" | "Succeeded");
        self.running.insert(pod.uid().unwrap_or_default(), (workload.clone(), ran));
        let count = self.running.values().filter(|(w, ran)| w == workload && *ran).count();
        if let Some(track) = self.tracks.values_mut().find(|t| t.uid == *workload) {
            let all = track.pods > 0 && count >= track.pods;
            track.mark(Phase::Running, all);
        }
    }

    fn node(&mut self, node: &MIGNode) {
        self.changes += 1;
        self.nodes.insert(node.name_any(), node.clone());
        for track in self.tracks.values_mut() {
            let claimed =
                self.nodes.values().flat_map(|n| &n.spec.claims).filter(|c| c.workload.uid == track.uid);
            let pods: u32 = claimed.map(|c| c.pods).sum();
            track.mark(Phase::Claimed, track.pods > 0 && usize::try_from(pods).unwrap_or(0) >= track.pods);
        }
        self.released();
    }

    fn released(&mut self) {
        for track in self.tracks.values_mut() {
            let over =
                track.reached.contains_key(&Phase::Finished) && track.reached.contains_key(&Phase::Claimed);
            let left = self.nodes.values().flat_map(|n| &n.spec.claims).any(|c| c.workload.uid == track.uid);
            track.mark(Phase::Released, over && !left);
        }
    }
}

impl Track {
    fn mark(&mut self, phase: Phase, reached: bool) {
        if reached {
            self.reached.entry(phase).or_insert_with(Instant::now);
        }
    }
}
