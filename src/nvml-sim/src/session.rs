//! The library between `nvmlInit` and `nvmlShutdown`.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::{
    code::{Code, NvmlResult},
    config::{Config, ConfigError},
    faults,
    handles::{self, Handle},
    state::{Gpu, State},
    store::{StateDir, StateError},
    tables::{self, Model},
};

/// An initialised library.
pub(crate) struct Session {
    pub(crate) config: Config,
    store: StateDir,
    /// What never changes of each GPU, by index.
    pub(crate) gpus: Vec<Card>,
}

/// A GPU as far as it does not change.
pub(crate) struct Card {
    pub(crate) uuid: String,
    pub(crate) model: &'static Model,
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
            for gpu in store.read()?.gpus {
                gpus.push(Card { model: tables::model(&gpu.model)?, uuid: gpu.uuid });
            }
            Ok((store, gpus))
        };
        let (store, gpus) = start().map_err(|error: StateError| broken(&error))?;
        Ok(Self { config, store, gpus })
    }

    fn sleep(&self, function: &str) {
        if let Some(&ms) = self.config.latency_ms.get(function) {
            thread::sleep(Duration::from_millis(ms));
        }
    }

    /// A call that concerns no GPU's instances: only its latency and faults.
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
