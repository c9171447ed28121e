//! The node agent's decision: which slices pods may be given, what to do next on each GPU, and what to report, given what is
//! wanted and what is there.
//!
//! A slice goes through hands in this order, so that nobody is promised what is not there and nothing is taken from under
//! anybody: made, [`servable`], shown to pods, Idle; and back: no longer servable, shown no more, held by nobody, destroyed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::geometry::{Model, Place, Slice};
use crate::id::GpuUuid;
use crate::node::SliceState;
use crate::time::Timestamp;

/// A GPU as the agent finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuView {
    /// What it can be cut into.
    pub model: Arc<Model>,
    /// Why no slice can be made on it, as with MIG mode off or NVML silent about it; `None` when one can. What pods hold on
    /// it may work all the same.
    pub unusable: Option<String>,
    /// Why nothing on it works any more, as when the GPU is lost; `None` when it does.
    pub broken: Option<String>,
    /// The GPU instances that NVML lists.
    pub instances: Vec<Instance>,
    /// What is being done on it; nothing else is begun meanwhile, since NVML serialises the calls on one GPU.
    pub running: Option<Operation>,
    /// What went wrong on it and has not been put right.
    pub failures: Vec<Failure>,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// NVML's GPU instance id.
    pub id: u32,
    /// Its profile and place.
    pub slice: Slice,
    /// Its compute instance over the full width; without one it is of no use to a pod.
    pub compute: Option<Compute>,
    /// Whether the journal says that Slicegate made it.
    pub ours: bool,
    /// What holds it.
    pub holder: Option<Holder>,
    /// How far it is in pods' sight.
    pub offer: Offer,
    /// Why it does not work any more, as after an XID; it is made anew once nobody holds it.
    pub broken: Option<String>,
    /// Why pods cannot be given it yet though it is whole, as when its CDI specification cannot be written.
    pub obstacle: Option<String>,
    /// Whether it must be made anew before another pod may have it.
    pub spent: bool,
    /// Whether the pod that holds it was told a name of it that is no longer valid.
    pub misnamed: bool,
}

/// What holds a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A pod, as `namespace/name`.
    Pod(String),
    /// A pod that the kubelet does not name: one that has just been given it, or one with it in an init container only.
    Unnamed,
    /// A process, by its id, though no pod is known to.
    Process(u32),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Unnamed => write!(f, "its pod"),
            Self::Process(id) => write!(f, "process {id}"),
        }
    }
}

/// How far a slice is in pods' sight: what kubelet and Node show of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// Not known.
    #[default]
    Pending,
    /// They count it.
    Shown,
    /// They do not count it, and nobody was given it before they stopped to.
    Withdrawn,
}

/// A compute instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compute {
    /// NVML's compute instance id.
    pub id: u32,
    /// UUID of the MIG device.
    pub uuid: String,
}

/// Something to do on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Make a GPU instance at exactly this place, and its compute instance.
    Create(Slice),
    /// Destroy this GPU instance of ours and what is in it.
    Destroy {
        /// NVML's GPU instance id.
        id: u32,
        /// What it is, as the precondition: another instance may have been given the id since.
        slice: Slice,
    },
}

impl Operation {
    /// The slice that it is about.
    pub fn slice(&self) -> &Slice {
        match self {
            Self::Create(slice) | Self::Destroy { slice, .. } => slice,
        }
    }
}

/// An operation that failed, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was tried.
    pub operation: Operation,
    /// What went wrong, for people.
    pub message: String,
    /// Before this nothing is tried.
    pub retry_at: Timestamp,
}

/// A slice as it is to be reported in `status.slices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its GPU.
    pub gpu: GpuUuid,
    /// Its profile and place.
    pub slice: Slice,
    /// Its state.
    pub state: SliceState,
    /// Since when.
    pub since: Timestamp,
    /// NVML's GPU instance id, when it exists.
    pub instance: Option<u32>,
    /// Its compute instance, when it exists.
    pub compute: Option<Compute>,
    /// What holds it.
    pub holder: Option<Holder>,
    /// Why it is Failed, or not what is wanted.
    pub message: Option<String>,
    /// Whether the pod that holds it must be deleted to go on.
    pub restart_pod: bool,
}

/// What to do and to report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// At most one operation for each GPU that has none running.
    pub operations: Vec<(GpuUuid, Operation)>,
    /// Every slice that is wanted or ours.
    pub reports: Vec<Report>,
    /// When to look again though nothing has happened: the next retry.
    pub recheck_at: Option<Timestamp>,
}

/// The slices that pods may be given or have: ours, whole and working, and wanted or in a pod's hands. A pod keeps what it
/// has, wanted or not; what only a process holds can be given to nobody.
pub fn servable(
    wanted: &BTreeMap<GpuUuid, Vec<Slice>>,
    gpus: &BTreeMap<GpuUuid, GpuView>,
) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    for (uuid, gpu) in gpus.iter().filter(|(_, gpu)| gpu.broken.is_none()) {
        let (accepted, _) = sift(wanted.get(uuid).map_or(&[][..], Vec::as_slice), gpu);
        let works =
            |i: &&Instance| i.ours && i.compute.is_some() && i.broken.is_none() && i.obstacle.is_none();
        let goes = |i: &Instance| gpu.running.as_ref().is_some_and(|operation| operation.slice() == &i.slice);
        let serves = |i: &&Instance| match i.holder {
            Some(Holder::Pod(_) | Holder::Unnamed) => true,
            Some(Holder::Process(_)) => false,
            None => accepted.contains(&&i.slice) && gpu.unusable.is_none() && !i.spent && !goes(i),
        };
        places.extend(gpu.instances.iter().filter(works).filter(serves).map(|i| Place::new(uuid, &i.slice)));
    }
    places
}

/// Decides what to do next and what to report.
///
/// Slices that can be made are made first, since somebody waits for them; then those are destroyed that are in the way of a
/// wanted one; then the rest of what is no longer wanted, broken or spent. What is foreign, held, still in pods' sight, or
/// wanted and sound is never touched. `previous` gives each state its time.
pub fn agent_step(
    now: Timestamp,
    wanted: &BTreeMap<GpuUuid, Vec<Slice>>,
    gpus: &BTreeMap<GpuUuid, GpuView>,
    previous: &[Report],
) -> Step {
    let mut step = Step::default();
    for (uuid, gpu) in gpus {
        let wanted = wanted.get(uuid).map_or(&[][..], Vec::as_slice);
        if let Some(operation) = next_operation(now, wanted, gpu) {
            step.operations.push((uuid.clone(), operation));
        }
        step.reports.extend(reports(uuid, wanted, gpu));
        let retries = gpu.failures.iter().map(|f| f.retry_at).filter(|at| *at > now);
        step.recheck_at = step.recheck_at.into_iter().chain(retries).min();
    }
    for (uuid, slices) in wanted.iter().filter(|(uuid, _)| !gpus.contains_key(uuid)) {
        step.reports.extend(
            slices
                .iter()
                .map(|s| bare(uuid, s, SliceState::Failed, Some(format!("the node has no GPU {uuid}")))),
        );
    }
    let known: BTreeMap<(&GpuUuid, &Slice, SliceState), Timestamp> =
        previous.iter().map(|r| ((&r.gpu, &r.slice, r.state), r.since)).collect();
    for report in &mut step.reports {
        report.since = known.get(&(&report.gpu, &report.slice, report.state)).copied().unwrap_or(now);
    }
    step
}

/// What is wanted on a GPU and can be there: legal, and beside what is foreign. The rest, with the reason.
fn sift<'a>(wanted: &'a [Slice], gpu: &GpuView) -> (Vec<&'a Slice>, Vec<(&'a Slice, String)>) {
    let mut accepted: Vec<&Slice> = Vec::new();
    let mut refused = Vec::new();
    for slice in wanted {
        let beside = gpu.instances.iter().filter(|i| !i.ours).map(|i| &i.slice);
        let verdict = gpu.model.check(slice, beside.chain(accepted.iter().copied()));
        match verdict {
            Ok(()) => accepted.push(slice),
            Err(misfit) => refused.push((slice, misfit.to_string())),
        }
    }
    (accepted, refused)
}

fn next_operation(now: Timestamp, wanted: &[Slice], gpu: &GpuView) -> Option<Operation> {
    if gpu.running.is_some() || gpu.unusable.is_some() || gpu.broken.is_some() {
        return None;
    }
    let may_try =
        |operation: &Operation| !gpu.failures.iter().any(|f| f.operation == *operation && f.retry_at > now);
    let (accepted, _) = sift(wanted, gpu);
    let missing: Vec<&Slice> =
        accepted.into_iter().filter(|w| !gpu.instances.iter().any(|i| i.slice == **w)).collect();
    let create = missing
        .iter()
        .filter(|slice| gpu.model.check(slice, gpu.instances.iter().map(|i| &i.slice)).is_ok())
        .map(|slice| Operation::Create((*slice).clone()))
        .find(may_try);
    let sound = |i: &Instance| i.compute.is_some() && i.broken.is_none() && !i.spent;
    let mut surplus: Vec<&Instance> = gpu
        .instances
        .iter()
        .filter(|i| i.ours && i.holder.is_none() && i.offer == Offer::Withdrawn)
        .filter(|i| !sound(i) || !wanted.contains(&i.slice))
        .collect();
    // Those in the way of a wanted slice first: false sorts before true.
    surplus.sort_by_key(|i| {
        let in_the_way = missing.iter().any(|w| gpu.model.check(w, [&i.slice]).is_err());
        (!in_the_way && i.compute.is_some(), i.slice.start)
    });
    create.or_else(|| {
        surplus.into_iter().map(|i| Operation::Destroy { id: i.id, slice: i.slice.clone() }).find(may_try)
    })
}

fn reports(uuid: &GpuUuid, wanted: &[Slice], gpu: &GpuView) -> Vec<Report> {
    let failure_of =
        |slice: &Slice| gpu.failures.iter().find(|f| f.operation.slice() == slice).map(|f| f.message.clone());
    let being_destroyed =
        |slice: &Slice| matches!(&gpu.running, Some(Operation::Destroy { slice: s, .. }) if s == slice);
    let (accepted, refused) = sift(wanted, gpu);
    let accepted: BTreeSet<&Slice> = accepted.into_iter().collect();
    let mut reports = Vec::new();
    for instance in gpu.instances.iter().filter(|i| i.ours) {
        let slice = &instance.slice;
        let broken = gpu.broken.as_ref().or(instance.broken.as_ref());
        let wanted = accepted.contains(slice) && !being_destroyed(slice);
        let failed = |message: &String| (SliceState::Failed, Some(message.clone()));
        let (state, message) = match (&instance.holder, &gpu.unusable) {
            _ if broken.is_some_and(|_| !being_destroyed(slice)) => {
                (SliceState::Failed, failure_of(slice).or_else(|| broken.cloned()))
            }
            (Some(Holder::Process(id)), _) => (SliceState::InUse, Some(outlived(*id))),
            (Some(_), Some(unusable)) => (SliceState::InUse, Some(unusable.clone())),
            (Some(_), None) if wanted && instance.compute.is_some() => (SliceState::InUse, None),
            (Some(holder), None) => {
                (SliceState::InUse, Some(format!("to be destroyed once {holder} lets go of it")))
            }
            (None, Some(unusable)) => failed(unusable),
            (None, None) => match failure_of(slice) {
                Some(message) => failed(&message),
                None if !wanted => (SliceState::Draining, None),
                None if instance.spent || instance.offer != Offer::Shown => {
                    (SliceState::Creating, instance.obstacle.clone())
                }
                None => (SliceState::Idle, None),
            },
        };
        reports.push(Report {
            instance: Some(instance.id),
            compute: instance.compute.clone(),
            holder: instance.holder.clone(),
            restart_pod: instance.misnamed && matches!(instance.holder, Some(Holder::Pod(_))),
            ..bare(uuid, slice, state, message)
        });
    }
    for slice in accepted.into_iter().filter(|s| !gpu.instances.iter().any(|i| i.ours && i.slice == **s)) {
        let message = gpu.broken.clone().or_else(|| gpu.unusable.clone()).or_else(|| failure_of(slice));
        let state = if message.is_some() { SliceState::Failed } else { SliceState::Creating };
        reports.push(bare(uuid, slice, state, message));
    }
    for (slice, reason) in refused {
        if !reports.iter().any(|r| r.slice == *slice) {
            reports.push(bare(uuid, slice, SliceState::Failed, Some(reason)));
        }
    }
    reports
}

fn outlived(process: u32) -> String {
    format!(
        "process {process} holds it though no pod is known to: it outlived its pod, or never belonged to one; end it on the \
         node, and the slice is free"
    )
}

fn bare(gpu: &GpuUuid, slice: &Slice, state: SliceState, message: Option<String>) -> Report {
    Report {
        gpu: gpu.clone(),
        slice: slice.clone(),
        state,
        since: Timestamp::default(),
        instance: None,
        compute: None,
        holder: None,
        message,
        restart_pod: false,
    }
}

#[cfg(test)]
mod tests;
