//! What the agent knows, and how it comes to know it.

mod step;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use slicegate_core::agent::{GpuView, Holder, Report};
use slicegate_core::geometry::{Place, Slice};
use slicegate_core::id::GpuUuid;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use super::announce::Announcer;
use super::cdi::{CdiDir, SliceDevice};
use super::gpus::{Done, Gpus, Look, Scan};
use super::handoff::Handoff;
use super::handoff::kubelet::book::SharedBook;
use super::handoff::kubelet::{Registration, ResourcesError, Seen};
use super::handoff::stand_in::Holders;
use super::mig_mode::{MigModes, Outcome};
use super::node_status::NodeStatus;
use super::nvml::{Driver, Event, EventKind};
use super::{Metrics, report_unavailable};
use crate::api::convert::mig;
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
    /// Another plugin has come to the kubelet's folder.
    Plugins,
    /// A GPU was asked for MIG mode, by its index.
    MigMode(GpuUuid, u32, Outcome),
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
    /// The GPUs whose MIG mode is to be turned on, if that is the agent's to do.
    mig_modes: Option<MigModes>,
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
    /// A status that nobody waits for and that is not written yet, and since when there is something to be told.
    kept_back: Option<(Instant, MIGNodeStatus)>,
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
    pub fn new(means: Means, book: SharedBook, handoff: Handoff, mig_modes: Option<MigModes>) -> Self {
        Self {
            means,
            book,
            handoff,
            gpus: Gpus::default(),
            mig_modes,
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
            kept_back: None,
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
                // Its task may not have ended yet, and the next one is not to be put off for that.
                self.scan = None;
                if let (Err(error), false) = (&scan.gpus, self.gpus.scanned) {
                    // Nothing is known yet: a status of nothing would forget who holds what.
                    warn!(%error, "NVML does not list the GPUs");
                    let Means { mig_nodes, name, announcer, .. } = &mut self.means;
                    report_unavailable(mig_nodes, name, announcer, error).await;
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
                self.looks.remove(&gpu);
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
            Message::Plugins => self.begin_scan(),
            Message::MigMode(gpu, index, outcome) => {
                if let Some(modes) = &mut self.mig_modes {
                    modes.take_in(&gpu, index, &outcome);
                }
                self.begin_scan();
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
        for gpu in kubelet.given_back() {
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
