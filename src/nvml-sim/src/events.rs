//! What the driver tells those who wait: the content of `events.json`, and who has heard how much of it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::state::{Gpu, State};

/// `nvmlEventTypeXidCriticalError`
const XID: u64 = 0x8;
/// `nvmlEventMigConfigChange`
const MIG_CONFIG_CHANGE: u64 = 0x100;
/// What can be waited for.
pub(crate) const SUPPORTED: u64 = XID | MIG_CONFIG_CHANGE;
/// How many events are kept for those who are slow to ask.
const KEPT: usize = 64;

/// Something that happened to a GPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Event {
    /// The NVML index of the GPU.
    pub gpu: u32,
    /// One bit of `nvmlEventType*`.
    pub event_type: u64,
    /// The XID.
    pub data: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_instance_id: Option<u32>,
}

impl Event {
    pub(crate) fn xid(
        gpu: u32,
        xid: u64,
        gpu_instance_id: Option<u32>,
        compute_instance_id: Option<u32>,
    ) -> Self {
        Self { gpu, event_type: XID, data: xid, gpu_instance_id, compute_instance_id }
    }
}

/// The latest events of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Events {
    /// How many there have ever been: the number of the next one.
    pub next: u64,
    recent: VecDeque<Event>,
}

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        self.next += 1;
        self.recent.push_back(event);
        if self.recent.len() > KEPT {
            self.recent.pop_front();
        }
    }

    /// Those from a number on, with their numbers, as far as they are kept.
    fn since(&self, number: u64) -> impl Iterator<Item = (u64, &Event)> {
        let first = self.next - self.recent.len() as u64;
        (first..).zip(&self.recent).filter(move |(n, _)| *n >= number)
    }
}

/// A GPU whose instances are others than before has changed its MIG configuration. nvml.h does not say whether the session
/// that made the change hears of it, too; here it does, which is harder on clients.
pub(crate) fn mig_config_changes(before: &State, after: &State) -> Vec<Event> {
    let instances = |gpu: &Gpu| -> Vec<(u32, Vec<String>)> {
        let computes =
            |gi: &crate::state::GpuInstance| gi.compute_instances.iter().map(|c| c.uuid.clone()).collect();
        gpu.gpu_instances.iter().map(|gi| (gi.id, computes(gi))).collect()
    };
    let gpus = (0..).zip(before.gpus.iter().zip(&after.gpus));
    gpus.filter(|(_, (before, after))| instances(before) != instances(after))
        .map(|(gpu, _)| Event {
            gpu,
            event_type: MIG_CONFIG_CHANGE,
            data: 0,
            gpu_instance_id: None,
            compute_instance_id: None,
        })
        .collect()
}

/// An event set: which GPU's events it takes, and how far it has read.
#[derive(Default)]
pub(crate) struct EventSet {
    /// By GPU index: the types, and the number of the first event after the registration.
    registered: BTreeMap<u32, (u64, u64)>,
    read: u64,
}

impl EventSet {
    /// Takes events of these types of a GPU, from now on.
    pub(crate) fn register(&mut self, gpu: u32, types: u64, events: &Events) {
        let (held, _) = self.registered.entry(gpu).or_insert((0, events.next));
        *held |= types;
    }

    pub(crate) fn gpus(&self) -> impl Iterator<Item = u32> {
        self.registered.keys().copied()
    }

    /// The next event that it takes.
    pub(crate) fn next(&mut self, events: &Events) -> Option<Event> {
        let wanted = |(number, event): &(u64, &Event)| {
            let registered = self.registered.get(&event.gpu);
            registered.is_some_and(|(types, from)| types & event.event_type != 0 && number >= from)
        };
        let found = events.since(self.read).find(wanted).map(|(number, event)| (number, event.clone()));
        self.read = found.as_ref().map_or(events.next, |(number, _)| number + 1);
        found.map(|(_, event)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xids(set: &mut EventSet, events: &Events) -> Vec<u64> {
        std::iter::from_fn(|| set.next(events)).map(|event| event.data).collect()
    }

    #[test]
    fn a_set_hears_of_its_gpus_and_types_from_its_registration_on() {
        let mut events = Events::default();
        events.push(Event::xid(0, 1, None, None));
        let mut set = EventSet::default();
        set.register(0, XID, &events);
        events.push(Event::xid(1, 2, None, None));
        events.push(Event { event_type: MIG_CONFIG_CHANGE, ..Event::xid(0, 3, None, None) });
        events.push(Event::xid(0, 4, None, None));
        events.push(Event::xid(0, 5, None, None));
        assert_eq!(xids(&mut set, &events), [4, 5]);
        set.register(1, XID, &events);
        events.push(Event::xid(1, 6, None, None));
        assert_eq!(xids(&mut set, &events), [6]);
    }

    #[test]
    fn who_is_slow_misses_the_oldest() {
        let mut events = Events::default();
        let mut set = EventSet::default();
        set.register(0, XID, &events);
        (0..100).for_each(|n| events.push(Event::xid(0, n, None, None)));
        assert_eq!(xids(&mut set, &events), (36..100).collect::<Vec<_>>());
    }
}
