//! A kubelet to play against: the device manager, its checkpoint and PodResources behave as in Kubernetes 1.36, on two
//! sockets in a folder, with faults at a test's command.
//!
//! What is the kubelet's own and matters to an agent is kept, also where it surprises: a device is marked as allocated before
//! Allocate is called, with no lock held during the call; what a pod held is freed at the next List or admission after its
//! end, not before, and is in the checkpoint until something else writes it; when a plugin's stream ends, whoever has
//! registered for the resource meanwhile is disconnected.
//!
//! What is left out: NUMA affinity of choices, checksums, PreStartContainer, the status update's timer
//! ([`FakeKubelet::forget_stopped`] is it).

mod choice;
mod faults;
mod island;
mod lister;
mod manager;
mod plugin;
mod pod;
mod process;
mod record;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use slicegate_kubelet_api::device_plugin::{Device, KUBELET_SOCKET};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::choice::Choice;
pub use self::faults::Faults;
pub use self::island::Island;
pub use self::plugin::Plugin;
pub use self::pod::{Given, Kind, Pod};
use self::process::Process;
pub use self::record::Record;

/// The folder of plugins' sockets and of the checkpoint, in the folder of a [`FakeKubelet`].
const DEVICE_PLUGINS: &str = "device-plugins";
/// The PodResources socket, there.
const POD_RESOURCES: &str = "pod-resources/kubelet.sock";

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for what must come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(DEADLINE, future).await;
    assert!(ended.is_ok(), "waited too long: {what}");
    ended.unwrap()
}

/// What outlives a kubelet: its node's pods, what a test commands and what it learns.
struct Node {
    folder: PathBuf,
    faults: Faults,
    /// With whether each is active.
    pods: Mutex<Vec<(Pod, bool)>>,
    choice: Mutex<Choice>,
    record: Mutex<Record>,
    changes: watch::Sender<()>,
}

impl Node {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap()
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    fn all(&self) -> Vec<Pod> {
        self.pods.lock().unwrap().iter().map(|(pod, _)| pod.clone()).collect()
    }

    fn active(&self) -> Vec<Pod> {
        self.pods.lock().unwrap().iter().filter(|(_, active)| *active).map(|(pod, _)| pod.clone()).collect()
    }

    fn add(&self, pod: &Pod) {
        let mut pods = self.pods.lock().unwrap();
        pods.retain(|(other, _)| other.uid != pod.uid);
        pods.push((pod.clone(), true));
    }

    fn end(&self, pod: &Pod) {
        for (other, active) in self.pods.lock().unwrap().iter_mut() {
            *active &= other.uid != pod.uid;
        }
    }
}

/// The kubelet of a node. Dropping it fails the test if the kubelet would have crashed; a test that wants it to crash takes
/// [`FakeKubelet::take_crashes`].
pub struct FakeKubelet {
    node: Arc<Node>,
    running: Option<(Island, Arc<Process>)>,
}

impl FakeKubelet {
    /// A kubelet that is not running, with its two folders made in `folder`.
    pub fn stopped(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join(DEVICE_PLUGINS)).unwrap();
        std::fs::create_dir_all(folder.join(POD_RESOURCES).parent().unwrap()).unwrap();
        let node = Arc::new(Node {
            folder: folder.to_owned(),
            faults: Faults::default(),
            pods: Mutex::default(),
            choice: Mutex::default(),
            record: Mutex::default(),
            changes: watch::Sender::new(()),
        });
        Self { node, running: None }
    }

    /// A kubelet that runs. Its sockets can be dialed when this returns.
    pub async fn start(folder: &Path) -> Self {
        let mut kubelet = Self::stopped(folder);
        kubelet.restart().await;
        kubelet
    }

    /// Kills it if it runs, and starts it anew: plugins' sockets are deleted, and only what the checkpoint says is known.
    pub async fn restart(&mut self) {
        self.stop().await;
        let island = Island::new("kubelet");
        let node = self.node.clone();
        let process = island.spawn(async move { Process::start(node) }).await.unwrap();
        self.running = Some((island, process));
        self.node.changed();
    }

    /// Kills it; the files of its sockets stay.
    pub async fn stop(&mut self) {
        if let Some((island, process)) = self.running.take() {
            drop(process);
            island.kill().await;
        }
    }

    /// Where plugins put their sockets, and the checkpoint is.
    pub fn device_plugins(&self) -> PathBuf {
        self.node.folder.join(DEVICE_PLUGINS)
    }

    /// The registration socket.
    pub fn socket(&self) -> PathBuf {
        self.device_plugins().join(KUBELET_SOCKET)
    }

    /// The PodResources socket.
    pub fn pod_resources(&self) -> PathBuf {
        self.node.folder.join(POD_RESOURCES)
    }

    pub fn faults(&self) -> &Faults {
        &self.node.faults
    }

    /// How devices are chosen from now on.
    pub fn choose(&self, choice: Choice) {
        *self.node.choice() = choice;
    }

    pub fn record(&self) -> Record {
        self.node.record().clone()
    }

    pub fn take_crashes(&self) -> Vec<String> {
        std::mem::take(&mut self.node.record().crashes)
    }

    fn process(&self) -> &Arc<Process> {
        &self.running.as_ref().expect("the kubelet is stopped").1
    }

    /// The resources whose plugin is connected.
    pub fn registered(&self) -> BTreeSet<String> {
        let manager = self.process().manager();
        manager
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.is_some())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The node's capacity and allocatable of every resource that the kubelet knows.
    pub fn capacity(&self) -> BTreeMap<String, (usize, usize)> {
        let manager = self.process().manager();
        let of = |(resource, healthy): (&String, &BTreeSet<String>)| {
            let unhealthy = manager.unhealthy.get(resource).map_or(0, BTreeSet::len);
            (resource.clone(), (healthy.len() + unhealthy, healthy.len()))
        };
        manager.healthy.iter().map(of).collect()
    }

    pub fn healthy(&self, resource: &str) -> BTreeSet<String> {
        self.process().manager().healthy.get(resource).cloned().unwrap_or_default()
    }

    /// The devices as the plugin listed them last.
    pub fn devices(&self, resource: &str) -> Vec<Device> {
        let manager = self.process().manager();
        manager.all.get(resource).map(|devices| devices.values().cloned().collect()).unwrap_or_default()
    }

    /// The devices that are held or chosen, also by pods that have ended and were not noticed yet.
    pub fn allocated(&self, resource: &str) -> BTreeSet<String> {
        self.process().manager().allocated.get(resource).cloned().unwrap_or_default()
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut changes = self.node.changes.subscribe();
        let wait = async {
            while !holds(self) {
                changes.changed().await.unwrap();
            }
        };
        within(what, wait).await;
    }

    /// Admits a pod, or prepares its containers again: what each container holds then, or why the pod is refused.
    pub async fn admit(&self, pod: &Pod) -> Result<Vec<Given>, String> {
        within("the admission", self.begin(pod)).await.unwrap_or_else(|_| Err("the kubelet went away".into()))
    }

    /// Begins to admit a pod.
    pub fn begin(&self, pod: &Pod) -> JoinHandle<Result<Vec<Given>, String>> {
        let (island, process) = self.running.as_ref().expect("the kubelet is stopped");
        let (process, pod) = (process.clone(), pod.clone());
        island.spawn(async move { process.admit(&pod).await })
    }

    /// The pod's containers have ended; kubelets before 1.34 go on listing it.
    pub fn end(&self, pod: &Pod) {
        self.node.end(pod);
    }

    /// The pod is gone.
    pub fn remove(&self, pod: &Pod) {
        self.node.pods.lock().unwrap().retain(|(other, _)| other.uid != pod.uid);
    }

    /// The ListAndWatch stream of the plugin that registered last breaks.
    pub fn break_stream(&self, resource: &str) {
        self.process().break_stream(resource);
    }

    /// Five minutes have passed since plugins stopped: their resources are forgotten.
    pub fn forget_stopped(&self) {
        let mut manager = self.process().manager();
        manager.forget_stopped();
        manager.write(&self.device_plugins());
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        let crashes = self.take_crashes();
        assert!(
            crashes.is_empty() || std::thread::panicking(),
            "the kubelet would have crashed: {crashes:?}"
        );
    }
}
