//! What goes wrong on GPUs, as NVML reports it the moment that it happens.

use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use slicegate_core::id::GpuUuid;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{info, warn};

use super::driver::Driver;
use super::error::{NvmlError, code};
use super::raw::{EventData, EventSet};

/// `nvmlEventTypeXidCriticalError`
const XID: u64 = 0x8;
/// `nvmlEventMigConfigChange`
const MIG_CONFIG_CHANGE: u64 = 0x100;
/// The XIDs that an application brings upon itself while the GPU stays healthy, as in NVIDIA's device plugin
/// (internal/rm/health.go): graphics engine exception, page fault, stopped processing, preemptive cleanup, video processor
/// exception, context switch timeout.
const OF_APPLICATIONS: [u64; 6] = [13, 31, 43, 45, 68, 109];
/// How long one call waits, and so how long it takes to end.
const WAIT: Duration = Duration::from_millis(200);
/// How long a GPU that takes no registration is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// Something that happened to a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The GPU.
    pub gpu: GpuUuid,
    /// NVML's id of the GPU instance that it concerns; `None` for the whole GPU.
    pub instance: Option<u32>,
    /// NVML's id of the compute instance in it that it concerns; `None` for all of them.
    pub compute: Option<u32>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A critical error, by its number (<https://docs.nvidia.com/deploy/xid-errors>); none that only an application is to
    /// blame for.
    Xid(u64),
    /// Instances were made or destroyed, by whomever: by this agent, too.
    MigConfigChange,
    /// It can no longer be waited for; why, the next call on it says.
    Lost,
}

/// A thread that waits for NVML's events. Dropping it ends the thread, within a fifth of a second, and with it the thread's
/// hold on the driver.
pub struct Events {
    /// Hung up to end the thread.
    stop: Option<std_mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// Registers for the critical errors and MIG changes of all GPUs and sends them to `sender` from now on. The texts say
    /// which GPUs report nothing, and why; they are tried again. Fails if NVML has no events at all.
    ///
    /// No event is dropped: with the channel full, the thread waits for room.
    pub fn open(driver: &Arc<Driver>, sender: Sender<Event>) -> Result<(Self, Vec<String>), NvmlError> {
        let (stop, stopped) = std_mpsc::channel();
        let (opened, outcome) = std_mpsc::channel();
        let driver = driver.clone();
        let thread = thread::Builder::new()
            .name("nvml-events".to_owned())
            .spawn(move || match Watch::begin(&driver) {
                Ok((watch, problems)) => {
                    if opened.send(Ok(problems)).is_ok() {
                        watch.run(&Outlet { sender, stopped });
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .ok();
        let this = Self { stop: Some(stop), thread };
        // Hung up without a word: there is no thread.
        let problems =
            outcome.recv().unwrap_or(Err(NvmlError { call: "nvmlEventSetCreate", code: code::UNKNOWN }))?;
        Ok((this, problems))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread that waits for NVML events has panicked");
        }
    }
}

/// Where events go, and the word to stop.
struct Outlet {
    sender: Sender<Event>,
    stopped: std_mpsc::Receiver<()>,
}

impl Outlet {
    /// Whether to go on after this time.
    fn pause(&self, time: Duration) -> bool {
        let told = self.stopped.recv_timeout(time);
        told == Err(RecvTimeoutError::Timeout) && !self.sender.is_closed()
    }

    /// Whether to go on after this event.
    fn send(&self, mut event: Event) -> bool {
        loop {
            match self.sender.try_send(event) {
                Ok(()) => return true,
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(back)) => event = back,
            }
            if !self.pause(WAIT / 20) {
                return false;
            }
        }
    }
}

/// The GPUs that are waited for, and those that cannot be.
struct Watch<'a> {
    driver: &'a Driver,
    set: EventSet<'a>,
    watched: Vec<Watched<'a>>,
    /// By NVML index.
    silent: Vec<u32>,
    tried: Instant,
}

struct Watched<'a> {
    index: u32,
    uuid: GpuUuid,
    device: Device<'a>,
}

impl<'a> Watch<'a> {
    fn begin(driver: &'a Driver) -> Result<(Self, Vec<String>), NvmlError> {
        let silent = (0..driver.count()?).collect();
        let set = EventSet::new(driver.nvml())?;
        let mut this = Self { driver, set, watched: Vec::new(), silent, tried: Instant::now() };
        let problems = this.register();
        Ok((this, problems))
    }

    /// Tries to register the GPUs that are silent, and says of each that still is why.
    fn register(&mut self) -> Vec<String> {
        self.tried = Instant::now();
        let mut problems = Vec::new();
        for index in std::mem::take(&mut self.silent) {
            match self.register_gpu(index) {
                Ok(gpu) => self.watched.push(gpu),
                Err(error) => {
                    self.silent.push(index);
                    problems.push(format!(
                        "GPU {index} reports no health events: {error}; what goes wrong on it shows when a call fails"
                    ));
                }
            }
        }
        problems
    }

    fn register_gpu(&self, index: u32) -> Result<Watched<'a>, NvmlError> {
        let device = self.driver.device(index)?;
        let uuid = Driver::uuid(&device)?;
        match self.set.register(&device, XID | MIG_CONFIG_CHANGE)? {
            types if types & XID == 0 => {
                Err(NvmlError { call: "nvmlDeviceGetSupportedEventTypes", code: code::NOT_SUPPORTED })
            }
            _ => Ok(Watched { index, uuid, device }),
        }
    }

    fn run(mut self, outlet: &Outlet) {
        let mut failing = false;
        loop {
            if !self.silent.is_empty() && self.tried.elapsed() >= RETRY {
                self.register();
            }
            // An empty set has nothing to wait for.
            if self.watched.is_empty() {
                if !outlet.pause(WAIT) {
                    return;
                }
                continue;
            }
            let lost = match self.set.wait(u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX)) {
                Ok(data) => {
                    failing = false;
                    if !data.into_iter().flat_map(|data| self.events(&data)).all(|event| outlet.send(event)) {
                        return;
                    }
                    if !outlet.pause(Duration::ZERO) {
                        return;
                    }
                    continue;
                }
                Err(error) => {
                    if !failing {
                        warn!(%error, "waiting for NVML events fails; registering anew");
                    }
                    failing = true;
                    self.renew()
                }
            };
            let said = lost
                .into_iter()
                .all(|gpu| outlet.send(Event { gpu, instance: None, compute: None, kind: EventKind::Lost }));
            if !said || !outlet.pause(WAIT) {
                return;
            }
        }
    }

    /// Makes the set anew, since one lost GPU spoils the whole of it, and returns the GPUs that are no longer in it.
    fn renew(&mut self) -> Vec<GpuUuid> {
        let Ok(set) = EventSet::new(self.driver.nvml()) else { return Vec::new() };
        let before = std::mem::take(&mut self.watched);
        self.set = set;
        self.silent.extend(before.iter().map(|gpu| gpu.index));
        self.silent.sort_unstable();
        self.register();
        let gone = before.into_iter().filter(|gpu| self.silent.contains(&gpu.index));
        gone.map(|gpu| gpu.uuid).collect()
    }

    /// What NVML reports, of the GPU that it reports it of; of every GPU when that cannot be told.
    fn events(&self, data: &EventData) -> Vec<Event> {
        let kind = if data.types & XID != 0 {
            EventKind::Xid(data.data)
        } else if data.types & MIG_CONFIG_CHANGE != 0 {
            EventKind::MigConfigChange
        } else {
            return Vec::new();
        };
        let its = self.watched.iter().find(|gpu| data.is_of(&gpu.device));
        let gpus = its.map_or(self.watched.as_slice(), std::slice::from_ref);
        if let EventKind::Xid(xid) = kind
            && OF_APPLICATIONS.contains(&xid)
        {
            let gpus: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
            info!(xid, ?gpus, instance = data.instance, "an application has failed; the GPU is healthy");
            return Vec::new();
        }
        gpus.iter()
            .map(|gpu| Event { gpu: gpu.uuid.clone(), instance: data.instance, compute: data.compute, kind })
            .collect()
    }
}
