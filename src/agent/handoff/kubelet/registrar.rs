//! Keeps the plugins registered: at every start of the kubelet, and whenever it has lost sight of one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use slicegate_core::profile::ProfileName;
use slicegate_kubelet_api::device_plugin::{
    DevicePluginServer, KUBELET_SOCKET, RegisterRequest, RegistrationClient, VERSION,
};
use slicegate_kubelet_api::socket::{self, SocketError};
use slicegate_kubelet_api::tonic::service::Routes;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::plugin::{Allocator, Leave, Lists, Plugin};
use crate::agent::state::Message;

/// Pause after the kubelet would not take a registration.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause before everything is registered with another kubelet.
const BREATH: Duration = Duration::from_millis(10);
/// Pause before a plugin is registered again of which the same kubelet has lost sight: the end of the old stream disconnects
/// whoever is registered by then (`devicemanager/manager.go`, PluginDisconnected).
const ASIDE: Duration = Duration::from_millis(250);
/// How long a registration may take. The kubelet calls back before it answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// A look at the folder in any case, for what was not told.
const REST: Duration = Duration::from_secs(10);
/// A look at a plugin that has just come.
const SOON: Duration = Duration::from_secs(1);

/// What our sockets' names begin with.
const OURS: &str = "slicegate-";

/// Why no devices can be offered to the kubelet.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There is no kubelet.
    #[error("no kubelet listens on {}: {reason}; the kubelet's device plugin folder must be mounted into the agent (hostPath)", .path.display())]
    NoKubelet {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The kubelet does not take it.
    #[error("the kubelet does not take {resource}: {reason}")]
    Refused {
        /// The resource.
        resource: String,
        /// What it said.
        reason: String,
    },
    /// Our own socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The folder cannot be watched.
    #[error("cannot watch {}: {source}", .path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How the registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// The kubelet knows every profile.
    Registered,
    /// It has lost sight of one; all are registered again.
    Lost,
    /// It could not be done, which is tried again.
    Failed(String),
}

/// Keeps plugins registered with one kubelet.
pub struct Registrar {
    /// The kubelet's device plugin folder.
    pub folder: PathBuf,
    /// What is offered.
    pub lists: Lists,
    /// What answers Allocate.
    pub allocator: Arc<Allocator>,
    /// Woken when a profile is new.
    pub more: Arc<Notify>,
    /// Profiles to register again with the same kubelet.
    pub doubted: mpsc::UnboundedReceiver<ProfileName>,
    /// Where to report.
    pub messages: mpsc::Sender<Message>,
}

/// A plugin that is served.
struct Served {
    server: AbortHandle,
    /// Ends the lists that are followed: connections outlive a server that is aborted.
    _lists: watch::Sender<()>,
    /// Counts them, so that the end of an old one is not taken for that of a new one.
    number: u64,
}

impl Drop for Served {
    fn drop(&mut self) {
        // The socket closes and nothing is said, so that the kubelet keeps the devices in mind.
        self.server.abort();
    }
}

/// Device and inode of a socket: another one is another server.
type Identity = Option<(u64, u64)>;

impl Registrar {
    /// Runs for as long as there is somebody to report to.
    pub async fn run(mut self) {
        let mut said = Registration::Lost;
        loop {
            let outcome = self.serve().await;
            let pause = if outcome.is_ok() { BREATH } else { PAUSE };
            let told = match outcome {
                Ok(()) => Registration::Lost,
                Err(error) => Registration::Failed(error.to_string()),
            };
            if let Registration::Failed(error) = &told
                && told != said
            {
                warn!(error, "devices cannot be offered to the kubelet; trying again");
            }
            if self.messages.send(Message::Registration(told.clone())).await.is_err() {
                return;
            }
            said = told;
            sleep(pause).await;
        }
    }

    /// Serves and registers every profile, until something must be done again from the start.
    async fn serve(&mut self) -> Result<(), RegisterError> {
        let watched = |source| RegisterError::Watch { path: self.folder.clone(), source };
        let changes = Inotify::init().map_err(watched)?;
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_TO;
        changes.watches().add(&self.folder, mask).map_err(watched)?;
        let mut changes = changes.into_event_stream([0; 4096]).map_err(watched)?;
        let kubelet = self.folder.join(KUBELET_SOCKET);
        let (left, mut leaving) = mpsc::unbounded_channel();
        let mut served: BTreeMap<ProfileName, Served> = BTreeMap::new();
        let known = identity(&kubelet);
        // Before the plugins' sockets are made: a kubelet that starts deletes them.
        if let Err(error) = UnixStream::connect(&kubelet).await {
            return Err(RegisterError::NoKubelet { path: kubelet, reason: error.to_string() });
        }
        let mut others = those_served(&self.folder, others_in(&self.folder)).await;
        let mut next_check = Instant::now() + REST;
        let mut has_come = false;
        let mut number = 0;
        loop {
            let fresh: Vec<_> =
                self.lists.profiles().into_iter().filter(|p| !served.contains_key(p)).collect();
            for profile in fresh {
                number += 1;
                let leave = Leave { profile: profile.clone(), number, left: left.clone() };
                let plugin = self.serve_one(&profile, leave)?;
                self.register(&kubelet, &profile).await?;
                served.insert(profile, plugin);
            }
            if !served.is_empty()
                && self.messages.send(Message::Registration(Registration::Registered)).await.is_err()
            {
                return Ok(());
            }
            loop {
                tokio::select! {
                    () = self.more.notified() => break,
                    Some(profile) = self.doubted.recv() => {
                        if served.contains_key(&profile) {
                            self.register(&kubelet, &profile).await?;
                        }
                    }
                    Some((profile, number)) = leaving.recv() => {
                        if served.get(&profile).is_none_or(|plugin| plugin.number != number) {
                            continue;
                        }
                        info!(%profile, "the kubelet has stopped following");
                        let _ = self.messages.send(Message::Registration(Registration::Lost)).await;
                        // Lists of it that are still followed must have ended by then, too.
                        served.remove(&profile);
                        sleep(ASIDE).await;
                        if identity(&kubelet) == known {
                            break;
                        }
                    }
                    change = changes.next() => {
                        let name = change.and_then(Result::ok).and_then(|change| change.name);
                        if let Some(name) = name.filter(is_anothers) {
                            others.insert(name);
                            has_come = true;
                            next_check = next_check.min(Instant::now() + SOON);
                            // Nobody listens any more only when the agent ends.
                            let _ = self.messages.send(Message::Plugins).await;
                        }
                    }
                    () = sleep_until(next_check) => {
                        next_check = Instant::now() + REST;
                        let left = those_served(&self.folder, others.clone()).await;
                        if std::mem::take(&mut has_come) || left != others {
                            info!("another plugin has come or gone; registering again, in case it has taken our place");
                            others = left;
                            for profile in served.keys() {
                                self.register(&kubelet, profile).await?;
                            }
                            let _ = self.messages.send(Message::Plugins).await;
                        }
                    }
                }
                let ours = |profile| identity(&self.folder.join(endpoint(profile))).is_some();
                if identity(&kubelet) != known || !served.keys().all(ours) {
                    info!("the kubelet has started anew; registering again");
                    return Ok(());
                }
            }
        }
    }

    fn serve_one(&self, profile: &ProfileName, leave: Leave) -> Result<Served, RegisterError> {
        let number = leave.number;
        let listener = socket::listen(&self.folder.join(endpoint(profile)))?;
        let (lists, end) = watch::channel(());
        let plugin = Plugin::new(profile.clone(), self.lists.clone(), self.allocator.clone(), leave, end);
        let routes = Routes::new(DevicePluginServer::new(plugin));
        let server = tokio::spawn(socket::serve(listener, routes, std::future::pending()));
        Ok(Served { server: server.abort_handle(), _lists: lists, number })
    }

    async fn register(&self, kubelet: &Path, profile: &ProfileName) -> Result<(), RegisterError> {
        let resource = profile.resource();
        let channel = socket::channel(kubelet, PATIENCE)?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: endpoint(profile),
            resource_name: resource.clone(),
            options: None,
        };
        match timeout(PATIENCE, RegistrationClient::new(channel).register(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == slicegate_kubelet_api::tonic::Code::Unavailable => {
                Err(RegisterError::NoKubelet {
                    path: kubelet.to_owned(),
                    reason: status.message().to_owned(),
                })
            }
            Ok(Err(status)) => Err(RegisterError::Refused { resource, reason: status.message().to_owned() }),
            Err(_) => {
                let reason = format!("no answer within {} s", PATIENCE.as_secs());
                Err(RegisterError::Refused { resource, reason })
            }
        }
    }
}

/// The name of a plugin's socket.
fn endpoint(profile: &ProfileName) -> String {
    format!("{OURS}{profile}.sock")
}

/// Whether a file in the folder is the socket of another plugin.
fn is_anothers(name: &OsString) -> bool {
    let is_socket = Path::new(name).extension().is_some_and(|extension| extension == "sock");
    is_socket && name != KUBELET_SOCKET && !name.to_string_lossy().starts_with(OURS)
}

fn others_in(folder: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).filter(is_anothers).collect()
}

/// Those of some sockets that somebody serves.
async fn those_served(folder: &Path, sockets: BTreeSet<OsString>) -> BTreeSet<OsString> {
    let mut served = BTreeSet::new();
    for name in sockets {
        if UnixStream::connect(folder.join(&name)).await.is_ok() {
            served.insert(name);
        }
    }
    served
}

fn identity(path: &Path) -> Identity {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
