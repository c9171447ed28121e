//! The node agent: makes its MIGNode's `spec` true on the GPUs, and reports what there is.
//!
//! One task owns what the agent knows and decides with [`slicegate_core::agent::agent_step`]; NVML calls run in tasks of
//! their own, one at a time on each GPU, and report back. In this order nobody is promised what is not there: journal, make,
//! write its CDI specification, offer to the kubelet, be acknowledged, advertise on the Node, report Idle; and back: withdraw
//! from kubelet and Node, be acknowledged, be held by nobody, destroy.

mod announce;
pub mod cdi;
mod conflicts;
mod gpus;
mod handoff;
pub mod journal;
mod metrics;
mod mig_mode;
mod node_status;
pub mod nvml;
mod report;
mod state;

use std::fmt::Debug;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::api::mig_node::{MIGNode, MIGNodeSpec, MIGNodeStatus};
use crate::api::names;
use crate::runtime::{Clients, Ready};
use announce::Announcer;
use handoff::Handoff;
use handoff::kubelet::book::SharedBook;
use handoff::kubelet::{Folders, Kubelet};
use handoff::stand_in::{self, StandIn};
pub use metrics::Metrics;
use mig_mode::MigModes;
use nvml::{Driver, Events, OpenError};
use state::{Agent, Means, Message};

/// Pause after the API server would not take something.
const PAUSE: Duration = Duration::from_secs(1);
/// How long running NVML calls are waited for at the end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Arguments of `slicegate agent`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The Node that this agent serves.
    #[arg(long, env = "NODE_NAME", value_name = "NODE")]
    pub node_name: String,
    /// How slices reach pods. `device-plugin`: through the node's kubelet. `none`: there is no kubelet (an emulated node); the
    /// agent itself keeps the book of which pod holds which slice.
    #[arg(long, value_enum, default_value = "device-plugin")]
    pub kubelet: KubeletMode,
    /// The kubelet's folder; plugins and PodResources are in it. Kubelets keep the plugins under /var/lib/kubelet whatever
    /// their own root is.
    #[arg(long, default_value = "/var/lib/kubelet", value_name = "FOLDER")]
    pub kubelet_dir: PathBuf,
    /// What containers see of their slices.
    #[command(flatten)]
    pub cdi: cdi::Args,
    /// The NVML library; by default the one that the system's loader finds.
    #[arg(long, env = "SLICEGATE_NVML_LIBRARY", value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Where the node journal is kept; it must survive the agent.
    #[arg(long, default_value = "/var/lib/slicegate", value_name = "FOLDER")]
    pub state_dir: PathBuf,
    /// Seconds between full looks at the GPUs and the Node, for what changed without a word.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub rescan_seconds: u64,
    /// Turn MIG mode on where it is off, on GPUs on which no process computes, as long as the node offers no whole GPUs and no
    /// pod has one. Some models are reset for it.
    #[arg(long)]
    pub enable_mig_mode: bool,
    /// The boot that MIG instances belong to, where the kernel's id is not to be used.
    #[arg(long, hide = true)]
    pub boot_id: Option<String>,
    /// Whether the Node shows a slice as soon as the kubelet has acknowledged it, and not only at the kubelet's next status
    /// update, up to ten seconds later. Off for measuring the difference.
    #[arg(long, hide = true, default_value_t = true, action = clap::ArgAction::Set)]
    pub early_patch: bool,
}

impl Args {
    /// Where the kubelet is.
    fn folders(&self) -> Folders {
        Folders {
            device_plugins: self.kubelet_dir.join("device-plugins"),
            pod_resources: self.kubelet_dir.join("pod-resources/kubelet.sock"),
        }
    }
}

/// How slices reach pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KubeletMode {
    /// The node's kubelet, as one of its device plugins.
    DevicePlugin,
    /// No kubelet: an emulated node.
    None,
}

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such Node.
    #[error(
        "node {0:?} does not exist in this cluster; --node-name (or NODE_NAME) must be the name that kubectl get nodes shows"
    )]
    NoSuchNode(String),
    /// The Node or the MIGNode cannot be read or made.
    #[error("cannot {what}: {source}")]
    Api {
        /// What was tried.
        what: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// NVML cannot be used.
    #[error(transparent)]
    Nvml(#[from] OpenError),
    /// The journal cannot be kept.
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    /// The kubelet's sockets cannot be used.
    #[error(transparent)]
    Socket(#[from] slicegate_kubelet_api::socket::SocketError),
    /// The boot id cannot be read.
    #[error("cannot read the boot id from {}: {source}; --proc-root must be the node's /proc", .path.display())]
    BootId {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task ended that never should.
    #[error("the watch of {0} ended")]
    Ended(&'static str),
}

/// In `/proc`.
const BOOT_ID: &str = "sys/kernel/random/boot_id";

/// Runs the agent until `shutdown`. Slices and journal stay as they are.
pub async fn run(
    args: Args,
    clients: Clients,
    metrics: Arc<Metrics>,
    ready: Ready,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let name = args.node_name.clone();
    let mut node_status = node_status::NodeStatus::new(clients.calls.clone(), &name, args.early_patch);
    if !node_status.refresh().await.map_err(|e| api_error(format!("read node {name}"), e))? {
        return Err(Error::NoSuchNode(name));
    }
    let boot_id = match &args.boot_id {
        Some(id) => id.clone(),
        None => read_boot_id(&args.cdi.host.proc)?,
    };
    let mig_nodes: Api<MIGNode> = Api::all(clients.calls.clone());
    ensure(&mig_nodes, &name).await?;
    let mut announcer = Announcer::new(clients.calls.clone(), &name);
    let journal = journal::Journal::open(&args.state_dir, &boot_id)?;
    if let Some(damage) = &journal.damage {
        warn!("{damage}");
    }
    let (library, for_driver) = (args.nvml_library.clone(), metrics.clone());
    let opened = spawn_blocking(move || Driver::open(library.as_deref(), Some(for_driver))).await;
    let driver = match opened {
        Ok(Ok(driver)) => Arc::new(driver),
        Ok(Err(error)) => {
            report_unavailable(&mig_nodes, &name, &mut announcer, &error).await;
            return Err(error.into());
        }
        Err(_) => return Err(Error::Ended("NVML's loader")),
    };
    info!(node = name, driver = driver.version(), "NVML is there");

    let (messages, mut inbox) = mpsc::channel::<Message>(256);
    let mut watches = JoinSet::new();
    let objects = Api::all(clients.watches.clone());
    watches.spawn(named("the MIGNode", follow(objects, name.clone(), messages.clone(), Message::Object)));
    let nodes = Api::all(clients.watches.clone());
    watches.spawn(named("the Node", follow(nodes, name.clone(), messages.clone(), Message::Node)));
    let book = SharedBook::new(journal);
    let handoff = match args.kubelet {
        KubeletMode::None => {
            let (client, name, messages) = (clients.watches.clone(), name.clone(), messages.clone());
            watches.spawn(named("the node's pods", async move {
                stand_in::follow(client, &name, messages).await;
            }));
            Handoff::StandIn(StandIn::default())
        }
        KubeletMode::DevicePlugin => {
            let (folders, strategy) = (args.folders(), args.cdi.device_list_strategy);
            let kubelet = Kubelet::new(folders, strategy, book.clone(), driver.clone(), messages.clone())?;
            Handoff::Kubelet(Box::new(kubelet))
        }
    };
    let has_kubelet = args.kubelet == KubeletMode::DevicePlugin;
    let cdi = has_kubelet.then(|| cdi::CdiDir::new(&args.cdi));
    let plugins = has_kubelet.then(|| args.folders().device_plugins);
    let _events = follow_events(&driver, &messages);
    let rescan = Duration::from_secs(args.rescan_seconds.max(1));
    let modes = args.enable_mig_mode.then(MigModes::default);
    let means =
        Means { name, boot_id, driver, node_status, mig_nodes, metrics, messages, cdi, plugins, announcer };
    let mut agent = Agent::new(means, book, handoff, modes);
    agent.begin_scan();
    let mut next_scan = Instant::now() + rescan;
    let mut recheck: Option<Instant> = None;
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = watches.join_next() => return Err(Error::Ended(ended.unwrap_or("a watch"))),
            Some(message) = inbox.recv() => agent.take_in(message).await,
            () = sleep_until(next_scan) => {
                agent.begin_scan();
                next_scan = Instant::now() + rescan;
            }
            () = async { if let Some(at) = recheck { sleep_until(at).await } }, if recheck.is_some() => {}
        }
        while let Ok(message) = inbox.try_recv() {
            agent.take_in(message).await;
        }
        if agent.knows_enough() {
            recheck = agent.step().await.map(|wait| Instant::now() + wait);
            if agent.has_reported() {
                ready.set();
            }
        }
    }
    agent.say_goodbye().await;
    let ended = async {
        while agent.is_busy() {
            match inbox.recv().await {
                Some(message) => agent.take_in(message).await,
                None => break,
            }
        }
    };
    if tokio::time::timeout(FAREWELL, ended).await.is_err() {
        warn!("gave up waiting for NVML calls under way; the journal knows of them");
    }
    Ok(())
}

fn read_boot_id(proc: &Path) -> Result<String, Error> {
    let path = proc.join(BOOT_ID);
    match std::fs::read_to_string(&path) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(source) => Err(Error::BootId { path, source }),
    }
}

fn api_error(what: String, source: kube::Error) -> Error {
    Error::Api { what, source: Box::new(source) }
}

/// Makes the MIGNode if it is missing.
async fn ensure(api: &Api<MIGNode>, name: &str) -> Result<(), Error> {
    let created = api.create(&PostParams::default(), &MIGNode::new(name, MIGNodeSpec::default())).await;
    match created {
        Ok(_) => {
            info!(node = name, "made the MIGNode");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(api_error(format!("make MIGNode {name}"), error)),
    }
}

/// Says in the MIGNode why there are no GPUs, so that it is not only in a log.
async fn report_unavailable(
    api: &Api<MIGNode>,
    name: &str,
    announcer: &mut Announcer,
    error: &impl std::fmt::Display,
) {
    let before = match api.get(name).await {
        Ok(object) => {
            announcer.set_uid(object.metadata.uid);
            object.status.unwrap_or_default()
        }
        // Not known, and so not to be written over.
        Err(error) => return warn!(%error, "cannot report that NVML is unavailable"),
    };
    let status = report::unavailable(crate::api::convert::now(), &error.to_string(), &before);
    if let Err(error) = write_status(api, name, &status).await {
        warn!(%error, "cannot report that NVML is unavailable");
    }
    announcer.announce(&before.conditions, &status.conditions).await;
}

async fn write_status(api: &Api<MIGNode>, name: &str, status: &MIGNodeStatus) -> kube::Result<MIGNode> {
    let mut object = MIGNode::new(name, MIGNodeSpec::default());
    object.status = Some(status.clone());
    let mut body = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
    if let Some(fields) = body.as_object_mut() {
        // The controller's: not even an empty one may be applied.
        fields.remove("spec");
    }
    let parameters = PatchParams::apply(names::AGENT_MANAGER).force();
    api.patch_status(name, &parameters, &Patch::Apply(body)).await
}

/// Takes up what NVML reports by itself, where it does.
fn follow_events(driver: &Arc<Driver>, messages: &mpsc::Sender<Message>) -> Option<Events> {
    let (sender, mut receiver) = mpsc::channel(64);
    let messages = messages.clone();
    tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            if messages.send(Message::Health(event)).await.is_err() {
                return;
            }
        }
    });
    match Events::open(driver, sender) {
        Ok((events, problems)) => {
            for problem in problems {
                warn!(problem, "errors of this GPU are noticed only when it no longer answers");
            }
            Some(events)
        }
        Err(error) => {
            warn!(%error, "NVML reports no errors by itself; they are noticed only when a GPU no longer answers");
            None
        }
    }
}

async fn named(name: &'static str, watch: impl Future<Output = ()>) -> &'static str {
    watch.await;
    name
}

/// Follows the one object of our name.
async fn follow<K>(
    api: Api<K>,
    name: String,
    messages: mpsc::Sender<Message>,
    message: fn(Option<Box<K>>) -> Message,
) where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut listed = None;
    loop {
        let object = match events.try_next().await {
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "watch interrupted; trying again");
                continue;
            }
            Ok(Some(watcher::Event::Init)) => {
                listed = None;
                continue;
            }
            Ok(Some(watcher::Event::InitApply(object))) => {
                listed = Some(object);
                continue;
            }
            Ok(Some(watcher::Event::InitDone)) => listed.take().map(Box::new),
            Ok(Some(watcher::Event::Apply(object))) => Some(Box::new(object)),
            Ok(Some(watcher::Event::Delete(_))) => None,
        };
        if messages.send(message(object)).await.is_err() {
            return;
        }
    }
}
