//! `--kubelet=none`: the agent plays the kubelet's device manager.
//!
//! On an emulated node no kubelet hands devices to containers. The agent then watches the pods bound to its node and gives
//! each a slice of what it asks for, as a device plugin's Allocate would, and takes it back when the pod is over.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use slicegate_core::agent;
use slicegate_core::geometry::Place;
use slicegate_core::id::PodUid;
use slicegate_core::profile::ProfileName;
use tokio::sync::mpsc;
use tracing::warn;

use super::{Open, Shown};
use crate::agent::state::Message;
use crate::api::convert::workload::pod_demand;

/// A live pod and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// `namespace/name`.
    pub name: String,
    /// Slices of each profile.
    pub slices: BTreeMap<ProfileName, u32>,
}

/// The live pods of the node that ask for slices.
pub type Holders = BTreeMap<PodUid, Holder>;

/// Follows the pods bound to `node`, sending the whole set at every change.
pub async fn follow(client: Client, node: &str, messages: mpsc::Sender<Message>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client), config).default_backoff());
    let mut live = Holders::new();
    let mut listed = Holders::new();
    loop {
        match events.try_next().await {
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "watch of the node's pods interrupted; trying again");
                continue;
            }
            Ok(Some(watcher::Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(watcher::Event::InitApply(pod))) => {
                listed.extend(holder(&pod));
                continue;
            }
            Ok(Some(watcher::Event::InitDone)) => live = std::mem::take(&mut listed),
            Ok(Some(watcher::Event::Delete(pod))) => {
                if live.remove(&uid(&pod)).is_none() {
                    continue;
                }
            }
            Ok(Some(watcher::Event::Apply(pod))) => {
                let (uid, now) = (uid(&pod), holder(&pod));
                if live.get(&uid) == now.as_ref().map(|(_, holder)| holder) {
                    continue;
                }
                live.remove(&uid);
                live.extend(now);
            }
        }
        if messages.send(Message::Pods(live.clone())).await.is_err() {
            return;
        }
    }
}

fn uid(pod: &Pod) -> PodUid {
    pod.uid().unwrap_or_default().into()
}

fn holder(pod: &Pod) -> Option<(PodUid, Holder)> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let (slices, _) = pod_demand(pod.spec.as_ref()?).ok()?;
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    (!slices.is_empty()).then(|| (uid(pod), Holder { name, slices }))
}

/// Which pod holds which slice.
#[derive(Debug, Default)]
struct Bindings(BTreeMap<Place, (PodUid, String)>);

/// The kubelet's stand-in.
#[derive(Debug, Default)]
pub struct StandIn {
    holders: Option<Holders>,
    /// Which pod had which slice by the MIGNode, when this agent started.
    before: BTreeMap<Place, String>,
    bindings: Bindings,
}

impl StandIn {
    /// Whether the pods have been seen.
    pub fn knows_enough(&self) -> bool {
        self.holders.is_some()
    }

    /// Takes in the live pods of the node.
    pub fn set_holders(&mut self, holders: Holders) {
        self.holders = Some(holders);
    }

    /// Takes in which pod had which slice before this agent started.
    pub fn set_before(&mut self, before: BTreeMap<Place, String>) {
        self.before = before;
    }

    /// What holds a slice.
    pub fn holder(&self, place: &Place) -> Option<agent::Holder> {
        self.bindings.holder(place).map(|name| agent::Holder::Pod(name.to_owned()))
    }

    /// Gives the slices to the pods that ask for them; what is offered is there at once.
    pub fn offer(&mut self, open: &Open, capacity: &BTreeMap<ProfileName, u32>) -> Shown {
        let places: Vec<Place> = open.0.iter().map(|(place, ..)| place.clone()).collect();
        if let Some(holders) = &self.holders {
            self.bindings.update(holders, &places);
        }
        let mut allocatable: BTreeMap<ProfileName, u32> = capacity.keys().map(|p| (p.clone(), 0)).collect();
        for place in places {
            *allocatable.entry(place.slice.profile).or_default() += 1;
        }
        let settled = allocatable.keys().cloned().collect();
        Shown { known: true, capacity: capacity.clone(), settled, allocatable }
    }

    /// Gives back to the pods what they had before, before it is first decided what may go.
    pub fn settle(&mut self) {
        if let Some(holders) = &self.holders {
            self.bindings.restore(holders, &std::mem::take(&mut self.before));
            self.bindings.forget(holders);
        }
    }
}

impl Bindings {
    /// What holds a slice.
    fn holder(&self, place: &Place) -> Option<&str> {
        self.0.get(place).map(|(_, name)| name.as_str())
    }

    /// Gives slices back to the live pods that had them by `before`, which says so by `namespace/name`: wanted or not, for
    /// a slice in a pod's hands must not go.
    fn restore(&mut self, pods: &Holders, before: &BTreeMap<Place, String>) {
        for (place, name) in before {
            let Some((uid, pod)) = pods.iter().find(|(_, pod)| pod.name == *name) else { continue };
            let due = pod.slices.get(&place.slice.profile).copied().unwrap_or(0);
            if self.held(uid, &place.slice.profile) < due {
                self.0.entry(place.clone()).or_insert_with(|| (uid.clone(), name.clone()));
            }
        }
    }

    /// Takes slices back from pods that are over.
    fn forget(&mut self, pods: &Holders) {
        self.0.retain(|_, (uid, _)| pods.contains_key(uid));
    }

    /// Takes slices back from pods that are over and gives slices to those that have too few, out of `open`, in its order.
    fn update(&mut self, pods: &Holders, open: &[Place]) {
        self.forget(pods);
        for (uid, pod) in pods {
            for (profile, count) in &pod.slices {
                let missing = count.saturating_sub(self.held(uid, profile));
                let taken: Vec<_> = open
                    .iter()
                    .filter(|place| place.slice.profile == *profile && !self.0.contains_key(place))
                    .take(usize::try_from(missing).unwrap_or(usize::MAX))
                    .cloned()
                    .collect();
                self.0.extend(taken.into_iter().map(|place| (place, (uid.clone(), pod.name.clone()))));
            }
        }
    }

    /// How many slices of a profile a pod holds.
    fn held(&self, pod: &PodUid, profile: &ProfileName) -> u32 {
        let held = self.0.iter().filter(|(place, (uid, _))| uid == pod && place.slice.profile == *profile);
        u32::try_from(held.count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use slicegate_core::geometry::Slice;

    use super::*;

    fn place(index: u32, start: u8, profile: &str) -> Place {
        let slice = Slice { start, size: 1, profile: profile.parse().unwrap() };
        Place { gpu: format!("GPU-{index}").into(), slice }
    }

    fn pod(name: &str, profile: &str, count: u32) -> (PodUid, Holder) {
        let slices = BTreeMap::from([(profile.parse().unwrap(), count)]);
        (name.into(), Holder { name: format!("team/{name}"), slices })
    }

    fn holders(bindings: &Bindings, free: &[Place]) -> Vec<Option<String>> {
        free.iter().map(|p| bindings.holder(p).map(str::to_owned)).collect()
    }

    #[test]
    fn pods_get_as_many_as_they_ask_for_and_give_them_back() {
        let free = Vec::from([
            place(0, 0, "1g.10gb"),
            place(0, 1, "1g.10gb"),
            place(1, 0, "1g.10gb"),
            place(1, 4, "3g.40gb"),
        ]);
        let mut bindings = Bindings::default();
        bindings.update(&[pod("a", "1g.10gb", 2)].into(), &free);
        let a = || Some("team/a".to_owned());
        assert_eq!(holders(&bindings, &free), [a(), a(), None, None]);
        bindings.update(&[pod("a", "1g.10gb", 2), pod("b", "1g.10gb", 2)].into(), &free);
        assert_eq!(
            holders(&bindings, &free),
            [a(), a(), Some("team/b".to_owned()), None],
            "one more than there are"
        );
        bindings.update(&[pod("b", "1g.10gb", 2)].into(), &free);
        let b = || Some("team/b".to_owned());
        assert_eq!(holders(&bindings, &free), [b(), None, b(), None]);
    }

    #[test]
    fn after_a_restart_each_pod_has_the_slice_that_it_had() {
        let free = Vec::from([place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb")]);
        let names = ["team/b", "team/a"];
        let before = free.iter().zip(names).map(|(p, n)| (p.clone(), n.to_owned())).collect();
        let pods = [pod("a", "1g.10gb", 1), pod("b", "1g.10gb", 1)].into();
        let mut bindings = Bindings::default();
        bindings.restore(&pods, &before);
        bindings.update(&pods, &free);
        assert_eq!(holders(&bindings, &free), names.map(|n| Some(n.to_owned())));
    }

    #[test]
    fn after_a_restart_a_pod_still_holds_a_slice_that_is_no_longer_wanted() {
        let held = place(0, 0, "1g.10gb");
        let before = BTreeMap::from([(held.clone(), "team/a".to_owned())]);
        let mut bindings = Bindings::default();
        let pods = [pod("a", "1g.10gb", 1)].into();
        bindings.restore(&pods, &before);
        bindings.update(&pods, &[]);
        assert_eq!(bindings.holder(&held), Some("team/a"));
        bindings.update(&Holders::new(), &[]);
        assert_eq!(bindings.holder(&held), None);
    }

    #[test]
    fn a_pod_gets_back_no_more_than_it_asks_for() {
        let free = Vec::from([place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"), place(0, 4, "3g.40gb")]);
        let before = free.iter().map(|p| (p.clone(), "team/a".to_owned())).collect();
        let mut bindings = Bindings::default();
        bindings.restore(&[pod("a", "1g.10gb", 1)].into(), &before);
        assert_eq!(holders(&bindings, &free), [Some("team/a".to_owned()), None, None]);
    }
}
