//! The SliceQuotaReports. The deciding task only notes that something has changed, and hands on what reports are made from when
//! it is time for new ones; a task of their own makes and writes them ([`keeper`]).
//!
//! Figures follow within [`SOON`]; what an administrator changes is answered at once.

mod gauges;
mod keeper;
mod material;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use slicegate_core::id::NodeName;
use slicegate_core::node::Node;
use tokio::sync::mpsc;

use super::Metrics;
use super::index::{Change, Index, Update};
use super::watches::follow;
use crate::api::SliceQuotaReport;
use crate::api::convert::{now, report};
use crate::runtime::Clients;
use crate::runtime::lease::Hold;
pub use gauges::Gauges;
pub use material::Material;

/// How old the figures of a report may be.
const SOON: Duration = Duration::from_secs(5);
/// How long changes of what administrators write are gathered.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Makes and writes reports from what is handed on, as long as `hold` says so.
pub async fn run(clients: Clients, metrics: Arc<Metrics>, hold: Hold, materials: mpsc::Receiver<Material>) {
    let (changes, seen) = mpsc::channel::<Change<SliceQuotaReport>>(1024);
    tokio::select! {
        () = follow(clients.watches, std::convert::identity, changes) => {}
        () = keeper::keep(clients.calls, metrics, hold, materials, seen) => {}
    }
}

/// When new reports are to be made.
pub struct Reports {
    materials: mpsc::Sender<Material>,
    /// Since when something has changed, and whether somebody waits for what comes of it.
    changed: Option<(Instant, bool)>,
    handed_on: Option<Instant>,
    /// What administrators have written, as far as it comes with figures that change all the time.
    written: BTreeMap<(&'static str, String), String>,
    /// Nodes as they were handed on last: most stay as they are.
    nodes: BTreeMap<NodeName, Arc<Node>>,
}

impl Reports {
    /// Hands on to `materials`, which takes one at a time.
    pub fn new(materials: mpsc::Sender<Material>) -> Self {
        Self { materials, changed: None, handed_on: None, written: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    /// Notes a change before it is taken in.
    pub fn note(&mut self, update: &Update) {
        let urgent = match update {
            Update::Gate(_) | Update::LimitRange(_) | Update::PriorityClass(_) => return,
            Update::Check(_) | Update::Policy(_) | Update::Flavor(_) | Update::Cohort(_) => true,
            Update::Queue(change) => self.is_written("ClusterQueue", change, generation),
            Update::LocalQueue(change) => self.is_written("LocalQueue", change, generation),
            Update::Quota(change) => self.is_written("ResourceQuota", change, report::written),
            _ => false,
        };
        let (since, before) = self.changed.unwrap_or((Instant::now(), false));
        self.changed = Some((since, urgent || before));
    }

    /// Whether a change is one of what administrators write.
    fn is_written<K: kube::Resource>(
        &mut self,
        kind: &'static str,
        change: &Change<K>,
        written: impl Fn(&K) -> String,
    ) -> bool {
        let key = |object: &K| {
            (
                kind,
                format!("{}/{}", object.meta().namespace.as_deref().unwrap_or_default(), object.name_any()),
            )
        };
        match change {
            Change::Apply(object) => {
                let text = written(object);
                self.written.insert(key(object), text.clone()) != Some(text)
            }
            Change::Delete(object) => self.written.remove(&key(object)).is_some(),
            Change::Reset(objects) => {
                let keys: BTreeSet<_> = objects.iter().map(key).collect();
                self.written.retain(|known, _| known.0 != kind || keys.contains(known));
                self.written.extend(objects.iter().map(|object| (key(object), written(object))));
                true
            }
        }
    }

    /// Hands on what reports are made from, if it is time to. Returns how long it is until then, if anything has changed.
    pub fn proceed(&mut self, index: &Index) -> Option<Duration> {
        let (since, urgent) = self.changed?;
        let pause = if urgent { AT_ONCE } else { SOON };
        let due = self.handed_on.map_or(since, |then| then + pause);
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            return Some(wait);
        }
        // Those before may still be being written.
        let Ok(place) = self.materials.try_reserve() else { return Some(AT_ONCE) };
        place.send(Material::gather(now(), index, &mut self.nodes));
        self.changed = None;
        self.handed_on = Some(Instant::now());
        None
    }
}

fn generation<K: kube::Resource>(object: &K) -> String {
    object.meta().generation.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ResourceQuota;

    use super::*;
    use crate::api::kueue;

    fn queue(generation: i64) -> kueue::ClusterQueue {
        let mut queue = kueue::ClusterQueue::new("q", kueue::ClusterQueueSpec::default());
        queue.metadata.generation = Some(generation);
        queue
    }

    fn quota(hard: &str, used: &str) -> ResourceQuota {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "gpus", "namespace": "team"},
            "spec": {"hard": {"requests.nvidia.com/mig-1g.6gb": hard}},
            "status": {"used": {"requests.nvidia.com/mig-1g.6gb": used}},
        }))
        .unwrap()
    }

    #[test]
    fn what_administrators_write_is_answered_at_once_and_figures_are_gathered() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut reports = Reports::new(sender);
        let index = Index::default();
        assert_eq!(reports.proceed(&index), None, "nothing has changed");
        let mut wait = |update: Update| {
            reports.note(&update);
            let wait = reports.proceed(&index);
            // Whatever comes of it, it has been handed on.
            _ = receiver.try_recv();
            reports.changed = None;
            wait
        };
        let apply = |generation| Update::Queue(Change::Apply(queue(generation)));
        assert_eq!(wait(apply(1)), None, "the first is handed on as it comes");
        assert!(wait(apply(2)).unwrap() <= AT_ONCE);
        let later = wait(apply(2)).unwrap();
        assert!(later > AT_ONCE && later <= SOON, "Kueue has counted: {later:?}");
        let quota = |hard, used| Update::Quota(Change::Apply(quota(hard, used)));
        assert!(wait(quota("4", "1")).unwrap() <= AT_ONCE);
        assert!(wait(quota("4", "2")).unwrap() > AT_ONCE);
        assert!(wait(quota("5", "2")).unwrap() <= AT_ONCE);
        assert!(wait(Update::Queue(Change::Delete(queue(2)))).unwrap() <= AT_ONCE);
    }

    #[test]
    fn what_nobody_takes_is_kept_back_and_not_forgotten() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut reports = Reports::new(sender);
        let index = Index::default();
        reports.note(&Update::Queue(Change::Apply(queue(1))));
        assert_eq!(reports.proceed(&index), None);
        reports.handed_on = None;
        reports.note(&Update::Queue(Change::Apply(queue(2))));
        assert_eq!(reports.proceed(&index), Some(AT_ONCE), "the one before has not been taken");
        receiver.try_recv().unwrap();
        assert_eq!(reports.proceed(&index), None);
        assert!(receiver.try_recv().is_ok());
    }
}
