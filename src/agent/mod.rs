//! The node agent: makes its MIGNode's `spec` true on the GPUs, and reports what there is.
//!
//! One task owns what the agent knows and decides with [`slicegate_core::agent::agent_step`]; NVML calls run in tasks of
//! their own, one at a time on each GPU, and report back. In this order nobody is promised what is not there: journal, make,
//! advertise on the Node, report Idle; and: report Draining, take from the Node, destroy.

pub mod cdi;
pub mod journal;
mod metrics;
mod node_status;
pub mod nvml;
mod report;
mod stand_in;
mod state;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::api::mig_node::{MIGNode, MIGNodeSpec, MIGNodeStatus};
use crate::api::names;
use crate::runtime::{Clients, Ready};
pub use metrics::Metrics;
use nvml::{Driver, OpenError};
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
    /// How slices reach pods. `none`: there is no kubelet (an emulated node); the agent itself sets the Node's resources and
    /// keeps the book of which pod holds which slice.
    #[arg(long, value_enum)]
    pub kubelet: Kubelet,
    /// The NVML library; by default the one that the system's loader finds.
    #[arg(long, env = "SLICEGATE_NVML_LIBRARY", value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Where the node journal is kept; it must survive the agent.
    #[arg(long, default_value = "/var/lib/slicegate", value_name = "FOLDER")]
    pub state_dir: PathBuf,
    /// Seconds between full looks at the GPUs and the Node, for what changed without a word.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub rescan_seconds: u64,
    /// The boot that MIG instances belong to, where the kernel's id is not to be used.
    #[arg(long, hide = true)]
    pub boot_id: Option<String>,
}

/// How slices reach pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kubelet {
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
    /// The boot id cannot be read.
    #[error("cannot read the boot id from {path}: {source}", path = BOOT_ID)]
    BootId {
        /// What the system said.
        source: std::io::Error,
    },
    /// A task ended that never should.
    #[error("the watch of {0} ended")]
    Ended(&'static str),
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Runs the agent until `shutdown`. Slices and journal stay as they are.
pub async fn run(
    args: Args,
    clients: Clients,
    metrics: Arc<Metrics>,
    ready: Ready,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let name = args.node_name.clone();
    let mut node_status = node_status::NodeStatus::new(clients.calls.clone(), &name);
    if !node_status.refresh().await.map_err(|e| api_error(format!("read node {name}"), e))? {
        return Err(Error::NoSuchNode(name));
    }
    let boot_id = match &args.boot_id {
        Some(id) => id.clone(),
        None => {
            std::fs::read_to_string(BOOT_ID).map_err(|source| Error::BootId { source })?.trim().to_owned()
        }
    };
    let mig_nodes: Api<MIGNode> = Api::all(clients.calls.clone());
    ensure(&mig_nodes, &name).await?;
    let journal = journal::Journal::open(&args.state_dir, &boot_id)?;
    if let Some(damage) = &journal.damage {
        warn!("{damage}");
    }
    let (library, for_driver) = (args.nvml_library.clone(), metrics.clone());
    let opened = spawn_blocking(move || Driver::open(library.as_deref(), Some(for_driver))).await;
    let driver = match opened {
        Ok(Ok(driver)) => Arc::new(driver),
        Ok(Err(error)) => {
            report_unavailable(&mig_nodes, &name, &error).await;
            return Err(error.into());
        }
        Err(_) => return Err(Error::Ended("NVML's loader")),
    };
    info!(node = name, driver = driver.version(), "NVML is there");

    let (messages, mut inbox) = mpsc::channel::<Message>(256);
    let (holders, mut held) = mpsc::channel(16);
    let object_watch =
        tokio::spawn(follow_object(Api::all(clients.watches.clone()), name.clone(), messages.clone()));
    let pod_watch = {
        let (client, name) = (clients.watches.clone(), name.clone());
        tokio::spawn(async move { stand_in::follow(client, &name, holders).await })
    };
    let rescan = Duration::from_secs(args.rescan_seconds.max(1));
    let means = Means { name, boot_id, driver, node_status, mig_nodes, metrics, messages };
    let mut agent = Agent::new(means, journal);
    agent.begin_scan();
    let mut next_scan = Instant::now() + rescan;
    let mut recheck: Option<Instant> = None;
    let mut shutdown = pin!(shutdown);
    let (mut object_watch, mut pod_watch) = (pin!(object_watch), pin!(pod_watch));
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = &mut object_watch => return Err(Error::Ended("the MIGNode")),
            _ = &mut pod_watch => return Err(Error::Ended("the node's pods")),
            Some(message) = inbox.recv() => agent.take_in(message).await,
            Some(holders) = held.recv() => agent.set_holders(holders),
            () = sleep_until(next_scan) => {
                agent.begin_scan();
                next_scan = Instant::now() + rescan;
            }
            () = async { if let Some(at) = recheck { sleep_until(at).await } }, if recheck.is_some() => {}
        }
        while let Ok(message) = inbox.try_recv() {
            agent.take_in(message).await;
        }
        while let Ok(holders) = held.try_recv() {
            agent.set_holders(holders);
        }
        if agent.knows_enough() {
            recheck = agent.step().await.map(|wait| Instant::now() + wait);
            if agent.has_reported() {
                ready.set();
            }
        }
    }
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
async fn report_unavailable(api: &Api<MIGNode>, name: &str, error: &impl std::fmt::Display) {
    let before = match api.get(name).await {
        Ok(object) => object.status.unwrap_or_default(),
        // Not known, and so not to be written over.
        Err(error) => return warn!(%error, "cannot report that NVML is unavailable"),
    };
    let status = report::unavailable(crate::api::convert::now(), &error.to_string(), &before);
    if let Err(error) = write_status(api, name, &status).await {
        warn!(%error, "cannot report that NVML is unavailable");
    }
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

/// Follows the one MIGNode that is ours.
async fn follow_object(api: Api<MIGNode>, name: String, messages: mpsc::Sender<Message>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut listed = None;
    loop {
        let message = match events.try_next().await {
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "watch of the MIGNode interrupted; trying again");
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
            Ok(Some(watcher::Event::InitDone)) => Message::Object(listed.take().map(Box::new)),
            Ok(Some(watcher::Event::Apply(object))) => Message::Object(Some(Box::new(object))),
            Ok(Some(watcher::Event::Delete(_))) => Message::Object(None),
        };
        if messages.send(message).await.is_err() {
            return;
        }
    }
}
