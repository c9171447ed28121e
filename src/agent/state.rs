//! What the agent knows, and one step of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use slicegate_core::agent::{GpuView, Holder, Offer, Operation, Report, agent_step, servable};
use slicegate_core::geometry::{Place, Slice};
use slicegate_core::id::GpuUuid;
use slicegate_core::time::Timestamp;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{debug, warn};

use super::announce::Announcer;
use super::cdi::{CdiDir, SliceDevice};
use super::conflicts::{Signs, conflicts};
use super::gpus::{Done, Gpus, Look, OperationError, Scan};
use super::handoff::kubelet::book::SharedBook;
use super::handoff::kubelet::{Registration, ResourcesError, Seen, WHOLE_GPU};
use super::handoff::stand_in::Holders;
use super::handoff::{Handoff, Open, Shown};
use super::node_status::NodeStatus;
use super::nvml::{Driver, Event, EventKind, Found};
use super::report::{self, Facts};
use super::{Metrics, PAUSE, ensure, report_unavailable, write_status};
use crate::api::convert::{mig, now};
use crate::api::mig_node::{MIGNode, MIGNodeStatus, SliceStatus};
use crate::api::names;

/// Pause between looks at a GPU on which a process has outlived its pod.
const LINGERING: Duration = Duration::from_secs(1);

/// What reaches the deciding task.
pub enum Message {
    /// Our MIGNode as it is now; `None` when it is gone.
    Object(Option<Box<MIGNode>>),
    /// Our Node as it is now; `None` when it is gone.
    Node(Option<Box<Node>>),
    /// An operation on a GPU ended.
    Done(Box<Done>),
    /// A full look at the GPUs ended.
    Scanned(Box<Scan>),
    /// A look at one GPU ended, which had seen so many operations when it began.
    Looked(GpuUuid, Look, Option<u64>),
    /// NVML reported something by itself.
    Health(Event),
    /// The live pods of the node, where there is no kubelet.
    Pods(Holders),
    /// The kubelet was given what it asked for.
    Allocated,
    /// The plugins are registered with the kubelet, or why not.
    Registration(Registration),
    /// A look at the kubelet ended.
    Kubelet(Box<Result<Seen, ResourcesError>>),
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
    /// What containers find on the node; none without a kubelet.
    pub cdi: Option<CdiDir>,
    /// The kubelet's folder of plugins; none without a kubelet.
    pub plugins: Option<PathBuf>,
    /// Events.
    pub announcer: Announcer,
}

/// What the agent knows.
pub struct Agent {
    means: Means,
    book: SharedBook,
    handoff: Handoff,
    gpus: Gpus,
    wanted: Option<BTreeMap<GpuUuid, Vec<Slice>>>,
    /// Whether slices are made anew after each pod.
    remake_after_use: bool,
    controller_version: Option<String>,
    node: Option<Node>,
    /// Sockets of other device plugins.
    plugins: BTreeSet<String>,
    generation: i64,
    missing: bool,
    /// MIG devices that were ours by the MIGNode, when this agent started.
    ours_before: BTreeSet<String>,
    /// The slices of which the CDI specifications speak, and why some could not be written.
    described: Option<Vec<SliceDevice>>,
    obstacle: Option<String>,
    reports: Vec<Report>,
    written: Option<MIGNodeStatus>,
    /// Whether a status of this agent has been written.
    reported: bool,
    /// The looks that are under way, or were last: of everything, and of single GPUs.
    scan: Option<JoinHandle<()>>,
    looks: BTreeMap<GpuUuid, JoinHandle<()>>,
    /// When the last look at each single GPU began.
    looked: BTreeMap<GpuUuid, Instant>,
}

impl Agent {
    /// An agent that has seen nothing yet.
    pub fn new(means: Means, book: SharedBook, handoff: Handoff) -> Self {
        Self {
            means,
            book,
            handoff,
            gpus: Gpus::default(),
            wanted: None,
            remake_after_use: false,
            controller_version: None,
            node: None,
            plugins: BTreeSet::new(),
            generation: 0,
            missing: false,
            ours_before: BTreeSet::new(),
            described: None,
            obstacle: None,
            reports: Vec::new(),
            written: None,
            reported: false,
            scan: None,
            looks: BTreeMap::new(),
            looked: BTreeMap::new(),
        }
    }

    /// Whether anything may be decided: spec, holders and GPUs have all been seen.
    pub fn knows_enough(&self) -> bool {
        self.wanted.is_some() && self.handoff.knows_enough() && self.gpus.scanned
    }

    /// Whether a status has been written.
    pub fn has_reported(&self) -> bool {
        self.reported
    }

    /// Whether an operation runs.
    pub fn is_busy(&self) -> bool {
        self.gpus.is_busy()
    }

    /// Takes in a message.
    pub async fn take_in(&mut self, message: Message) {
        match message {
            Message::Object(Some(object)) => self.take_in_object(&object),
            Message::Object(None) => {
                warn!(node = self.means.name, "the MIGNode is gone; making it again");
                self.missing = true;
            }
            Message::Node(node) => {
                self.means.node_status.observe(node.as_deref());
                self.node = node.map(|node| *node);
            }
            Message::Done(done) => self.gpus.take_in_done(*done, &mut self.book.lock().journal),
            Message::Scanned(scan) => {
                if let (Err(error), false) = (&scan.gpus, self.gpus.scanned) {
                    // Nothing is known yet: a status of nothing would forget who holds what.
                    warn!(%error, "NVML does not list the GPUs");
                    report_unavailable(&self.means.mig_nodes, &self.means.name, error).await;
                    return;
                }
                // What stands in the folder of CDI specifications may have been changed, too.
                self.described = None;
                self.plugins.clone_from(&scan.plugins);
                let counted = self.gpus.take_in_scan(*scan, &mut self.book.lock().journal);
                for (gpu, begun) in counted {
                    self.release(&gpu, begun);
                }
                // The kubelet is looked at as often as the GPUs, whatever happens.
                self.wake_kubelet();
            }
            Message::Looked(gpu, look, epoch) => {
                let begun = look.begun;
                let counts = self.gpus.take_in_look(&gpu, look, epoch, &mut self.book.lock().journal);
                if counts {
                    self.release(&gpu, begun);
                }
            }
            Message::Health(event) => {
                self.gpus.take_in_event(&event);
                if event.kind != EventKind::MigConfigChange || !self.is_busy() {
                    self.begin_scan();
                }
            }
            Message::Pods(holders) => {
                if let Handoff::StandIn(stand_in) = &mut self.handoff {
                    stand_in.set_holders(holders);
                }
            }
            Message::Allocated => self.wake_kubelet(),
            Message::Registration(registration) => {
                if let Handoff::Kubelet(kubelet) = &mut self.handoff {
                    kubelet.take_in_registration(registration);
                }
            }
            Message::Kubelet(look) => self.take_in_kubelet(*look),
        }
    }

    fn take_in_object(&mut self, object: &MIGNode) {
        self.missing = false;
        self.generation = object.metadata.generation.unwrap_or_default();
        self.means.announcer.set_uid(object.metadata.uid.clone());
        let annotations = object.metadata.annotations.as_ref();
        self.controller_version =
            annotations.and_then(|annotations| annotations.get(names::CONTROLLER_VERSION)).cloned();
        self.remake_after_use = object.spec.remake_after_use;
        if self.wanted.is_none() {
            self.take_in_former(object);
        } else if object.status != self.written && object.status.is_none() {
            // A new object under the same name.
            self.written = None;
        }
        self.wanted = Some(mig::spec_from_api(&object.spec).gpus);
        // A claim that is gone was a pod's that is over.
        self.wake_kubelet();
    }

    /// Takes up what the agent before this one said.
    fn take_in_former(&mut self, object: &MIGNode) {
        let status = object.status.clone().unwrap_or_default();
        self.written.clone_from(&object.status);
        if status.boot_id.as_deref() != Some(&self.means.boot_id) {
            return;
        }
        self.ours_before = status.slices.iter().filter_map(|s| s.uuid.clone()).collect();
        self.reports = reported(object);
        if let Handoff::StandIn(stand_in) = &mut self.handoff {
            let held = |s: &SliceStatus| {
                let slice = Slice { start: s.start, size: s.size, profile: s.profile.parse().ok()? };
                Some((Place { gpu: s.gpu.as_str().into(), slice }, s.pod.clone()?))
            };
            stand_in.set_before(status.slices.iter().filter_map(held).collect());
        }
    }

    fn take_in_kubelet(&mut self, look: Result<Seen, ResourcesError>) {
        let Handoff::Kubelet(kubelet) = &mut self.handoff else { return };
        let by_uuid = self
            .gpus
            .whole()
            .filter_map(|(place, instance)| Some((instance.compute.as_ref()?.uuid.clone(), place)))
            .collect();
        kubelet.take_in_look(look, &by_uuid);
        // What was given back is free once NVML shows nothing in it.
        for gpu in kubelet.given_back().into_keys() {
            self.begin_look(&gpu);
        }
    }

    fn wake_kubelet(&mut self) {
        if let Handoff::Kubelet(kubelet) = &mut self.handoff {
            kubelet.wake();
        }
    }

    fn release(&mut self, gpu: &GpuUuid, begun: Instant) {
        if let Handoff::Kubelet(kubelet) = &mut self.handoff {
            kubelet.release(gpu, begun);
        }
    }

    /// Begins a full look at the GPUs, unless one is under way.
    pub fn begin_scan(&mut self) {
        if self.scan.as_ref().is_some_and(|scan| !scan.is_finished()) {
            return;
        }
        let (driver, epochs, messages) =
            (self.means.driver.clone(), self.gpus.epochs(), self.means.messages.clone());
        let plugins = self.means.plugins.clone();
        self.scan = Some(tokio::spawn(async move {
            let scan = spawn_blocking(move || Scan::now(&driver, epochs, plugins.as_deref()));
            if let Ok(scan) = scan.await {
                // Nobody listens any more only when the agent ends.
                let _ = messages.send(Message::Scanned(Box::new(scan))).await;
            }
        }));
    }

    /// Begins a look at one GPU, unless one is under way.
    fn begin_look(&mut self, gpu: &GpuUuid) {
        if self.looks.get(gpu).is_some_and(|look| !look.is_finished()) {
            return;
        }
        let Some((index, _)) = self.gpus.numbers(gpu) else { return };
        let (driver, messages) = (self.means.driver.clone(), self.means.messages.clone());
        let (epoch, uuid) = (self.gpus.epochs().get(gpu).copied(), gpu.clone());
        let look = tokio::spawn(async move {
            if let Ok(look) = spawn_blocking(move || Look::now(&driver, index)).await {
                let _ = messages.send(Message::Looked(uuid, look, epoch)).await;
            }
        });
        self.looks.insert(gpu.clone(), look);
        self.looked.insert(gpu.clone(), Instant::now());
    }

    /// Looks again at the GPUs on which a process has a slice and no pod is known to: nobody tells when it ends, and somebody
    /// may wait for the slice. Says when the next look is due.
    fn look_for_ends(&mut self) -> Option<Duration> {
        let has_process = |view: &GpuView| {
            view.instances.iter().any(|i| i.ours && matches!(i.holder, Some(Holder::Process(_))))
        };
        let views = self.gpus.views().iter();
        let gpus: Vec<GpuUuid> =
            views.filter(|(_, view)| has_process(view)).map(|(gpu, _)| gpu.clone()).collect();
        for gpu in &gpus {
            if self.looked.get(gpu).is_none_or(|at| at.elapsed() >= LINGERING) {
                self.begin_look(gpu);
            }
        }
        (!gpus.is_empty()).then_some(LINGERING)
    }

    /// Decides, acts, advertises, reports. Returns how long to wait if nothing happens.
    pub async fn step(&mut self) -> Option<Duration> {
        let moment = now();
        if self.missing && !self.make_object().await {
            return Some(PAUSE);
        }
        let wanted = self.wanted.clone().unwrap_or_default();
        self.prepare(&wanted);
        let shown = self.offer(&wanted);
        let advertised = if shown.known {
            self.means.node_status.advertise(&shown.capacity, &shown.allocatable).await
        } else {
            Ok(false)
        };
        let serves = servable(&wanted, self.gpus.views());
        self.note_offers(&serves, &shown, matches!(advertised, Ok(true)));
        self.act(moment, &wanted);
        self.register(&wanted);

        let step = agent_step(moment, &wanted, self.gpus.views(), &self.reports);
        let settled = serves.iter().all(|place| shown.settled.contains(&place.slice.profile));
        let kubelet_due = match &mut self.handoff {
            Handoff::Kubelet(kubelet) => kubelet.look(settled && shown.settled.len() == shown.capacity.len()),
            Handoff::StandIn(_) => None,
        };
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
        let recheck = step.recheck_at.map(|at| (at - now()).max(Duration::from_millis(1)));
        recheck.into_iter().chain(kubelet_due).chain(self.look_for_ends()).min()
    }

    /// Makes the MIGNode again. The controller removes that of a Node that is gone; only a Node that is there gets a new one.
    async fn make_object(&mut self) -> bool {
        match self.means.node_status.refresh().await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                warn!(%error, "cannot read the node");
                return false;
            }
        }
        if let Err(error) = ensure(&self.means.mig_nodes, &self.means.name).await {
            warn!(%error, "MIGNode");
            return false;
        }
        self.missing = false;
        self.written = None;
        true
    }

    /// Settles what is ours, who has it, and what stands in its way.
    fn prepare(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        let uuids = std::mem::take(&mut self.ours_before);
        {
            let journal = &mut self.book.lock().journal;
            // What an agent reported with its MIG device's UUID, it had made.
            if journal.is_new && !uuids.is_empty() {
                self.gpus.adopt(&uuids, journal);
            }
            // With a kubelet, who has what is still to be found out.
            if journal.is_new
                && matches!(self.handoff, Handoff::StandIn(_))
                && let Err(error) = journal.complete()
            {
                warn!(%error, "journal");
            }
        }
        if let Handoff::StandIn(stand_in) = &mut self.handoff {
            stand_in.settle();
        }
        self.gpus.forget_failures(wanted);
        self.note_holders();
        self.write_cdi();
    }

    fn note_holders(&mut self) {
        let mut processes = BTreeMap::new();
        for (place, instance) in self.gpus.whole() {
            processes
                .extend(self.gpus.process(&place.gpu, instance.id).map(|process| (place.clone(), process)));
        }
        let book = self.book.clone();
        let (handoff, remake) = (&self.handoff, self.remake_after_use);
        self.gpus.annotate(|place, instance| {
            instance.holder = handoff.holder(place).or_else(|| processes.get(place).cloned());
            instance.spent = remake && book.lock().journal.is_used(&place.gpu, &place.slice);
            let uuid = instance.compute.as_ref().map(|compute| compute.uuid.as_str());
            instance.misnamed = uuid.is_some_and(|uuid| handoff.is_misnamed(place, uuid));
        });
    }

    /// Writes the CDI specifications of what there is; without its own no slice is offered.
    fn write_cdi(&mut self) {
        let Some(cdi) = &mut self.means.cdi else { return };
        let device = |(place, i): (Place, &slicegate_core::agent::Instance)| {
            let (index, minor) = self.gpus.numbers(&place.gpu)?;
            let compute = i.compute.as_ref()?;
            Some(SliceDevice {
                gpu: place.gpu,
                gpu_index: index,
                gpu_minor: minor,
                slice: place.slice,
                mig_uuid: compute.uuid.clone(),
                gpu_instance: i.id,
                compute_instance: compute.id,
            })
        };
        let devices: Vec<SliceDevice> = self.gpus.whole().filter_map(device).collect();
        if self.described.as_ref() != Some(&devices) {
            let obstacle = cdi.sync(&devices).err().map(|error| error.to_string());
            if let Some(error) = obstacle.as_ref().filter(|_| obstacle != self.obstacle) {
                warn!(error, "slices cannot be offered");
            }
            // What failed is tried again at the next full look.
            self.described = Some(devices);
            self.obstacle = obstacle;
        }
        // What pods have and was offered before stays: its specification was written once.
        let obstacle = self.obstacle.clone().unwrap_or_default();
        let handoff = &self.handoff;
        self.gpus.annotate(|place, instance| {
            let offered = instance.holder.is_some() || instance.offer == Offer::Shown;
            let ready = offered || cdi.is_ready(&place.gpu, &place.slice);
            let undescribed = (!ready && instance.compute.is_some()).then(|| obstacle.clone());
            instance.obstacle = undescribed.or_else(|| handoff.obstacle(place));
        });
    }

    fn offer(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) -> Shown {
        let serves = servable(wanted, self.gpus.views());
        let mut open: Vec<(Place, u32, String)> = self
            .gpus
            .whole()
            .filter(|(place, _)| serves.contains(place))
            .filter_map(|(place, i)| {
                let (index, _) = self.gpus.numbers(&place.gpu)?;
                Some((place, index, i.compute.as_ref()?.uuid.clone()))
            })
            .collect();
        open.sort_by(|a, b| (a.1, &a.0.slice).cmp(&(b.1, &b.0.slice)));
        let capacity = self.gpus.capacity();
        let shown = self.handoff.offer(Open(open), &capacity);
        // Who was given something by that, where there is no kubelet.
        if matches!(self.handoff, Handoff::StandIn(_)) {
            self.note_holders();
        }
        shown
    }

    /// Notes how far slices are in pods' sight.
    fn note_offers(&mut self, serves: &BTreeSet<Place>, shown: &Shown, on_node: bool) {
        let handoff = &self.handoff;
        self.gpus.annotate(|place, instance| {
            let settled = on_node && shown.settled.contains(&place.slice.profile);
            instance.offer = match (serves.contains(place), instance.offer) {
                // What is half made never was.
                _ if instance.compute.is_none() => Offer::Withdrawn,
                (true, Offer::Shown) => Offer::Shown,
                (true, _) if settled => Offer::Shown,
                (false, Offer::Withdrawn) => Offer::Withdrawn,
                (false, _) if settled && handoff.is_free(place) => Offer::Withdrawn,
                (false, _) if !shown.capacity.contains_key(&place.slice.profile) => Offer::Withdrawn,
                _ => Offer::Pending,
            };
        });
    }

    /// Begins what is to be done. Nothing is made that could not be told from somebody else's after a crash.
    fn act(&mut self, moment: Timestamp, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        let step = agent_step(moment, wanted, self.gpus.views(), &self.reports);
        let creates = step.operations.iter().filter(|(_, o)| matches!(o, Operation::Create(_)));
        let intended =
            self.book.lock().journal.intend(creates.map(|(gpu, operation)| (gpu, operation.slice())));
        if let Err(error) = &intended {
            warn!(%error, "nothing is made");
            self.gpus.problems = vec![error.to_string()];
        }
        for (gpu, operation) in step.operations {
            let may = match &operation {
                Operation::Create(_) => intended.is_ok(),
                // Once more, since pods may have come in between.
                Operation::Destroy { slice, .. } => self.handoff.is_free(&Place::new(&gpu, slice)),
            };
            if may {
                self.begin(&gpu, operation);
            }
        }
    }

    fn begin(&mut self, gpu: &GpuUuid, operation: Operation) {
        let Some((index, _)) = self.gpus.numbers(gpu) else { return };
        debug!(%gpu, ?operation, "begins");
        self.gpus.mark(gpu, operation.clone());
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
                let look = result.is_err().then(|| Look::now(&driver, index));
                Done { gpu, operation, result, look }
            });
            if let Ok(done) = work.await {
                // Nobody listens any more only when the agent ends.
                let _ = messages.send(Message::Done(Box::new(done))).await;
            }
        });
    }

    /// Registers with the kubelet once everything that is wanted has been made or has failed: after a reboot pods would
    /// otherwise be admitted, or refused, before their slices are there again.
    fn register(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        let Handoff::Kubelet(kubelet) = &mut self.handoff else { return };
        let views = self.gpus.views();
        let is_due = |(gpu, slices): (&GpuUuid, &Vec<Slice>)| {
            views.get(gpu).is_none_or(|view| {
                slices.iter().all(|slice| {
                    view.unusable.is_some()
                        || view.broken.is_some()
                        || view
                            .instances
                            .iter()
                            .any(|i| i.slice == *slice && (i.compute.is_some() || !i.ours))
                        || view.failures.iter().any(|f| f.operation.slice() == slice)
                })
            })
        };
        if wanted.iter().all(is_due) || !self.gpus.is_busy() {
            kubelet.begin();
        }
    }

    async fn report(&mut self, moment: Timestamp) -> kube::Result<()> {
        let foreign: Vec<(String, Found)> = self
            .gpus
            .views()
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
        let damage = self.book.lock().journal.damage.clone();
        let mut problems = self.gpus.problems.clone();
        problems.extend(self.obstacle.clone());
        let unhealthy = self.gpus.unhealthy();
        let conflicts = conflicts(&self.signs());
        let facts = Facts {
            gpus: self.gpus.list(),
            unhealthy: &unhealthy,
            problems: &problems,
            damage: damage.as_deref(),
            kubelet: self.handoff.trouble(),
            notice: self.means.cdi.as_ref().and_then(CdiDir::notice),
            conflicts: &conflicts,
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
            let before = self.written.replace(status).map(|status| status.conditions).unwrap_or_default();
            let after = self.written.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            self.means.announcer.announce(&before, after).await;
        }
        self.reported = true;
        Ok(())
    }

    /// What may betray that somebody else has a hand in the GPUs.
    fn signs(&self) -> Signs<'_> {
        let seen = match &self.handoff {
            Handoff::Kubelet(kubelet) => kubelet.seen(),
            Handoff::StandIn(_) => None,
        };
        let allocatable = self.node.as_ref().and_then(|node| node.status.as_ref()?.allocatable.as_ref());
        let whole_gpus = allocatable.and_then(|all| all.get(WHOLE_GPU)?.0.parse().ok());
        Signs {
            plugins: self.plugins.clone(),
            devices: seen.map(|seen| seen.strange.clone()).unwrap_or_default(),
            labels: self.node.as_ref().and_then(|node| node.metadata.labels.clone()).unwrap_or_default(),
            whole_gpus: whole_gpus.unwrap_or(0),
            whole_gpu_pods: seen.map(|seen| seen.whole_gpu.clone()).unwrap_or_default(),
            meddled: self.gpus.meddled(),
            controller: self.controller_version.as_deref(),
            agent: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Says in the MIGNode that the agent ends: its slices stay, and nothing new is placed here until it is back.
    pub async fn say_goodbye(&mut self) {
        let Some(before) = self.written.take() else { return };
        let status = report::stopped(now(), &before);
        if let Err(error) = write_status(&self.means.mig_nodes, &self.means.name, &status).await {
            warn!(%error, "cannot report that the agent ends");
        }
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
            restart_pod: false,
        })
        .collect()
}
