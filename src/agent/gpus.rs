//! The node's GPUs as NVML shows them, and what is being done on each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slicegate_core::agent::{Failure, GpuView, Holder, Instance, Offer, Operation};
use slicegate_core::geometry::{Model, Place, Slice};
use slicegate_core::id::GpuUuid;
use slicegate_core::memory::usable_gib;
use slicegate_core::profile::ProfileName;
use tracing::{info, warn};

use super::conflicts::other_plugins;
use super::journal::{Journal, JournalError};
use super::nvml::{CreateError, Driver, Event, EventKind, Found, GpuInfo, Left, NvmlError};
use crate::api::convert::now;
use crate::api::mig_node::MigMode;

/// First pause before an operation that failed is tried again; it doubles each time.
const RETRY: Duration = Duration::from_millis(200);
/// The longest such pause.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// For how long it is said that somebody else changed the geometry.
const LATELY: Duration = Duration::from_mins(10);

/// How an operation ended.
pub struct Done {
    /// The GPU.
    pub gpu: GpuUuid,
    /// What was done.
    pub operation: Operation,
    /// What came of it.
    pub result: Result<Option<Found>, OperationError>,
    /// A look at the GPU after a failure.
    pub look: Option<Look>,
}

/// Why an operation failed.
pub enum OperationError {
    /// Nothing could be made.
    Create(CreateError),
    /// It could not be destroyed.
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

/// What a look at one GPU found.
pub struct Look {
    /// When it began.
    pub begun: Instant,
    /// The instances.
    pub found: Result<Vec<Found>, NvmlError>,
}

impl Look {
    /// Looks now. Blocks.
    pub fn now(driver: &Driver, index: u32) -> Self {
        Self { begun: Instant::now(), found: driver.instances(index) }
    }
}

/// What a full look found.
pub struct Scan {
    /// The GPUs and what is wrong with those that do not answer.
    pub gpus: Result<(Vec<GpuInfo>, Vec<String>), NvmlError>,
    /// Numbers of the GPUs' device nodes.
    pub minors: BTreeMap<GpuUuid, u32>,
    /// What is on each.
    pub looks: BTreeMap<GpuUuid, Look>,
    /// How many operations each had seen when the look began.
    pub epochs: Epochs,
    /// Sockets of other device plugins.
    pub plugins: BTreeSet<String>,
}

impl Scan {
    /// Looks at everything, also at the kubelet's folder of plugins, if there is a kubelet. Blocks.
    pub fn now(driver: &Driver, epochs: Epochs, plugins: Option<&Path>) -> Self {
        let gpus = driver.gpus();
        let listed = gpus.iter().flat_map(|(gpus, _)| gpus);
        let minors =
            listed.clone().filter_map(|g| Some((g.uuid.clone(), driver.minor_number(g.index).ok()?)));
        let minors = minors.collect();
        let looks = listed.map(|gpu| (gpu.uuid.clone(), Look::now(driver, gpu.index))).collect();
        let plugins = plugins.map(other_plugins).unwrap_or_default();
        Self { gpus, minors, looks, epochs, plugins }
    }
}

/// Counts the operations on each GPU, so that a look begun before one is not taken for the state after it.
pub type Epochs = BTreeMap<GpuUuid, u64>;

/// The node's GPUs.
#[derive(Default)]
pub struct Gpus {
    list: Vec<GpuInfo>,
    minors: BTreeMap<GpuUuid, u32>,
    views: BTreeMap<GpuUuid, GpuView>,
    epochs: Epochs,
    /// What is wrong beyond single GPUs.
    pub problems: Vec<String>,
    /// GPUs that do not answer.
    silent: BTreeMap<GpuUuid, String>,
    /// GPUs that reported a critical error that concerns all of them. Only a reset helps.
    critical: BTreeMap<GpuUuid, String>,
    attempts: BTreeMap<Place, u32>,
    /// How much memory in GiB slices of each model can have together.
    most: Vec<(Arc<Model>, u64)>,
    /// A process in each GPU instance that has one.
    processes: BTreeMap<(GpuUuid, u32), u32>,
    /// Instances of ours that are gone though nobody was told to destroy them: what happened, by GPU, and when.
    meddled: BTreeMap<GpuUuid, (String, Instant)>,
    /// Whether everything has been seen once.
    pub scanned: bool,
}

impl Gpus {
    /// The GPUs, by index.
    pub fn list(&self) -> &[GpuInfo] {
        &self.list
    }

    /// What is on each.
    pub fn views(&self) -> &BTreeMap<GpuUuid, GpuView> {
        &self.views
    }

    /// What is wrong with each GPU that something is wrong with.
    pub fn unhealthy(&self) -> BTreeMap<String, String> {
        let wrong = |(uuid, view): (&GpuUuid, &GpuView)| {
            let silent = self.silent.get(uuid).cloned();
            Some((uuid.to_string(), view.broken.clone().or(silent)?))
        };
        self.views.iter().filter_map(wrong).collect()
    }

    /// What somebody else did to the geometry lately, by GPU.
    pub fn meddled(&self) -> BTreeMap<GpuUuid, String> {
        let lately = self.meddled.iter().filter(|(_, (_, at))| at.elapsed() < LATELY);
        lately.map(|(gpu, (what, _))| (gpu.clone(), what.clone())).collect()
    }

    /// Index and device number of a GPU.
    pub fn numbers(&self, gpu: &GpuUuid) -> Option<(u32, u32)> {
        let index = self.list.iter().find(|g| g.uuid == *gpu)?.index;
        Some((index, self.minors.get(gpu).copied().unwrap_or(index)))
    }

    /// The counts to give a look that begins now.
    pub fn epochs(&self) -> Epochs {
        self.epochs.clone()
    }

    /// Whether an operation runs.
    pub fn is_busy(&self) -> bool {
        self.views.values().any(|view| view.running.is_some())
    }

    /// Slices of each profile that the GPUs in MIG mode could hold at most.
    pub fn capacity(&self) -> BTreeMap<ProfileName, u32> {
        let mut capacity: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for gpu in self.list.iter().filter(|gpu| gpu.mig_mode == MigMode::Enabled) {
            for profile in &gpu.model.profiles {
                *capacity.entry(profile.name.clone()).or_default() += u32::from(profile.max_count);
            }
        }
        capacity
    }

    /// GPU memory of the node's slices in GiB, by their names: as much as pods can be given or have together.
    pub fn memory(&mut self) -> u64 {
        let mut total = 0;
        for view in self.views.values() {
            let known = self.most.iter().find(|(model, _)| *model == view.model).map(|(_, most)| *most);
            let most = known.unwrap_or_else(|| {
                let most = view.model.most_gib();
                self.most.push((view.model.clone(), most));
                most
            });
            total += usable_gib(view, most);
        }
        total
    }

    /// The slices of ours that are whole, with NVML's numbers, by place.
    pub fn whole(&self) -> impl Iterator<Item = (Place, &Instance)> {
        self.views.iter().flat_map(|(uuid, view)| {
            let whole = view.instances.iter().filter(|i| i.ours && i.compute.is_some());
            whole.map(move |i| (Place::new(uuid, &i.slice), i))
        })
    }

    /// Changes what is noted of each instance of ours.
    pub fn annotate(&mut self, mut note: impl FnMut(&Place, &mut Instance)) {
        for (uuid, view) in &mut self.views {
            for instance in view.instances.iter_mut().filter(|i| i.ours) {
                note(&Place::new(uuid, &instance.slice), instance);
            }
        }
    }

    /// The process that holds a GPU instance.
    pub fn process(&self, gpu: &GpuUuid, instance: u32) -> Option<Holder> {
        self.processes.get(&(gpu.clone(), instance)).map(|id| Holder::Process(*id))
    }

    /// Notes that something is done on a GPU from now on.
    pub fn mark(&mut self, gpu: &GpuUuid, operation: Operation) {
        *self.epochs.entry(gpu.clone()).or_default() += 1;
        if let Some(view) = self.views.get_mut(gpu) {
            view.running = Some(operation);
        }
    }

    /// Takes in how an operation ended.
    pub fn take_in_done(&mut self, done: Done, journal: &mut Journal) {
        let Done { gpu, operation, result, look } = done;
        let slice = operation.slice().clone();
        *self.epochs.entry(gpu.clone()).or_default() += 1;
        let Some(view) = self.views.get_mut(&gpu) else { return };
        view.running = None;
        view.failures.retain(|failure| failure.operation.slice() != &slice);
        let noted = match (&operation, &result) {
            (Operation::Create(_), Ok(Some(found))) => {
                info!(gpu = %gpu, profile = %slice.profile, start = slice.start, "slice made");
                view.instances.push(instance(found, true, None));
                journal.made(&gpu, &slice, found.id)
            }
            (Operation::Destroy { id, .. }, Ok(_)) => {
                info!(gpu = %gpu, profile = %slice.profile, start = slice.start, "slice destroyed");
                view.instances.retain(|i| i.id != *id);
                journal.gone(&gpu, &slice)
            }
            (Operation::Create(_), Err(OperationError::Create(error))) => match error.leaves() {
                Left::Instance(id) => journal.made(&gpu, &slice, id),
                Left::Nothing => journal.gone(&gpu, &slice),
                // The intent stays; a look that finds nothing at the place strikes it out.
                Left::Unknown => Ok(()),
            },
            _ => Ok(()),
        };
        warn_of(noted);
        let place = Place::new(&gpu, &slice);
        match result {
            Ok(_) => {
                self.attempts.remove(&place);
            }
            Err(error) => {
                warn!(gpu = %gpu, profile = %slice.profile, start = slice.start, %error, "operation failed");
                let attempts = self.attempts.entry(place).or_default();
                let pause = RETRY.saturating_mul(2_u32.saturating_pow(*attempts)).min(MAX_RETRY);
                *attempts += 1;
                let message = error.to_string();
                view.failures.push(Failure { operation, message, retry_at: now() + pause });
            }
        }
        if let Some(look) = look {
            self.set_instances(&gpu, look, journal);
        }
    }

    /// Takes in a full look. What it found on a GPU that is worked on, or was meanwhile, is void. Returns when the looks that
    /// count began.
    pub fn take_in_scan(&mut self, scan: Scan, journal: &mut Journal) -> BTreeMap<GpuUuid, Instant> {
        self.scanned = true;
        let (mut gpus, problems) = match scan.gpus {
            Ok(listed) => listed,
            Err(error) => (Vec::new(), vec![format!("NVML does not list the GPUs: {error}")]),
        };
        // A GPU that was here and does not answer stays, with its slices: pods may hold them.
        self.silent = self
            .list
            .iter()
            .filter(|known| !gpus.iter().any(|gpu| gpu.uuid == known.uuid))
            .map(|known| (known.uuid.clone(), why_silent(known.index, &problems)))
            .collect();
        gpus.extend(self.list.iter().filter(|known| self.silent.contains_key(&known.uuid)).cloned());
        gpus.sort_by_key(|gpu| gpu.index);
        (self.list, self.problems) = (gpus, problems);
        self.minors.extend(scan.minors);
        for gpu in &self.list {
            let unusable = match gpu.mig_mode {
                _ if self.silent.contains_key(&gpu.uuid) => self.silent.get(&gpu.uuid).cloned(),
                MigMode::Enabled => None,
                MigMode::Disabled => Some(format!(
                    "MIG mode is off on GPU {}; enable it with nvidia-smi -i {} -mig 1",
                    gpu.index, gpu.index
                )),
                MigMode::NotSupported | MigMode::Unknown => {
                    Some(format!("GPU {} does not support MIG", gpu.index))
                }
            };
            let view = self.views.entry(gpu.uuid.clone()).or_insert_with(|| GpuView {
                model: gpu.model.clone(),
                unusable: None,
                broken: None,
                instances: Vec::new(),
                running: None,
                failures: Vec::new(),
            });
            view.model = gpu.model.clone();
            view.unusable = unusable;
        }
        let mut counted = BTreeMap::new();
        for (uuid, look) in scan.looks {
            if self.may_count(&uuid, scan.epochs.get(&uuid)) {
                counted.extend(look.found.is_ok().then(|| (uuid.clone(), look.begun)));
                self.set_instances(&uuid, look, journal);
            }
        }
        counted
    }

    /// Takes in a look at one GPU. Whether it counts.
    pub fn take_in_look(
        &mut self,
        gpu: &GpuUuid,
        look: Look,
        epoch: Option<u64>,
        journal: &mut Journal,
    ) -> bool {
        let counts = self.may_count(gpu, epoch.as_ref()) && look.found.is_ok();
        if self.may_count(gpu, epoch.as_ref()) {
            self.set_instances(gpu, look, journal);
        }
        counts
    }

    /// Takes in what NVML reported by itself.
    pub fn take_in_event(&mut self, event: &Event) {
        let EventKind::Xid(xid) = event.kind else { return };
        let index = self.numbers(&event.gpu).map_or(0, |(index, _)| index);
        let Some(view) = self.views.get_mut(&event.gpu) else { return };
        let Some(id) = event.instance else {
            let message = format!(
                "GPU {index} reported XID {xid}; once its pods are gone, take the agent off the node (label \
                 slicegate.dev/agent=paused), reset the GPU (nvidia-smi -r -i {index}) and remove the label, or reboot the node"
            );
            warn!(gpu = %event.gpu, xid, "critical error of the whole GPU");
            view.broken = Some(message.clone());
            self.critical.insert(event.gpu.clone(), message);
            return;
        };
        for instance in view.instances.iter_mut().filter(|i| i.id == id) {
            warn!(gpu = %event.gpu, profile = %instance.slice.profile, start = instance.slice.start, xid, "critical error");
            instance.broken = Some(format!(
                "GPU {index} reported XID {xid} for this slice; it is made anew once its pod has let go of it"
            ));
        }
    }

    /// Forgets failures of what nobody wants done any more.
    pub fn forget_failures(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        for (uuid, view) in &mut self.views {
            let instances = &view.instances;
            view.failures.retain(|failure| {
                let slice = failure.operation.slice();
                wanted.get(uuid).is_some_and(|slices| slices.contains(slice))
                    || instances.iter().any(|i| i.ours && i.slice == *slice)
            });
            let failures = &view.failures;
            self.attempts.retain(|place, _| {
                place.gpu != *uuid
                    || view.running.is_some()
                    || failures.iter().any(|f| *f.operation.slice() == place.slice)
            });
        }
    }

    /// Takes up the instances that are ours by another's word than the journal's: `uuids` of MIG devices.
    pub fn adopt(&mut self, uuids: &BTreeSet<String>, journal: &mut Journal) {
        for (uuid, view) in &mut self.views {
            for instance in view.instances.iter_mut().filter(|i| !i.ours) {
                if instance.compute.as_ref().is_some_and(|compute| uuids.contains(&compute.uuid)) {
                    info!(gpu = %uuid, profile = %instance.slice.profile, start = instance.slice.start, "ours by the MIGNode");
                    instance.ours = true;
                    warn_of(journal.adopt(uuid, &instance.slice, instance.id));
                }
            }
        }
    }

    fn may_count(&self, gpu: &GpuUuid, epoch: Option<&u64>) -> bool {
        let running = self.views.get(gpu).is_none_or(|view| view.running.is_some());
        !running && self.epochs.get(gpu) == epoch
    }

    fn set_instances(&mut self, gpu: &GpuUuid, look: Look, journal: &mut Journal) {
        let index = self.numbers(gpu).map_or(0, |(index, _)| index);
        let Some(view) = self.views.get_mut(gpu) else { return };
        let found = match look.found {
            Ok(found) => found,
            Err(error) => {
                let message = format!("GPU {index} does not answer: {error}");
                if error.is_loss() {
                    view.broken = Some(message.clone());
                }
                view.unusable = Some(message.clone());
                self.silent.insert(gpu.clone(), message);
                return;
            }
        };
        self.silent.remove(gpu);
        let before = std::mem::take(&mut view.instances);
        let ours = |f: &Found| journal.is_ours(gpu, &f.slice, f.id);
        view.instances =
            found.iter().map(|f| instance(f, ours(f), before.iter().find(|i| is(i, f)))).collect();
        let gone: Vec<&Instance> =
            before.iter().filter(|i| i.ours && !found.iter().any(|f| is(i, f))).collect();
        if let Some(first) = gone.first() {
            // Nobody but the agent may do that, and the agent would know.
            let all = found.is_empty();
            let message = format!(
                "{} of Slicegate's MIG instances on GPU {index} {} gone ({} at {} first): {}. What is wanted is made again; pods that \
                 had one must restart",
                gone.len(),
                if gone.len() == 1 { "is" } else { "are" },
                first.slice.profile,
                first.slice.start,
                if all {
                    "the GPU was reset, the driver was reloaded, or somebody cleared it"
                } else {
                    "somebody else changes the geometry, such as mig-manager or nvidia-smi; see to it that nobody does"
                }
            );
            warn!(gpu = %gpu, message);
            self.meddled.insert(gpu.clone(), (message, Instant::now()));
            if all {
                // After a reset it works again.
                self.critical.remove(gpu);
            }
        }
        view.broken = self.critical.get(gpu).cloned();
        self.processes.retain(|(uuid, _), _| uuid != gpu);
        for f in &found {
            self.processes.extend(f.processes.first().map(|pid| ((gpu.clone(), f.id), *pid)));
        }
        let exists = |slice: &Slice| found.iter().any(|f| f.slice == *slice);
        warn_of(journal.sweep(gpu, exists));
    }
}

fn warn_of(noted: Result<(), JournalError>) {
    if let Err(error) = noted {
        warn!(%error, "journal");
    }
}

/// Why a GPU that was here is not among those that answer.
fn why_silent(index: u32, problems: &[String]) -> String {
    let of_it = format!("GPU {index} ");
    let known = problems.iter().find(|p| p.starts_with(&of_it)).or(problems.first());
    known.cloned().unwrap_or_else(|| format!("NVML no longer lists GPU {index}; reboot the node"))
}

/// Whether it is the same instance, with the same compute instance if it had one.
fn is(known: &Instance, found: &Found) -> bool {
    known.id == found.id
        && known.slice == found.slice
        && (known.compute.is_none() || known.compute == found.compute)
}

fn instance(found: &Found, ours: bool, before: Option<&Instance>) -> Instance {
    Instance {
        id: found.id,
        slice: found.slice.clone(),
        compute: found.compute.clone(),
        ours,
        holder: None,
        offer: before.map_or(Offer::Pending, |known| known.offer),
        broken: before.and_then(|known| known.broken.clone()),
        obstacle: None,
        spent: false,
        misnamed: false,
    }
}
