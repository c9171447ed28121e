use std::collections::{BTreeMap, BTreeSet};

use slicegate_kubelet_api::device_plugin::{Device, RegisterRequest};

/// What happened, over all restarts.
#[derive(Clone, Default)]
pub struct Record {
    /// Every request to register, also refused ones.
    pub registrations: Vec<RegisterRequest>,
    /// Every ListAndWatch list that was taken in: the resource and its devices.
    pub lists: Vec<(String, Vec<Device>)>,
    /// Every Allocate call: the resource and the devices.
    pub allocations: Vec<(String, Vec<String>)>,
    /// Answers of GetAllocatableResources that were sent.
    pub looks: usize,
    /// Requests to PodResources that were more than the kubelet answers; those that a test commands are not counted.
    pub rejections: usize,
    /// Where the kubelet would have crashed.
    pub crashes: Vec<String>,
}

impl Record {
    /// The devices that a later list of their resource left out.
    pub fn shrinkings(&self) -> Vec<String> {
        let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut found = Vec::new();
        for (resource, devices) in &self.lists {
            let listed: BTreeSet<&str> = devices.iter().map(|device| device.id.as_str()).collect();
            let known = known.entry(resource).or_default();
            found.extend(known.difference(&listed).map(|id| format!("{resource}: {id} is no longer listed")));
            known.extend(listed);
        }
        found
    }
}
