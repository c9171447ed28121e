//! `MIGNode.status`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use slicegate_core::agent::{Holder, Report};
use slicegate_core::geometry::{Model, Place};
use slicegate_core::id::GpuUuid;
use slicegate_core::node::SliceState;
use slicegate_core::time::Timestamp;

use super::conflicts::Conflict;
use super::nvml::GpuInfo;
use crate::api::convert::mig::state_to_api;
use crate::api::convert::time;
use crate::api::mig_node::{
    ForeignInstance, GpuStatus, Health, MIGNodeStatus, MigMode, ModelStatus, ProfileStatus,
    SliceState as ApiState, SliceStatus, Summary,
};

/// Everything that a status tells.
pub struct Facts<'a> {
    /// The GPUs.
    pub gpus: &'a [GpuInfo],
    /// What is wrong with GPUs that do not answer, by UUID.
    pub unhealthy: &'a BTreeMap<String, String>,
    /// What came of asking for MIG mode, by GPU, where it is not on.
    pub mig_modes: &'a BTreeMap<GpuUuid, String>,
    /// What is wrong beyond single GPUs.
    pub problems: &'a [String],
    /// What happened to the journal, if something did.
    pub damage: Option<&'a str>,
    /// What stands between agent and kubelet, if something does.
    pub kubelet: Option<&'a str>,
    /// What pods may miss though all is well.
    pub notice: Option<String>,
    /// Who else has a hand in the GPUs.
    pub conflicts: &'a [Conflict],
    /// The slices.
    pub reports: &'a [Report],
    /// Foreign instances, by GPU.
    pub foreign: &'a [Place],
    /// Boot id.
    pub boot_id: &'a str,
    /// Driver version.
    pub driver_version: &'a str,
    /// Generation of spec taken up.
    pub generation: i64,
}

/// The status that says so; times of conditions that have not changed are those of `before`.
pub fn status(now: Timestamp, facts: &Facts<'_>, before: &MIGNodeStatus) -> MIGNodeStatus {
    let exists = |r: &&Report| r.instance.is_some();
    let in_use = facts.reports.iter().filter(|r| r.state == SliceState::InUse).count();
    MIGNodeStatus {
        models: models(facts.gpus),
        gpus: facts
            .gpus
            .iter()
            .map(|gpu| GpuStatus {
                uuid: gpu.uuid.to_string(),
                index: gpu.index,
                model: gpu.model.name.to_string(),
                mig_mode: gpu.mig_mode,
                health: match facts.unhealthy.get(gpu.uuid.as_str()) {
                    Some(_) => Health::Unhealthy,
                    None => Health::Healthy,
                },
                message: facts.unhealthy.get(gpu.uuid.as_str()).cloned(),
            })
            .collect(),
        slices: facts.reports.iter().map(slice).collect(),
        foreign: facts
            .foreign
            .iter()
            .map(|Place { gpu, slice }| ForeignInstance {
                gpu: gpu.to_string(),
                profile: slice.profile.to_string(),
                start: slice.start,
                size: slice.size,
            })
            .collect(),
        summary: Some(Summary {
            gpus: inventory(facts.gpus),
            slices: u32::try_from(facts.reports.iter().filter(exists).count()).unwrap_or(u32::MAX),
            in_use: u32::try_from(in_use).unwrap_or(u32::MAX),
        }),
        boot_id: Some(facts.boot_id.to_owned()),
        driver_version: Some(facts.driver_version.to_owned()),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        observed_generation: Some(facts.generation),
        conditions: vec![
            condition(now, "Ready", verdict(facts), before),
            condition(now, "Conflict", conflict(facts.conflicts), before),
        ],
    }
}

/// Whether somebody may wait for what is new in a status: for a slice that has become Idle or Failed, or of which there
/// is something odd to be told, or for anything else that is seldom new. Nobody waits to hear that a slice is being made or taken
/// away, that a pod has come for its slice, or that a new `spec` has been taken up.
pub fn is_awaited(before: Option<&MIGNodeStatus>, after: &MIGNodeStatus) -> bool {
    let Some(before) = before else { return true };
    let rest = |status: &MIGNodeStatus| MIGNodeStatus {
        slices: Vec::new(),
        summary: None,
        observed_generation: None,
        ..status.clone()
    };
    let is_new = |slice: &SliceStatus| {
        let known = before.slices.iter().find(|s| {
            s.gpu == slice.gpu
                && s.start == slice.start
                && s.profile == slice.profile
                && s.state == slice.state
        });
        let odd = |s: &SliceStatus| (s.process, s.restart_pod, s.message.clone());
        match slice.state {
            ApiState::Idle | ApiState::Failed | ApiState::Unknown => known != Some(slice),
            ApiState::Creating | ApiState::InUse | ApiState::Draining => {
                odd(slice) != known.map(odd).unwrap_or_default()
            }
        }
    };
    after.slices.iter().any(is_new) || rest(before) != rest(after)
}

fn conflict(conflicts: &[Conflict]) -> Verdict {
    match conflicts.first() {
        None => ("False", "NoConflict", "Nobody else has a hand in the node's GPUs.".to_owned()),
        Some(first) => {
            let all: Vec<&str> = conflicts.iter().map(|conflict| conflict.message.as_str()).collect();
            ("True", first.reason, all.join(" "))
        }
    }
}

/// The GPU models in a line, as in "8 × A100-SXM4-80GB".
fn inventory(gpus: &[GpuInfo]) -> String {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for gpu in gpus {
        *counts.entry(gpu.model.name.trim_start_matches("NVIDIA ")).or_default() += 1;
    }
    counts.iter().map(|(name, count)| format!("{count} × {name}")).collect::<Vec<_>>().join(", ")
}

fn models(gpus: &[GpuInfo]) -> Vec<ModelStatus> {
    let mut seen = BTreeSet::new();
    gpus.iter().filter(|gpu| seen.insert(gpu.model.name.clone())).map(|gpu| model(&gpu.model)).collect()
}

fn model(model: &Model) -> ModelStatus {
    ModelStatus {
        name: model.name.to_string(),
        units: model.units,
        profiles: model
            .profiles
            .iter()
            .map(|p| ProfileStatus {
                name: p.name.to_string(),
                id: p.id,
                size: p.size,
                starts: p.starts.clone(),
                max_count: p.max_count,
                memory_mib: p.memory_mib,
            })
            .collect(),
    }
}

fn slice(report: &Report) -> SliceStatus {
    SliceStatus {
        gpu: report.gpu.to_string(),
        profile: report.slice.profile.to_string(),
        start: report.slice.start,
        size: report.slice.size,
        state: state_to_api(report.state),
        since: time(report.since),
        uuid: report.compute.as_ref().map(|c| c.uuid.clone()),
        gpu_instance_id: report.instance,
        compute_instance_id: report.compute.as_ref().map(|c| c.id),
        pod: match &report.holder {
            Some(Holder::Pod(name)) => Some(name.clone()),
            _ => None,
        },
        process: match report.holder {
            Some(Holder::Process(id)) => Some(id),
            _ => None,
        },
        restart_pod: report.restart_pod,
        message: report.message.clone(),
    }
}

/// A condition; its time is that of `before` while its status is.
fn condition(
    now: Timestamp,
    type_: &str,
    (status, reason, message): Verdict,
    before: &MIGNodeStatus,
) -> Condition {
    let same = before.conditions.iter().find(|c| c.type_ == type_ && c.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
        last_transition_time: same.map_or_else(|| time(now), |c| c.last_transition_time.clone()),
    }
}

fn replace(status: &mut MIGNodeStatus, condition: Condition) {
    status.conditions.retain(|c| c.type_ != condition.type_);
    status.conditions.insert(0, condition);
}

/// Status, reason and message of a condition.
type Verdict = (&'static str, &'static str, String);

fn verdict(facts: &Facts<'_>) -> Verdict {
    let without_mig = without_mig(facts);
    let usable = facts
        .gpus
        .iter()
        .filter(|g| g.mig_mode == MigMode::Enabled && !facts.unhealthy.contains_key(g.uuid.as_str()))
        .count();
    if facts.gpus.is_empty() && facts.problems.is_empty() {
        return ("False", "NoGPU", "NVML lists no GPU on this node.".to_owned());
    }
    if usable == 0 {
        let can_be = |gpu: &GpuInfo| gpu.mig_mode != MigMode::NotSupported;
        let problem = facts.problems.first().or_else(|| facts.unhealthy.values().next()).cloned();
        let message = match (problem.or(without_mig), facts.gpus.iter().any(can_be)) {
            (Some(message), true) => message,
            _ => "No GPU of this node supports MIG, so Slicegate has nothing to do here; label the node \
                  slicegate.dev/agent=paused to take its agent off it."
                .to_owned(),
        };
        return ("False", "NoUsableGPU", message);
    }
    if let Some(trouble) = facts.kubelet {
        return ("False", "KubeletUnavailable", trouble.to_owned());
    }
    if let Some(damage) = facts.damage {
        return ("True", "JournalReset", damage.to_owned());
    }
    if let Some(problem) = facts.problems.first().or_else(|| facts.unhealthy.values().next()) {
        return ("True", "SomeGPUsUnusable", problem.clone());
    }
    if let Some(message) = without_mig {
        return ("True", "SomeGPUsUnusable", message);
    }
    let notice = facts.notice.as_ref().map(|notice| format!(" {notice}")).unwrap_or_default();
    ("True", "Ready", format!("Slices can be made on every GPU.{notice}"))
}

/// Which GPUs no slices can be made on for want of MIG mode, and what to do.
fn without_mig(facts: &Facts<'_>) -> Option<String> {
    let of_mode = |mode| facts.gpus.iter().filter(move |gpu| gpu.mig_mode == mode);
    let list = |gpus: Vec<&GpuInfo>, between: &str| {
        gpus.iter().map(|gpu| gpu.index.to_string()).collect::<Vec<_>>().join(between)
    };
    let off: Vec<&GpuInfo> =
        of_mode(MigMode::Disabled).filter(|gpu| !facts.mig_modes.contains_key(&gpu.uuid)).collect();
    let unsupported: Vec<&GpuInfo> = of_mode(MigMode::NotSupported).collect();
    let mut told: Vec<String> = facts.mig_modes.values().cloned().collect();
    if !off.is_empty() {
        told.push(format!(
            "MIG mode is off on GPU {}: drain it and run nvidia-smi -i {} -mig 1 on the node.",
            list(off.clone(), ", "),
            list(off, ",")
        ));
    }
    if !unsupported.is_empty() {
        told.push(format!(
            "GPU {} cannot be partitioned, since it does not support MIG: Slicegate leaves it alone and makes slices on the \
             node's other GPUs. Do not count it in a queue's quota.",
            list(unsupported, ", ")
        ));
    }
    (!told.is_empty()).then(|| told.join(" "))
}

/// The status of a node whose agent ends in good order: what is there stays.
pub fn stopped(now: Timestamp, before: &MIGNodeStatus) -> MIGNodeStatus {
    let message = "The agent has ended. Pods keep their slices; nothing new is placed here until it is back.";
    let mut status = before.clone();
    replace(&mut status, condition(now, "Ready", ("False", "AgentStopped", message.to_owned()), before));
    status
}

/// The status of a node whose NVML cannot be used: what was known of it stays, so that its claims are not taken for lost.
pub fn unavailable(now: Timestamp, message: &str, before: &MIGNodeStatus) -> MIGNodeStatus {
    let mut status = before.clone();
    for gpu in &mut status.gpus {
        gpu.health = Health::Unhealthy;
        gpu.message = Some(message.to_owned());
    }
    for slice in status.slices.iter_mut().filter(|slice| slice.state != ApiState::InUse) {
        slice.state = ApiState::Failed;
        slice.message = Some(message.to_owned());
    }
    replace(&mut status, condition(now, "Ready", ("False", "NVMLUnavailable", message.to_owned()), before));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_state(state: ApiState) -> SliceStatus {
        SliceStatus {
            gpu: "GPU-1".to_owned(),
            profile: "1g.10gb".to_owned(),
            start: 3,
            size: 1,
            state,
            since: time(Timestamp(0)),
            uuid: None,
            gpu_instance_id: None,
            compute_instance_id: None,
            pod: None,
            process: None,
            restart_pod: false,
            message: None,
        }
    }

    fn with(slices: &[SliceStatus], generation: i64) -> MIGNodeStatus {
        MIGNodeStatus {
            slices: slices.to_vec(),
            observed_generation: Some(generation),
            ..MIGNodeStatus::default()
        }
    }

    #[test]
    fn only_what_somebody_can_act_on_is_told_at_once() {
        let state = |state| with(&[in_state(state)], 1);
        let none = with(&[], 1);
        assert!(is_awaited(None, &none), "the first status of all");
        for (before, after, awaited) in [
            (&none, state(ApiState::Creating), false),
            (&state(ApiState::Creating), state(ApiState::Idle), true),
            (&state(ApiState::Creating), state(ApiState::Failed), true),
            (&state(ApiState::Idle), state(ApiState::InUse), false),
            (&state(ApiState::InUse), state(ApiState::Idle), true),
            (&state(ApiState::Idle), state(ApiState::Draining), false),
            (&state(ApiState::Draining), none.clone(), false),
            (&state(ApiState::Idle), with(&[in_state(ApiState::Idle)], 2), false),
        ] {
            assert_eq!(is_awaited(Some(before), &after), awaited, "{before:?} → {after:?}");
        }
        let orphan = SliceStatus { process: Some(7), ..in_state(ApiState::InUse) };
        assert!(
            is_awaited(Some(&state(ApiState::InUse)), &with(std::slice::from_ref(&orphan), 1)),
            "out of its claim's reach"
        );
        assert!(!is_awaited(Some(&with(std::slice::from_ref(&orphan), 1)), &with(&[orphan], 2)));
        let unhealthy = MIGNodeStatus { driver_version: Some("580".to_owned()), ..none.clone() };
        assert!(is_awaited(Some(&none), &unhealthy), "anything else");
    }
}
