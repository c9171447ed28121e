//! What the agent knows, and one step of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use slicegate_core::agent::{Failure, GpuView, Instance, Operation, Report, Step, agent_step};
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;
use slicegate_core::profile::ProfileName;
use slicegate_core::time::Timestamp;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{debug, info, warn};

use super::journal::Journal;
use super::node_status::{Advertised, NodeStatus};
use super::nvml::{CreateError, Driver, Found, GpuInfo, Left, NvmlError};
use super::report::{self, Facts};
use super::stand_in::{Bindings, Holders, Place};
use super::{Metrics, PAUSE, ensure, report_unavailable, write_status};
use crate::api::convert::{mig, now};
use crate::api::mig_node::{MIGNode, MIGNodeStatus, MigMode};

/// First pause before an operation that failed is tried again; it doubles each time.
const RETRY: Duration = Duration::from_millis(200);
/// The longest such pause.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// What reaches the deciding task.
pub enum Message {
    /// Our MIGNode as it is now; `None` when it is gone.
    Object(Option<Box<MIGNode>>),
    /// An operation on a GPU ended.
    Done(Done),
    /// A full look at the GPUs ended.
    Scanned(Box<Scan>),
}

/// How an operation ended.
pub struct Done {
    gpu: GpuUuid,
    operation: Operation,
    result: Result<Option<Found>, OperationError>,
    /// A look at the GPU after a failure.
    look: Option<Result<Vec<Found>, NvmlError>>,
}

enum OperationError {
    Create(CreateError),
    Destroy(NvmlError),
}

impl std::fmt::Display for OperationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Create(error) => error.fmt(f),
            Self::Destroy(error) => error.fmt(f),
        }
    }
}

/// What a full look found.
pub struct Scan {
    gpus: Result<(Vec<GpuInfo>, Vec<String>), NvmlError>,
    instances: BTreeMap<GpuUuid, Result<Vec<Found>, NvmlError>>,
    epochs: BTreeMap<GpuUuid, u64>,
}

/// What the agent acts with.
pub struct Means {
    /// The node's name.
    pub name: String,
    /// The boot that MIG instances belong to.
    pub boot_id: String,
    /// NVML.
    pub driver: Arc<Driver>,
    /// The Node's resources.
    pub node_status: NodeStatus,
    /// The MIGNodes, of which one is ours.
    pub mig_nodes: Api<MIGNode>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Where tasks report what they have done.
    pub messages: mpsc::Sender<Message>,
}

/// What the agent knows.
pub struct Agent {
    means: Means,
    journal: Journal,
    gpus: Vec<GpuInfo>,
    views: BTreeMap<GpuUuid, GpuView>,
    /// Counts the operations on each GPU, so that a look begun before one is not taken for the state after it.
    epochs: BTreeMap<GpuUuid, u64>,
    unhealthy: BTreeMap<String, String>,
    problems: Vec<String>,
    attempts: BTreeMap<(GpuUuid, Slice), u32>,
    wanted: Option<BTreeMap<GpuUuid, Vec<Slice>>>,
    generation: i64,
    missing: bool,
    holders: Option<Holders>,
    bindings: Bindings,
    /// Which pod had which slice, by the MIGNode, when this agent started.
    before: BTreeMap<(GpuUuid, Slice), String>,
    reports: Vec<Report>,
    written: Option<MIGNodeStatus>,
    /// The processes that the last look found, by GPU instance.
    processes: BTreeMap<(GpuUuid, u32), String>,
    /// Whether a status of this agent has been written.
    reported: bool,
    scanned: bool,
    /// The look that is under way, or was last.
    look: Option<JoinHandle<()>>,
}

impl Agent {
    /// An agent that has seen nothing yet.
    pub fn new(means: Means, journal: Journal) -> Self {
        Self {
            means,
            journal,
            gpus: Vec::new(),
            views: BTreeMap::new(),
            epochs: BTreeMap::new(),
            unhealthy: BTreeMap::new(),
            problems: Vec::new(),
            attempts: BTreeMap::new(),
            wanted: None,
            generation: 0,
            missing: false,
            holders: None,
            bindings: Bindings::default(),
            before: BTreeMap::new(),
            reports: Vec::new(),
            written: None,
            processes: BTreeMap::new(),
            reported: false,
            scanned: false,
            look: None,
        }
    }

    /// Whether anything may be decided: spec, pods and GPUs have all been seen.
    pub fn knows_enough(&self) -> bool {
        self.wanted.is_some() && self.holders.is_some() && self.scanned
    }

    /// Whether a status has been written.
    pub fn has_reported(&self) -> bool {
        self.reported
    }

    /// Whether an operation runs.
    pub fn is_busy(&self) -> bool {
        self.views.values().any(|view| view.running.is_some())
    }

    /// Takes in the live pods of the node.
    pub fn set_holders(&mut self, holders: Holders) {
        self.holders = Some(holders);
    }

    /// Takes in a message.
    pub async fn take_in(&mut self, message: Message) {
        match message {
            Message::Object(Some(object)) => self.take_in_object(&object),
            Message::Object(None) => {
                warn!(node = self.means.name, "the MIGNode is gone; making it again");
                self.missing = true;
            }
            Message::Done(done) => self.take_in_done(done),
            Message::Scanned(scan) => {
                if let (Err(error), false) = (&scan.gpus, self.scanned) {
                    // Nothing is known yet: a status of nothing would forget who holds what.
                    warn!(%error, "NVML does not list the GPUs");
                    report_unavailable(&self.means.mig_nodes, &self.means.name, error).await;
                    return;
                }
                self.take_in_scan(*scan);
                // What the Node shows may have been changed behind our back, or the Node be a new one.
                if let Err(error) = self.means.node_status.refresh().await {
                    warn!(%error, "cannot read the node");
                }
            }
        }
    }

    fn take_in_object(&mut self, object: &MIGNode) {
        self.missing = false;
        self.generation = object.metadata.generation.unwrap_or_default();
        if self.wanted.is_none() {
            let status = object.status.clone().unwrap_or_default();
            if status.boot_id.as_deref() == Some(&self.means.boot_id) {
                self.before = status
                    .slices
                    .iter()
                    .filter_map(|s| {
                        let slice = Slice { start: s.start, size: s.size, profile: s.profile.parse().ok()? };
                        Some(((s.gpu.as_str().into(), slice), s.pod.clone()?))
                    })
                    .collect();
                self.reports = reported(object);
            }
            self.written.clone_from(&object.status);
        } else if object.status != self.written && object.status.is_none() {
            // A new object under the same name.
            self.written = None;
        }
        self.wanted = Some(mig::spec_from_api(&object.spec).gpus);
    }

    fn take_in_done(&mut self, done: Done) {
        let Done { gpu, operation, result, look } = done;
        let slice = operation.slice().clone();
        *self.epochs.entry(gpu.clone()).or_default() += 1;
        let Some(view) = self.views.get_mut(&gpu) else { return };
        view.running = None;
        view.failures.retain(|failure| failure.operation.slice() != &slice);
        let noted = match (&operation, &result) {
            (Operation::Create(_), Ok(Some(found))) => {
                info!(gpu = %gpu, profile = %slice.profile, start = slice.start, "slice made");
                view.instances.push(instance(found, true));
                self.journal.made(&gpu, &slice, found.id)
            }
            (Operation::Destroy { id, .. }, Ok(_)) => {
                info!(gpu = %gpu, profile = %slice.profile, start = slice.start, "slice destroyed");
                view.instances.retain(|i| i.id != *id);
                self.journal.gone(&gpu, &slice)
            }
            (Operation::Create(_), Err(OperationError::Create(error))) => match error.leaves() {
                Left::Instance(id) => self.journal.made(&gpu, &slice, id),
                Left::Nothing => self.journal.gone(&gpu, &slice),
                // The intent stays; a look that finds nothing at the place strikes it out.
                Left::Unknown => Ok(()),
            },
            _ => Ok(()),
        };
        if let Err(error) = noted {
            warn!(%error, "journal");
        }
        match result {
            Ok(_) => {
                self.attempts.remove(&(gpu.clone(), slice));
            }
            Err(error) => {
                warn!(gpu = %gpu, profile = %slice.profile, start = slice.start, %error, "operation failed");
                let attempts = self.attempts.entry((gpu.clone(), slice)).or_default();
                let pause = RETRY.saturating_mul(2_u32.saturating_pow(*attempts)).min(MAX_RETRY);
                *attempts += 1;
                view.failures.push(Failure {
                    operation,
                    message: error.to_string(),
                    retry_at: now() + pause,
                });
            }
        }
        if let Some(look) = look {
            self.set_instances(&gpu, look);
        }
    }

    fn take_in_scan(&mut self, scan: Scan) {
        self.scanned = true;
        let (mut gpus, problems) = match scan.gpus {
            Ok(listed) => listed,
            Err(error) => (Vec::new(), vec![format!("NVML does not list the GPUs: {error}")]),
        };
        // A GPU that was here and does not answer stays, with its slices: pods may hold them.
        let silent: BTreeMap<GpuUuid, String> = self
            .gpus
            .iter()
            .filter(|known| !gpus.iter().any(|gpu| gpu.uuid == known.uuid))
            .map(|known| (known.uuid.clone(), why_silent(known.index, &problems)))
            .collect();
        gpus.extend(self.gpus.iter().filter(|known| silent.contains_key(&known.uuid)).cloned());
        gpus.sort_by_key(|gpu| gpu.index);
        (self.gpus, self.problems) = (gpus, problems);
        self.unhealthy.extend(silent.iter().map(|(uuid, why)| (uuid.to_string(), why.clone())));
        for gpu in &self.gpus {
            let unusable = match gpu.mig_mode {
                _ if silent.contains_key(&gpu.uuid) => silent.get(&gpu.uuid).cloned(),
                MigMode::Enabled => None,
                MigMode::Disabled => Some(format!(
                    "MIG mode is off on GPU {}; enable it with nvidia-smi -i {} -mig 1",
                    gpu.index, gpu.index
                )),
                MigMode::NotSupported => Some(format!("GPU {} does not support MIG", gpu.index)),
            };
            let view = self.views.entry(gpu.uuid.clone()).or_insert_with(|| GpuView {
                model: gpu.model.clone(),
                unusable: None,
                instances: Vec::new(),
                running: None,
                failures: Vec::new(),
            });
            view.model = gpu.model.clone();
            view.unusable = unusable;
        }
        for (uuid, look) in scan.instances {
            let running = self.views.get(&uuid).is_none_or(|view| view.running.is_some());
            if !running && self.epochs.get(&uuid) == scan.epochs.get(&uuid) {
                self.set_instances(&uuid, look);
            }
        }
    }

    fn set_instances(&mut self, gpu: &GpuUuid, look: Result<Vec<Found>, NvmlError>) {
        let Some(view) = self.views.get_mut(gpu) else { return };
        match look {
            Ok(found) => {
                self.unhealthy.remove(gpu.as_str());
                let ours = |f: &Found| self.journal.is_ours(gpu, &f.slice, f.id);
                view.instances = found.iter().map(|f| instance(f, ours(f))).collect();
                self.processes.retain(|(uuid, _), _| uuid != gpu);
                for f in &found {
                    if let Some(pid) = f.processes.first() {
                        self.processes.insert((gpu.clone(), f.id), format!("process {pid}"));
                    }
                }
                let exists = |slice: &Slice| found.iter().any(|f| f.slice == *slice);
                if let Err(error) = self.journal.sweep(gpu, exists) {
                    warn!(%error, "journal");
                }
            }
            Err(error) => {
                view.unusable = Some(error.to_string());
                self.unhealthy.insert(gpu.to_string(), error.to_string());
            }
        }
    }

    /// Begins a full look at the GPUs, unless one is under way. What it finds of a GPU that is worked on meanwhile is void.
    pub fn begin_scan(&mut self) {
        if self.look.as_ref().is_some_and(|look| !look.is_finished()) {
            return;
        }
        let (driver, epochs, messages) =
            (self.means.driver.clone(), self.epochs.clone(), self.means.messages.clone());
        self.look = Some(tokio::spawn(async move {
            let scan = spawn_blocking(move || {
                let gpus = driver.gpus();
                let instances = gpus
                    .iter()
                    .flat_map(|(gpus, _)| gpus)
                    .map(|gpu| (gpu.uuid.clone(), driver.instances(gpu.index)))
                    .collect();
                Scan { gpus, instances, epochs }
            });
            if let Ok(scan) = scan.await {
                // Nobody listens any more only when the agent ends.
                let _ = messages.send(Message::Scanned(Box::new(scan))).await;
            }
        }));
    }

    /// Decides, acts, advertises, reports. Returns how long to wait if nothing happens.
    pub async fn step(&mut self) -> Option<Duration> {
        let moment = now();
        if self.missing {
            // The controller removes the MIGNode of a Node that is gone; only a Node that is there gets a new one.
            match self.means.node_status.refresh().await {
                Ok(true) => {}
                Ok(false) => return Some(PAUSE),
                Err(error) => {
                    warn!(%error, "cannot read the node");
                    return Some(PAUSE);
                }
            }
            match ensure(&self.means.mig_nodes, &self.means.name).await {
                Ok(()) => {
                    self.missing = false;
                    self.written = None;
                }
                Err(error) => {
                    warn!(%error, "MIGNode");
                    return Some(PAUSE);
                }
            }
        }
        self.bind();
        self.forget_failures();
        let wanted = self.wanted.clone().unwrap_or_default();
        let step = agent_step(moment, &wanted, &self.views, &self.reports);
        let (creates, destroys): (Vec<_>, Vec<_>) =
            step.operations.into_iter().partition(|(_, operation)| matches!(operation, Operation::Create(_)));
        match self.journal.intend(creates.iter().map(|(gpu, operation)| (gpu, operation.slice()))) {
            Ok(()) => creates.into_iter().for_each(|(gpu, operation)| self.begin(&gpu, operation)),
            Err(error) => {
                // Nothing is made that could not be told from somebody else's after a crash.
                warn!(%error, "nothing is made");
                self.problems = vec![error.to_string()];
            }
        }
        for (gpu, operation) in &destroys {
            self.mark(gpu, operation.clone());
        }
        // Once more, with what is under way now.
        let step = agent_step(moment, &wanted, &self.views, &self.reports);
        let advertised = self.means.node_status.advertise(&self.advertised(&step)).await;
        let can_destroy = advertised.is_ok();
        for (gpu, operation) in destroys {
            if can_destroy {
                self.begin(&gpu, operation);
            } else if let Some(view) = self.views.get_mut(&gpu) {
                view.running = None;
            }
        }
        if let Err(error) = advertised {
            warn!(%error, "cannot advertise on the node; trying again");
            return Some(PAUSE);
        }
        self.reports = step.reports;
        self.means.metrics.set_slices(&self.reports);
        if let Err(error) = self.report(moment).await {
            warn!(%error, "cannot report; trying again");
            return Some(PAUSE);
        }
        step.recheck_at.map(|at| (at - now()).max(Duration::from_millis(1)))
    }

    /// Settles which pod holds which slice.
    fn bind(&mut self) {
        let wanted = self.wanted.clone().unwrap_or_default();
        let indices: BTreeMap<&GpuUuid, u32> = self.gpus.iter().map(|gpu| (&gpu.uuid, gpu.index)).collect();
        let mut free = BTreeSet::new();
        for (uuid, view) in self.views.iter().filter(|(_, view)| view.unusable.is_none()) {
            let going = view.running.as_ref().map(Operation::slice);
            let ours = view.instances.iter().filter(|i| {
                i.ours
                    && i.compute.is_some()
                    && going != Some(&i.slice)
                    && wanted.get(uuid).is_some_and(|slices| slices.contains(&i.slice))
            });
            free.extend(ours.map(|i| Place {
                index: indices.get(uuid).copied().unwrap_or(u32::MAX),
                gpu: uuid.clone(),
                slice: i.slice.clone(),
            }));
        }
        if let Some(holders) = &self.holders {
            self.bindings.restore(holders, &std::mem::take(&mut self.before));
            self.bindings.update(holders, &free);
        }
        for (uuid, view) in &mut self.views {
            for instance in &mut view.instances {
                let pod = self.bindings.holder(uuid, &instance.slice).filter(|_| instance.ours);
                let process = || self.processes.get(&(uuid.clone(), instance.id)).cloned();
                instance.holder = pod.map(str::to_owned).or_else(process);
            }
        }
    }

    /// Forgets failures of what nobody wants done any more.
    fn forget_failures(&mut self) {
        let wanted = self.wanted.clone().unwrap_or_default();
        for (uuid, view) in &mut self.views {
            let instances = &view.instances;
            view.failures.retain(|failure| {
                let slice = failure.operation.slice();
                wanted.get(uuid).is_some_and(|slices| slices.contains(slice))
                    || instances.iter().any(|i| i.ours && i.slice == *slice)
            });
            let failures = &view.failures;
            self.attempts.retain(|(gpu, slice), _| {
                gpu != uuid || view.running.is_some() || failures.iter().any(|f| f.operation.slice() == slice)
            });
        }
    }

    fn mark(&mut self, gpu: &GpuUuid, operation: Operation) {
        *self.epochs.entry(gpu.clone()).or_default() += 1;
        if let Some(view) = self.views.get_mut(gpu) {
            view.running = Some(operation);
        }
    }

    fn begin(&mut self, gpu: &GpuUuid, operation: Operation) {
        let Some(index) = self.gpus.iter().find(|g| g.uuid == *gpu).map(|g| g.index) else { return };
        debug!(%gpu, ?operation, "begins");
        self.mark(gpu, operation.clone());
        let (driver, messages, gpu) = (self.means.driver.clone(), self.means.messages.clone(), gpu.clone());
        tokio::spawn(async move {
            let work = spawn_blocking(move || {
                let result = match &operation {
                    Operation::Create(slice) => {
                        driver.create(index, slice).map(Some).map_err(OperationError::Create)
                    }
                    Operation::Destroy { id, slice } => {
                        driver.destroy(index, *id, slice).map(|()| None).map_err(OperationError::Destroy)
                    }
                };
                let look = result.is_err().then(|| driver.instances(index));
                Done { gpu, operation, result, look }
            });
            if let Ok(done) = work.await {
                // Nobody listens any more only when the agent ends.
                let _ = messages.send(Message::Done(done)).await;
            }
        });
    }

    fn advertised(&self, step: &Step) -> Advertised {
        let mut capacity: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for gpu in self.gpus.iter().filter(|gpu| gpu.mig_mode == MigMode::Enabled) {
            for profile in &gpu.model.profiles {
                *capacity.entry(profile.name.clone()).or_default() += u32::from(profile.max_count);
            }
        }
        let mut allocatable: BTreeMap<ProfileName, u32> = capacity.keys().map(|p| (p.clone(), 0)).collect();
        allocatable.extend(step.usable());
        Advertised { capacity, allocatable }
    }

    async fn report(&mut self, moment: Timestamp) -> kube::Result<()> {
        let foreign: Vec<(String, Found)> = self
            .views
            .iter()
            .flat_map(|(uuid, view)| view.instances.iter().filter(|i| !i.ours).map(move |i| (uuid, i)))
            .map(|(uuid, i)| {
                let found = Found {
                    id: i.id,
                    slice: i.slice.clone(),
                    compute: i.compute.clone(),
                    processes: Vec::new(),
                };
                (uuid.to_string(), found)
            })
            .collect();
        let facts = Facts {
            gpus: &self.gpus,
            unhealthy: &self.unhealthy,
            problems: &self.problems,
            damage: self.journal.damage.as_deref(),
            reports: &self.reports,
            foreign: &foreign,
            boot_id: &self.means.boot_id,
            driver_version: self.means.driver.version(),
            generation: self.generation,
        };
        let status =
            report::status(moment, &facts, self.written.as_ref().unwrap_or(&MIGNodeStatus::default()));
        if self.written.as_ref() != Some(&status) {
            write_status(&self.means.mig_nodes, &self.means.name, &status).await?;
            self.written = Some(status);
        }
        self.reported = true;
        Ok(())
    }
}

/// What the agent before this one reported, as far as the times of states need it.
fn reported(object: &MIGNode) -> Vec<Report> {
    let slices = mig::from_api(object, None).slices.into_iter();
    slices
        .map(|s| Report {
            gpu: s.gpu,
            slice: s.slice,
            state: s.state,
            since: s.since,
            instance: None,
            compute: None,
            holder: None,
            message: None,
        })
        .collect()
}

/// Why a GPU that was here is not among those that answer.
fn why_silent(index: u32, problems: &[String]) -> String {
    let of_it = format!("GPU {index} ");
    let known = problems.iter().find(|p| p.starts_with(&of_it)).or(problems.first());
    known.cloned().unwrap_or_else(|| format!("NVML no longer lists GPU {index}; reboot the node"))
}

fn instance(found: &Found, ours: bool) -> Instance {
    Instance { id: found.id, slice: found.slice.clone(), compute: found.compute.clone(), ours, holder: None }
}
