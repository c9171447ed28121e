//! A node: GPUs, a kubelet, an API server, and an agent that can be started, stopped and killed.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use nvml_sim::{Instance, StateDir};
use prometheus::Registry;
use serde_json::Value;
use slicegate::agent::{self, Metrics};
use slicegate::api::mig_node::{
    GpuGeometry, MIGNodeSpec, MIGNodeStatus, SliceGeometry, SliceState, SliceStatus,
};
use slicegate::runtime::{Clients, Ready};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::agent::a100;
use crate::api_server::{ApiServer, Kind, NODE};
use crate::kubelet::{FakeKubelet, Given, Island, Pod, within};
use crate::simulator::{library, scenario};

/// The smallest profile of the node's A100, and its resource.
pub const P1: &str = "1g.10gb";
pub const R1: &str = "nvidia.com/mig-1g.10gb";
/// Another profile, of two units.
pub const P2: &str = "2g.20gb";
pub const R2: &str = "nvidia.com/mig-2g.20gb";

/// Runs a test on a node of its own, in a process of its own.
pub fn on_node<F, Fut>(body: F)
where
    F: FnOnce(Rig) -> Fut,
    Fut: Future<Output = ()>,
{
    // `component::handoff::<file>::<test>::{{closure}}`: the test calls with a closure.
    let name = std::any::type_name::<F>();
    let name = name.trim_end_matches("::{{closure}}").split_once("::").unwrap().1;
    scenario(name, a100, |folder| {
        let logs = tracing_subscriber::fmt().with_env_filter("slicegate=debug").with_writer(std::io::stderr);
        logs.with_target(false).init();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { body(Rig::new(folder).await).await });
    });
}

/// The agent's command line.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    args: agent::Args,
}

struct Running {
    island: Island,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), agent::Error>>,
}

pub struct Rig {
    pub folder: PathBuf,
    pub api: ApiServer,
    pub kubelet: FakeKubelet,
    /// UUIDs of the GPUs, by index.
    pub gpus: Vec<String>,
    pub boot: String,
    /// More words of the agent's command line.
    pub words: Vec<String>,
    running: Option<Running>,
}

impl Rig {
    async fn new(folder: &Path) -> Self {
        let kubelet = FakeKubelet::start(&folder.join("kubelet")).await;
        let mut rig = Self {
            folder: folder.to_owned(),
            api: ApiServer::new(),
            kubelet,
            gpus: Vec::new(),
            boot: "boot-1".to_owned(),
            words: Vec::new(),
            running: None,
        };
        fs::create_dir_all(rig.cdi()).unwrap();
        rig.simulate(|config| config["bootID"] = "boot-1".into());
        rig
    }

    /// Changes what the simulator reads when the next agent starts; its GPUs can only be changed before the first does.
    pub fn simulate(&mut self, change: impl FnOnce(&mut Value)) {
        let file = self.folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        fs::write(&file, config.to_string()).unwrap();
        let config = nvml_sim::Config::from_file(&file).unwrap();
        if self.gpus.len() != config.gpus.iter().map(|group| group.count as usize).sum::<usize>() {
            let _ = fs::remove_dir_all(&config.state_dir);
        }
        let state = StateDir::prepare(&config).unwrap().read().unwrap();
        self.gpus = state.gpus.into_iter().map(|gpu| gpu.uuid).collect();
        nvml_sim::host::lay_out(&self.folder, u32::try_from(self.gpus.len()).unwrap()).unwrap();
    }

    pub fn cdi(&self) -> PathBuf {
        self.folder.join("cdi")
    }

    pub fn journal(&self) -> PathBuf {
        self.folder.join("agent/journal.json")
    }

    fn args(&self) -> agent::Args {
        let at = |path: &str| self.folder.join(path).to_str().unwrap().to_owned();
        let words = [
            ("--node-name", NODE.to_owned()),
            ("--kubelet-dir", at("kubelet")),
            ("--cdi-dir", at("cdi")),
            ("--cdi-base", at("cdi/nvidia.yaml")),
            ("--dev-root", at("dev")),
            ("--proc-root", at("proc")),
            ("--state-dir", at("agent")),
            ("--boot-id", self.boot.clone()),
            ("--nvml-library", library().to_str().unwrap().to_owned()),
            ("--rescan-seconds", "1".to_owned()),
        ];
        let words = words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        Words::parse_from(std::iter::once("agent".to_owned()).chain(words).chain(self.words.clone())).args
    }

    /// Starts an agent; does not wait for anything.
    pub fn start_agent(&mut self) {
        assert!(self.running.is_none(), "an agent runs");
        let (island, (stop, stopped)) = (Island::new("agent"), oneshot::channel::<()>());
        let (args, api) = (self.args(), self.api.clone());
        let ended = island.spawn(async move {
            let clients = Clients { watches: api.client(), calls: api.client() };
            let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
            let shutdown = async { drop(stopped.await) };
            Box::pin(agent::run(args, clients, metrics, Ready::default(), shutdown)).await
        });
        self.running = Some(Running { island, stop, ended });
    }

    /// An agent that has reported.
    pub async fn agent(&mut self) {
        let reports =
            |api: &ApiServer| api.writes().iter().filter(|write| write.kind == Kind::MigNode).count();
        let before = reports(&self.api);
        self.start_agent();
        self.api.until("a report", |api| reports(api) > before).await;
    }

    /// Ends the agent in good order, and its process.
    pub async fn stop_agent(&mut self) {
        let Running { island, stop, ended } = self.running.take().expect("no agent runs");
        stop.send(()).unwrap();
        within("the agent to end", ended).await.unwrap().unwrap();
        island.kill().await;
    }

    /// Kills the agent.
    pub async fn kill_agent(&mut self) {
        self.running.take().expect("no agent runs").island.kill().await;
    }

    /// How the agent has ended by itself.
    pub async fn agent_error(&mut self) -> String {
        let running = self.running.as_mut().expect("no agent runs");
        within("the agent to give up", &mut running.ended).await.unwrap().unwrap_err().to_string()
    }

    /// Slices that are wanted on GPU 0, as profile and start.
    pub fn want(&self, slices: &[(&str, u8)]) {
        self.want_on(&[slices]);
    }

    /// Slices that are wanted on each GPU.
    pub fn want_on(&self, gpus: &[&[(&str, u8)]]) {
        let geometry = |(profile, start): &(&str, u8)| {
            let size = match *profile {
                P1 => 1,
                P2 => 2,
                _ => 4,
            };
            SliceGeometry { profile: (*profile).to_owned(), start: *start, size }
        };
        let of = |(uuid, slices): (&String, &&[(&str, u8)])| GpuGeometry {
            uuid: uuid.clone(),
            slices: slices.iter().map(geometry).collect(),
        };
        let gpus = self.gpus.iter().zip(gpus).map(of).collect();
        self.api.want(&MIGNodeSpec { gpus, ..MIGNodeSpec::default() });
    }

    /// What the GPUs really hold.
    pub fn real(&self) -> Vec<Instance> {
        self.sim().instances().unwrap()
    }

    pub fn sim(&self) -> StateDir {
        StateDir::open(self.folder.join("gpus"))
    }

    /// The instance of GPU 0 that starts there.
    pub fn real_at(&self, start: u32) -> Option<Instance> {
        self.real().into_iter().find(|i| i.gpu_uuid == self.gpus[0] && i.start == start)
    }

    /// UUID of the MIG device of GPU 0 that starts there.
    pub fn uuid_at(&self, start: u32) -> String {
        self.real_at(start).unwrap().mig_uuid().unwrap().to_owned()
    }

    /// The slice of GPU 0 as the MIGNode has it.
    pub fn slice(&self, start: u8) -> Option<SliceStatus> {
        find(&self.api.status(), &self.gpus[0], start)
    }

    pub fn state(&self, start: u8) -> Option<SliceState> {
        self.slice(start).map(|slice| slice.state)
    }

    /// Waits until the slices of GPU 0 at these places are in a state.
    pub async fn until_state(&self, starts: &[u8], state: SliceState) {
        let gpu = self.gpus[0].clone();
        let is =
            |status: &MIGNodeStatus, start: u8| find(status, &gpu, start).is_some_and(|s| s.state == state);
        let what = format!("slices {starts:?} to be {state:?}");
        self.until(&what, |rig| starts.iter().all(|start| is(&rig.api.status(), *start))).await;
    }

    /// Waits until the MIGNode names no slice at a place of GPU 0.
    pub async fn until_gone(&self, start: u8) {
        self.until(&format!("slice {start} to be gone"), |rig| rig.slice(start).is_none()).await;
    }

    /// Waits until something is so by what the API server knows; says what it knows if it does not come.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let _told = Told(self);
        self.api.until(what, |_| holds(self)).await;
    }

    /// Waits for some more looks of the agent's at the kubelet: what it could have done by what it saw before, it has done.
    pub async fn looks(&self, count: usize) {
        let before = self.kubelet.record().looks;
        self.kubelet.until("looks at the kubelet", |kubelet| kubelet.record().looks >= before + count).await;
    }

    /// The Ready condition: status, reason and message.
    pub fn ready(&self) -> (String, String, String) {
        let condition = self.api.status().conditions.into_iter().find(|c| c.type_ == "Ready");
        condition.map(|c| (c.status, c.reason, c.message)).unwrap_or_default()
    }

    /// The tokens that the journal has, with the start of each one's slice.
    pub fn bindings(&self) -> Vec<(String, u64)> {
        let journal: Value = serde_json::from_slice(&fs::read(self.journal()).unwrap()).unwrap();
        let bindings = journal["bindings"].as_object().cloned().unwrap_or_default();
        bindings.into_iter().map(|(token, entry)| (token, entry["start"].as_u64().unwrap())).collect()
    }

    /// Admits a pod with one container that asks for one slice of 1g.10gb; where the slice is.
    pub async fn run(&self, name: &str) -> (Pod, u8) {
        let pod = pod(name);
        let given = self.kubelet.admit(&pod).await.unwrap();
        let starts = starts(&given);
        assert_eq!(starts.len(), 1, "{given:?}");
        (pod, starts[0])
    }

    /// Things that must be so at the end of every test.
    pub fn check(&self) {
        let record = self.kubelet.record();
        assert_eq!(record.shrinkings(), Vec::<String>::new());
        // A slow machine lets requests bunch, and an agent knows nothing of what the one before it asked; one that does not pace
        // itself is refused all the time.
        let (looks, rejections) = (record.looks, record.rejections);
        assert!(rejections <= 10 + looks / 20, "{rejections} requests too many, {looks} answered");
        assert_eq!(self.api.forbidden(), Vec::<String>::new());
    }
}

/// Says what there is when a wait has failed.
struct Told<'a>(&'a Rig);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("status: {:#?}\nreal: {:#?}", self.0.api.status(), self.0.real());
        }
    }
}

fn find(status: &MIGNodeStatus, gpu: &str, start: u8) -> Option<SliceStatus> {
    status.slices.iter().find(|slice| slice.gpu == gpu && slice.start == start).cloned()
}

/// A pod with one container that asks for one slice of 1g.10gb.
pub fn pod(name: &str) -> Pod {
    Pod::new("team", name).app("main", R1, 1)
}

/// Where the slices are that containers were given, by the CDI names that they were told.
pub fn starts(given: &[Given]) -> Vec<u8> {
    let names = given.iter().flat_map(|given| &given.response.cdi_devices).map(|device| device.name.as_str());
    names.filter_map(agent::cdi::parse).map(|place| place.start).collect()
}
