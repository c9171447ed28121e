//! The library between `nvmlInit` and `nvmlShutdown`.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    code::{Code, NvmlResult},
    config::{Config, ConfigError, GpuGroup, MigMode},
    events::{Event, EventSet},
    faults,
    handles::{self, Handle},
    state::{Gpu, State},
    store::{SessionFile, StateDir, StateError},
    tables::{self, Model},
};

/// An initialised library.
pub(crate) struct Session {
    pub(crate) config: Config,
    store: StateDir,
    /// What never changes of each GPU, by index.
    pub(crate) gpus: Vec<Card>,
    event_sets: Mutex<BTreeMap<u64, EventSet>>,
    _open: SessionFile,
}

/// How often a waiting call looks for events.
const LOOK: Duration = Duration::from_millis(20);

/// A GPU as far as it does not change.
pub(crate) struct Card {
    pub(crate) uuid: String,
    pub(crate) model: &'static Model,
    group: GpuGroup,
}

impl Card {
    /// Whether the GPU knows of MIG; every call about it says no otherwise.
    pub(crate) fn require_support(&self) -> NvmlResult<()> {
        match self.group.mig_mode {
            MigMode::Unsupported => Err(Code::NOT_SUPPORTED),
            MigMode::Enabled | MigMode::Disabled => Ok(()),
        }
    }

    /// A profile's name as NVML reports it.
    pub(crate) fn profile_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.group.profile_names.get(name).map_or(name, String::as_str)
    }
}

/// A device handle, resolved.
#[derive(Clone, Copy)]
pub(crate) enum Device {
    Gpu(u32),
    Mig { gpu: u32, gi: u32, ci: u32 },
}

impl Device {
    pub(crate) fn gpu(self) -> u32 {
        match self {
            Self::Gpu(gpu) | Self::Mig { gpu, .. } => gpu,
        }
    }
}

impl From<Device> for Handle {
    fn from(device: Device) -> Self {
        match device {
            Device::Gpu(gpu) => Self::Gpu(gpu),
            Device::Mig { gpu, gi, ci } => Self::MigDevice { gpu, gi, ci },
        }
    }
}

struct Open {
    /// `nvmlInit` nests: the last `nvmlShutdown` ends the session.
    depth: u32,
    session: Option<Arc<Session>>,
}

static OPEN: Mutex<Open> = Mutex::new(Open { depth: 0, session: None });

/// `nvmlInit`
pub(crate) fn init(function: &str) -> NvmlResult<()> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let session = match &open.session {
        Some(session) => Arc::clone(session),
        None => Arc::new(Session::start()?),
    };
    session.call(function)?;
    open.session = Some(session);
    open.depth += 1;
    Ok(())
}

/// `nvmlShutdown`
pub(crate) fn shutdown(function: &str) -> NvmlResult<()> {
    current()?.call(function)?;
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.depth = open.depth.checked_sub(1).ok_or(Code::UNINITIALIZED)?;
    if open.depth == 0 {
        open.session = None;
    }
    Ok(())
}

/// The session, if there is one.
pub(crate) fn current() -> NvmlResult<Arc<Session>> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.session.clone().ok_or(Code::UNINITIALIZED)
}

/// The C interface has no room for more than a code; whoever set the simulator up must still learn what is wrong.
fn tell(error: &dyn std::error::Error) {
    let _ = writeln!(std::io::stderr(), "slicegate-nvml-sim: {error}");
}

fn broken(error: &StateError) -> Code {
    tell(error);
    Code::UNKNOWN
}

impl Session {
    fn start() -> NvmlResult<Self> {
        let config = Config::from_env().map_err(|error| {
            tell(&error);
            match error {
                ConfigError::NoEnv | ConfigError::Missing { .. } => Code::DRIVER_NOT_LOADED,
                ConfigError::Invalid { .. } => Code::UNKNOWN,
            }
        })?;
        let start = || {
            let store = StateDir::prepare(&config)?;
            let mut gpus = Vec::new();
            for (gpu, group) in store.read()?.gpus.into_iter().zip(config.each_gpu()) {
                gpus.push(Card { model: tables::model(&gpu.model)?, uuid: gpu.uuid, group: group.clone() });
            }
            let open = store.enter()?;
            Ok((store, gpus, open))
        };
        let (store, gpus, open) = start().map_err(|error: StateError| broken(&error))?;
        Ok(Self { config, store, gpus, event_sets: Mutex::default(), _open: open })
    }

    fn sleep(&self, function: &str) {
        if let Some(&ms) = self.config.latency_ms.get(function) {
            thread::sleep(Duration::from_millis(ms));
        }
    }

    /// A call on a GPU that concerns none of its instances.
    pub(crate) fn call_on(&self, function: &str, index: u32) -> NvmlResult<()> {
        self.call(function)?;
        self.card(index)?;
        self.present([index])
    }

    /// Whether none of the GPUs is lost.
    pub(crate) fn present(&self, indices: impl IntoIterator<Item = u32>) -> NvmlResult<()> {
        let state = self.look()?;
        let lost = |index: u32| state.gpus.get(index as usize).is_some_and(|gpu| gpu.lost);
        if indices.into_iter().any(lost) { Err(Code::GPU_IS_LOST) } else { Ok(()) }
    }

    /// A call that concerns no GPU: only its latency and faults.
    pub(crate) fn call(&self, function: &str) -> NvmlResult<()> {
        self.sleep(function);
        if !faults::concern(&self.config.faults, function) {
            return Ok(());
        }
        let counted = self.store.transact(|state| faults::count(&self.config.faults, state, function));
        counted.map_err(|error| broken(&error))?
    }

    /// A call that reads or changes a GPU's instances. A failed one has changed nothing.
    pub(crate) fn on_gpu<T>(
        &self,
        function: &str,
        index: u32,
        f: impl FnOnce(&Model, &mut Gpu) -> NvmlResult<T>,
    ) -> NvmlResult<T> {
        let card = self.card(index)?;
        let _turn = self.store.lock_gpu(index).map_err(|error| broken(&error))?;
        self.sleep(function);
        let done = self.store.transact(|state| {
            faults::count(&self.config.faults, state, function)?;
            let gpu = state.gpus.get_mut(index as usize).ok_or(Code::UNKNOWN)?;
            if gpu.lost {
                return Err(Code::GPU_IS_LOST);
            }
            let mut trial = gpu.clone();
            let result = f(card.model, &mut trial)?;
            *gpu = trial;
            Ok(result)
        });
        done.map_err(|error| broken(&error))?
    }

    /// Reads all GPUs' instances on behalf of a call that has counted already.
    pub(crate) fn look(&self) -> NvmlResult<State> {
        self.store.read().map_err(|error| broken(&error))
    }

    /// Whether a GPU can be reset to change its MIG mode, where that takes a reset.
    pub(crate) fn resettable(&self, index: u32) -> NvmlResult<()> {
        let card = self.card(index)?;
        if !card.model.keeps_mig_mode() {
            return Ok(());
        }
        if card.group.passthrough {
            return Err(Code::RESET_REQUIRED);
        }
        // This session itself does not stand in the way.
        let sessions = self.store.sessions().map_err(|error| broken(&error))?;
        if sessions > 1 { Err(Code::IN_USE) } else { Ok(()) }
    }

    /// Makes an event set and returns its number.
    pub(crate) fn new_event_set(&self) -> u64 {
        let number = handles::new_event_set();
        self.with_sets(|sets| sets.insert(number, EventSet::default()));
        number
    }

    pub(crate) fn drop_event_set(&self, number: u64) {
        self.with_sets(|sets| sets.remove(&number));
    }

    /// Lets an event set take events of a GPU.
    pub(crate) fn register(&self, set: u64, gpu: u32, types: u64) -> NvmlResult<()> {
        let events = self.store.events().map_err(|error| broken(&error))?;
        self.with_sets(|sets| sets.get_mut(&set).map(|set| set.register(gpu, types, &events)))
            .ok_or(Code::INVALID_ARGUMENT)
    }

    /// Waits for an event of the set. Other calls go on meanwhile.
    pub(crate) fn wait(&self, set: u64, timeout: Duration) -> NvmlResult<Event> {
        let deadline = Instant::now() + timeout;
        let mut seen = None;
        loop {
            let events = self.store.events().map_err(|error| broken(&error))?;
            let found = self.with_sets(|sets| {
                let set = sets.get_mut(&set)?;
                Some((set.next(&events), set.gpus().collect::<Vec<_>>()))
            });
            let (event, gpus) = found.ok_or(Code::INVALID_ARGUMENT)?;
            if let Some(event) = event {
                return Ok(event);
            }
            // A GPU that is lost is an event, too.
            if seen.replace(events.next) != Some(events.next) {
                self.present(gpus)?;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Code::TIMEOUT);
            }
            thread::sleep(left.min(LOOK));
        }
    }

    fn with_sets<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, EventSet>) -> T) -> T {
        f(&mut self.event_sets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The GPU at an index. A handle may come from an earlier session that had more GPUs.
    pub(crate) fn card(&self, index: u32) -> NvmlResult<&Card> {
        self.gpus.get(index as usize).ok_or(Code::INVALID_ARGUMENT)
    }

    /// A device handle of either kind.
    pub(crate) fn device<T>(&self, pointer: *mut T) -> NvmlResult<Device> {
        let device = match handles::resolve(pointer)? {
            Handle::Gpu(gpu) => Device::Gpu(gpu),
            Handle::MigDevice { gpu, gi, ci } => Device::Mig { gpu, gi, ci },
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        self.card(device.gpu())?;
        Ok(device)
    }

    /// The index of a GPU; a MIG device handle is refused.
    pub(crate) fn gpu<T>(&self, pointer: *mut T) -> NvmlResult<u32> {
        match self.device(pointer)? {
            Device::Gpu(gpu) => Ok(gpu),
            Device::Mig { .. } => Err(Code::INVALID_ARGUMENT),
        }
    }

    /// A GPU instance handle, as (GPU, GPU instance).
    pub(crate) fn gpu_instance<T>(&self, pointer: *mut T) -> NvmlResult<(u32, u32)> {
        match handles::resolve(pointer)? {
            Handle::GpuInstance { gpu, gi } => self.card(gpu).map(|_| (gpu, gi)),
            _ => Err(Code::INVALID_ARGUMENT),
        }
    }

    /// A compute instance handle, as (GPU, GPU instance, compute instance).
    pub(crate) fn compute_instance<T>(&self, pointer: *mut T) -> NvmlResult<(u32, u32, u32)> {
        match handles::resolve(pointer)? {
            Handle::ComputeInstance { gpu, gi, ci } => self.card(gpu).map(|_| (gpu, gi, ci)),
            _ => Err(Code::INVALID_ARGUMENT),
        }
    }
}
