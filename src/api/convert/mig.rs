//! `MIGNode`.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use slicegate_core::geometry::{Model, Profile, Slice};
use slicegate_core::id::{Attempt, GpuUuid, PodSetName, PodUid, WorkloadKey, WorkloadUid};
use slicegate_core::node::{
    Claim, Gpu, Hold, Holder, MigNode, NodeSpec, ObservedSlice, Relocation, SliceState, Version,
};
use slicegate_core::profile::ProfileName;
use slicegate_core::time::Timestamp;

use super::{time, timestamp};
use crate::api::mig_node as api;

/// A MIGNode as the API server holds it. A later version may have written it: names and states that are not known here are
/// kept, as what takes room and is in use.
pub fn from_api(object: &api::MIGNode, lagging_since: Option<Timestamp>) -> MigNode {
    let status = object.status.clone().unwrap_or_default();
    let models: BTreeMap<String, Arc<Model>> =
        status.models.iter().map(|m| (m.name.clone(), Arc::new(model(m)))).collect();
    let confirmed = spec_from_api(&object.spec);
    MigNode {
        version: Version {
            uid: object.uid().unwrap_or_default().into(),
            generation: object.metadata.generation.unwrap_or_default(),
        },
        spec: confirmed.clone(),
        confirmed,
        busy: false,
        lagging_since,
        ready: !status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "False"),
        gpus: status
            .gpus
            .iter()
            .filter_map(|gpu| {
                let usable = gpu.mig_mode == api::MigMode::Enabled && gpu.health == api::Health::Healthy;
                Some((
                    GpuUuid::from(gpu.uuid.as_str()),
                    Gpu { model: models.get(&gpu.model)?.clone(), usable },
                ))
            })
            .collect(),
        slices: status
            .slices
            .iter()
            .map(|s| ObservedSlice {
                gpu: s.gpu.as_str().into(),
                slice: slice(&s.profile, s.start, s.size),
                state: state_from_api(s),
                since: timestamp(&s.since),
                holder: holder(s),
                restart_pod: s.restart_pod,
                message: s.message.as_deref().map(Arc::from),
            })
            .collect(),
        foreign: status
            .foreign
            .iter()
            .map(|f| (f.gpu.as_str().into(), slice(&f.profile, f.start, f.size)))
            .collect(),
    }
}

/// A GPU model's tables.
pub fn model(model: &api::ModelStatus) -> Model {
    Model {
        name: model.name.as_str().into(),
        units: model.units,
        profiles: model
            .profiles
            .iter()
            .map(|p| Profile {
                name: ProfileName::verbatim(&p.name),
                id: p.id,
                size: p.size,
                starts: p.starts.clone(),
                max_count: p.max_count,
                memory_mib: p.memory_mib,
            })
            .collect(),
    }
}

/// `spec` in the core's terms.
pub fn spec_from_api(spec: &api::MIGNodeSpec) -> NodeSpec {
    let mut gpus: BTreeMap<GpuUuid, Vec<Slice>> = BTreeMap::new();
    for gpu in &spec.gpus {
        let mut slices: Vec<Slice> = gpu.slices.iter().map(|s| slice(&s.profile, s.start, s.size)).collect();
        slices.sort();
        if !slices.is_empty() {
            gpus.insert(gpu.uuid.as_str().into(), slices);
        }
    }
    NodeSpec {
        gpus,
        claims: spec
            .claims
            .iter()
            .map(|c| Claim {
                workload: workload(&c.workload),
                attempt: Attempt::from(c.attempt.as_str()),
                pod_set: PodSetName::from(c.pod_set.as_str()),
                profile: ProfileName::verbatim(&c.profile),
                slices: c.slices,
                pods: c.pods,
            })
            .collect(),
        holds: spec
            .holds
            .iter()
            .map(|h| Hold {
                workload: workload(&h.workload),
                gpu: h.gpu.as_str().into(),
                start: h.start,
                size: h.size,
                until: timestamp(&h.until),
            })
            .collect(),
        relocations: spec
            .relocations
            .iter()
            .map(|r| Relocation {
                pod: PodUid::from(r.uid.as_str()),
                pod_name: r.pod.as_str().into(),
                workload: workload(&r.workload),
                pod_set: PodSetName::from(r.pod_set.as_str()),
                beneficiary: workload(&r.beneficiary),
                until: timestamp(&r.until),
            })
            .collect(),
        remake_after_use: spec.remake_after_use,
    }
}

/// `spec` in the API's terms.
pub fn spec_to_api(spec: &NodeSpec) -> api::MIGNodeSpec {
    api::MIGNodeSpec {
        gpus: spec
            .gpus
            .iter()
            .map(|(uuid, slices)| api::GpuGeometry {
                uuid: uuid.to_string(),
                slices: slices
                    .iter()
                    .map(|s| api::SliceGeometry {
                        profile: s.profile.to_string(),
                        start: s.start,
                        size: s.size,
                    })
                    .collect(),
            })
            .collect(),
        claims: spec
            .claims
            .iter()
            .map(|c| api::Claim {
                workload: reference(&c.workload),
                attempt: c.attempt.to_string(),
                pod_set: c.pod_set.to_string(),
                profile: c.profile.to_string(),
                slices: c.slices,
                pods: c.pods,
            })
            .collect(),
        holds: spec
            .holds
            .iter()
            .map(|h| api::Hold {
                workload: reference(&h.workload),
                gpu: h.gpu.to_string(),
                start: h.start,
                size: h.size,
                until: time(h.until),
            })
            .collect(),
        relocations: spec
            .relocations
            .iter()
            .map(|r| api::Relocation {
                pod: r.pod_name.to_string(),
                uid: r.pod.to_string(),
                workload: reference(&r.workload),
                pod_set: r.pod_set.to_string(),
                beneficiary: reference(&r.beneficiary),
                until: time(r.until),
            })
            .collect(),
        remake_after_use: spec.remake_after_use,
    }
}

/// What holds a slice. A pod is what the agent knows best: a process beside it is the pod's.
fn holder(slice: &api::SliceStatus) -> Option<Holder> {
    let pod = slice.pod.as_deref().and_then(|pod| pod.split_once('/'));
    pod.map(|(namespace, name)| Holder::Pod { namespace: namespace.into(), name: name.into() })
        .or_else(|| slice.process.map(Holder::Process))
}

fn state_from_api(slice: &api::SliceStatus) -> SliceState {
    match slice.state {
        api::SliceState::Idle => SliceState::Idle,
        api::SliceState::InUse => SliceState::InUse,
        api::SliceState::Draining => SliceState::Draining,
        api::SliceState::Failed => SliceState::Failed,
        // Whatever the unknown means: who has it keeps it, and nobody else is promised it.
        api::SliceState::Unknown if holder(slice).is_some() => SliceState::InUse,
        api::SliceState::Creating | api::SliceState::Unknown => SliceState::Creating,
    }
}

/// A slice's state in the API's terms.
pub fn state_to_api(state: SliceState) -> api::SliceState {
    match state {
        SliceState::Creating => api::SliceState::Creating,
        SliceState::Idle => api::SliceState::Idle,
        SliceState::InUse => api::SliceState::InUse,
        SliceState::Draining => api::SliceState::Draining,
        SliceState::Failed => api::SliceState::Failed,
    }
}

fn slice(profile: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: ProfileName::verbatim(profile) }
}

fn workload(reference: &api::WorkloadReference) -> WorkloadKey {
    WorkloadKey {
        namespace: reference.namespace.as_str().into(),
        name: reference.name.as_str().into(),
        uid: WorkloadUid::from(reference.uid.as_str()),
    }
}

fn reference(key: &WorkloadKey) -> api::WorkloadReference {
    api::WorkloadReference {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        uid: key.uid.to_string(),
    }
}
